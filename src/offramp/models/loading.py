"""From the source of a model to a checked model."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import nn

from offramp.errors import ModelError, raise_if_out_of_memory
from offramp.files import json_object_in
from offramp.kit.picture import MOST_PIXELS
from offramp.kit.rules import shown
from offramp.kit.sound import HIGHEST_RATE, LOWEST_RATE
from offramp.models.checkpoint import (
    CONFIG_FILE,
    CONTEXT_KEYS,
    GENERATION_FILE,
    check_generation,
    check_vocabulary,
    find_strangers,
    read_config,
    read_headers,
    refuse_strangers,
    remote_code,
    source_read,
)
from offramp.models.conditioned import FRAMES_PER_POSITION, Conditioned, own_model
from offramp.models.devices import CPU
from offramp.models.identity import ModelIdentity
from offramp.models.model import BosPolicy, Model, NoTokenizer, find_bos_policy, find_eos_token_ids
from offramp.models.pictured import as_causal
from offramp.models.process import quiet_transformers
from offramp.models.shape import ModelShape
from offramp.models.source import ModelFiles
from offramp.models.stack import ExitStack
from offramp.models.tensors import check_finite, check_kind
from offramp.models.tokenizing import (
    TOKENIZER_CONFIG,
    TOKENIZER_FILE,
    check_tokenizer_file,
    raise_if_not_a_librarys,
    settle,
)
from offramp.plug_ins import asking, load_plug_in, plug_ins

if TYPE_CHECKING:
    from offramp.models.streaming import StreamedLayers

# What transformers raises on a checkpoint that it cannot build or fill.
LOADING_ERRORS = (
    *(OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError),
    *(AssertionError, ArithmeticError, IndexError, SafetensorError),
)
LONGEST_REASON = 300
JSON_FILES = (TOKENIZER_FILE, TOKENIZER_CONFIG, "special_tokens_map.json", GENERATION_FILE)


@dataclass(frozen=True)
class Placement:
    """Where and how a model computes."""

    device: str = CPU
    """As `offramp.models.devices.find_device` gives it."""
    device_map: Any = None
    """As transformers takes it, and used instead of the device."""
    attn_implementation: str | None = None
    """As transformers takes it."""

    @property
    def options(self) -> dict[str, Any]:
        """What transformers is told of it, nothing of what it does by itself."""
        device_map = self.device_map
        if device_map is None and self.device != CPU:
            device_map = self.device
        given = {"device_map": device_map, "attn_implementation": self.attn_implementation}
        return {name: value for name, value in given.items() if value is not None}


def load_source(
    source: ModelFiles,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    placement: Placement | None = None,
) -> Model:
    """Load the model of a source, find its stack of exits and check that exit L reproduces its own logits.

    source: as `find_source` found and checked it. dtype: "float32", "bfloat16" or "float16". placement: by
    default on the processor.

    Raises ModelError: a tokenizer of another model, missing or non-finite weights, weights of layers that the
    config does not have, a family that transformers does not know, or exits that cannot be read out exactly.
    """
    with source.unpacked() as source, quiet_transformers():
        tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        maker = load_maker(source, trust_remote_code=trust_remote_code)
        hf, unexpected = _load_weights(source, dtype, trust_remote_code, placement or Placement())
    hf = as_causal(hf.eval(), maker)
    model = build_model(hf, tokenizer, name=source.name, identity=source.identity, dtype=dtype, source=source)
    if placement is not None and placement.attn_implementation is not None:
        model = replace(model, attention=placement.attn_implementation)
    _check_no_strangers(model.stack, unexpected, str(source.folder))
    return model


FAMILIES = "offramp.model_families"
"""Entry points by a config's `model_type`: functions that let transformers know a family of that name."""


def know_family(source: ModelFiles) -> None:
    """Let transformers know the family of a source, if another package brings it.

    Raises InputError for one that cannot be loaded.
    """
    point = plug_ins(FAMILIES).get(_family_of(source))
    if point is not None:
        make_known = load_plug_in(point, callable, "model family", "a function")
        with asking(make_known, f"the plug-in of the model family {point.name}"):
            make_known()


def _family_of(source: ModelFiles) -> str:
    return str(read_config(source.folder).get("model_type"))


LAB_FAMILY = "offramp_lab"
"""Of models that `offramp lab train` left, as it was called: the family is a package of its own now."""


def build_model(
    hf: Any,
    tokenizer: Any,
    *,
    name: str,
    identity: ModelIdentity,
    dtype: str,
    source: ModelFiles | None = None,
) -> Model:
    """Wrap a transformers model that is already in memory: stack of exits, self-check, shape, encoding.

    Raises ModelError if a weight is not finite or the exits cannot be read out exactly.
    """
    from offramp.models.discovery import find_stack
    from offramp.models.measuring import measure_shape

    hf = as_causal(hf.eval().requires_grad_(False))
    require_in_memory(hf, name)
    check_finite(hf, name)
    stack = find_stack(hf, name=name)
    return describe_model(
        hf,
        tokenizer,
        stack=stack,
        shape=measure_shape(hf, stack),
        name=name,
        identify=lambda: identity,
        transforms=identity.transforms,
        dtype=dtype,
        source=source,
    )


def require_in_memory(hf: Any, name: str) -> None:
    """Refuse a model whose weights are not all here, and whole. Raises ModelError."""
    absent = [path for path, weight in hf.named_parameters() if weight.is_meta]
    if absent:
        raise ModelError(
            f"{len(absent)} weights are not in memory (on the meta device, or offloaded), the first is "
            f"{absent[0]}",
            where=name,
            fix="load the model whole; or trace its folder, whose layers are then read from disk one at a "
            "time: offramp trace FOLDER --stream",
        )
    split = [path for path, weight in hf.named_parameters() if hasattr(weight, "ds_id") or _is_split(weight)]
    if split:
        raise ModelError(
            f"{len(split)} weights are split over processes, the first is {split[0]}",
            where=name,
            fix="gather the model in one process first, or measure its checkpoint: offramp trace FOLDER",
        )


def _is_split(weight: Any) -> bool:
    """Whether a tensor is one process's part of a larger one."""
    return hasattr(weight, "placements") and hasattr(weight, "to_local")


def describe_model(
    hf: Any,
    tokenizer: Any,
    *,
    stack: ExitStack,
    shape: ModelShape,
    name: str,
    identify: Callable[[], ModelIdentity],
    dtype: str,
    source: ModelFiles | None,
    transforms: tuple[str, ...] = (),
    streamed: StreamedLayers | None = None,
) -> Model:
    """A checked model, with what its config and tokenizer say of contexts, beginnings and ends of texts.

    Raises ModelError for an end token that is no number, and for an encoder that only the config states:
    transformers would begin each text with another token.
    """
    config = hf.config.get_text_config()
    if getattr(hf.config, "is_encoder_decoder", False) and not isinstance(hf, Conditioned):
        raise ModelError(
            f"the config states is_encoder_decoder, and a {type(own_model(hf)).__name__} has no encoder",
            where=name if source is None else str(source.folder / CONFIG_FILE),
            fix="take is_encoder_decoder out of the config",
        )
    lengths = [getattr(config, key, None) for key in CONTEXT_KEYS]
    context = next((length for length in lengths if isinstance(length, int) and length > 0), None)
    bos = find_bos_policy(tokenizer, config.model_type)
    if isinstance(hf, Conditioned) and not isinstance(tokenizer, NoTokenizer):
        first, *further = hf.front
        bos = BosPolicy("forced", first, tuple(further))
    return Model(
        name=name,
        hf=hf,
        tokenizer=tokenizer,
        stack=stack,
        shape=replace(shape, context_length=context),
        identify=identify,
        dtype=dtype,
        bos_policy=bos,
        context_length=context,
        eos_token_ids=find_eos_token_ids(hf, tokenizer),
        transforms=transforms,
        source=source,
        streamed=streamed,
    )


def load_tokenizer(source: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a source, checked against the config before the weights are loaded.

    Raises ModelError if it or the config cannot be read, or if they are not of one model.
    """
    from transformers import AutoConfig, AutoTokenizer

    know_family(source)
    generation = source.folder / GENERATION_FILE
    generating = json_object_in(generation, lenient=True) if generation.is_file() else {}
    if generating is None:
        # transformers goes on without its end tokens
        raise ModelError(
            "the file holds no JSON object", where=str(generation), fix="repair it, or copy it again"
        )
    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        reading, file = "config", source.folder / "config.json"
        config = AutoConfig.from_pretrained(source.folder, **options)
        _check_quantisation(config, file)
        reading = "tokenizer"
        check_tokenizer_file(source.folder)
        tokenizer = AutoTokenizer.from_pretrained(source.folder, **options)
    except BaseException as error:
        raise_if_not_a_librarys(error)
        if "trust_remote_code" in str(error):  # config.json was checked before
            raise remote_code(source.folder / TOKENIZER_CONFIG) from error
        raise ModelError(
            f"transformers cannot read the {reading}: {_brief(error)}",
            where=str(
                _broken_file(source.folder)
                or _not_utf8(source.folder, error)
                or (file if reading == "config" else _unread_of_tokenizer(source.folder))
            ),
            fix="install what brings the family, from offramp's sources: pip install ./experiments/lab"
            if _family_of(source) == LAB_FAMILY
            else "check that config.json and the tokenizer files are complete and of a known family",
        ) from error
    check_vocabulary(tokenizer, config, source.folder)
    check_generation(generating, config.get_text_config().vocab_size, generation)
    if source.packed is not None:  # where a template or a text fails, the user's own file is named
        tokenizer.name_or_path = str(source.packed)
    settle(tokenizer, source.folder)
    return tokenizer


def _check_quantisation(config: Any, file: Path) -> None:
    """Refuse weights of a quantisation that transformers does not know, and would take for plain ones."""
    from transformers.quantizers import auto

    quantizer: Any = auto.AutoHfQuantizer
    stated = getattr(config, "quantization_config", None)
    if isinstance(stated, dict) and not quantizer.supports_quant_method(stated):
        method = stated.get("quant_method")
        raise ModelError(
            f"config.json states weights quantized by {method!r}, which transformers does not know",
            where=str(file),
            fix="use a checkpoint that is not quantized so",
        )


OWN_EXTRACTOR = "put the preprocessor_config.json that belongs to this model there"


def check_extractor(extractor: Any, config: Any, folder: Path) -> None:
    """Refuse a feature extractor of another speech model: other mel bands, or a window of another length."""
    made = (extractor.feature_size, extractor.nb_max_frames)
    read = (config.num_mel_bins, FRAMES_PER_POSITION * config.max_source_positions)
    if made != read:
        what = (
            f"the feature extractor makes {made[0]} mel bands of {made[1]:,} frames, and the encoder reads "
        )
        what += f"{read[0]} of {read[1]:,}: they are not of the same model"
        raise ModelError(what, where=str(folder), fix=OWN_EXTRACTOR)


PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
LONGEST_SIDE = 4096
"""Pixels of a side that a picture is scaled to; models see a fourth of it."""
MAKER_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("height", "width", "shortest_edge", "longest_edge"), (1, LONGEST_SIDE)),
    **dict.fromkeys(("size", "crop_size", "patch_size"), (1, LONGEST_SIDE)),
    **dict.fromkeys(("min_pixels", "max_pixels"), (1, MOST_PIXELS)),
    **dict.fromkeys(("image_mean", "padding_value"), (-1000.0, 1000.0)),
    **dict.fromkeys(("image_std", "rescale_factor"), (1e-6, 1000.0)),
    "resample": (0, 5),  # as Pillow numbers its filters
    "dither": (0.0, 1.0),
    "sampling_rate": (LOWEST_RATE, HIGHEST_RATE),
    "chunk_length": (1, 3_600),
    **dict.fromkeys(("n_fft", "hop_length"), (1, 16_384)),
    "feature_size": (1, 1_024),
    "num_additional_image_tokens": (0, LONGEST_SIDE),
}
"""Least and most of what a model's files state of how its inputs are made; whole numbers where these are."""
CHANNELS = 3


def check_maker(folder: Path) -> None:
    """Refuse what no picture or sound is made inputs by, before any is. Raises ModelError."""
    for name in PROCESSOR_FILES:
        path = folder / name
        for key, value, most in _numbers_in(json_object_in(path, lenient=True) if path.is_file() else None):
            least = MAKER_RANGES[key][0]
            kind = "whole number" if isinstance(least, int) else "number"
            number = type(value) is int or (type(value) is float and (kind == "number" or value.is_integer()))
            if not number or not least <= value <= most:
                what = f"{key} in {name} is {shown(value)}, not a {kind} from {least:g} to {most:,.9g}"
                what += f" for each of {CHANNELS} colours" if isinstance(value, list) else ""
                raise ModelError(what, where=str(path), fix="copy the file of the original model there")


def _numbers_in(value: Any, key: str = "", pixels: bool = False) -> Iterator[tuple[str, Any, float]]:
    """Keys of MAKER_RANGES with what stands there, at any depth, and the most that it may be.

    pixels: whether the edges of a size are numbers of pixels, as where patches are merged.
    """
    if isinstance(value, dict):
        for inner, item in value.items():
            if item is not None:
                yield from _numbers_in(item, inner, pixels or "merge_size" in value)
    elif isinstance(value, list) and (key not in ("image_mean", "image_std") or len(value) == CHANNELS):
        for item in value:
            yield from _numbers_in(item, key, pixels)
    elif key in MAKER_RANGES:
        yield key, value, MOST_PIXELS if pixels and key.endswith("_edge") else MAKER_RANGES[key][1]


def load_maker(source: ModelFiles, *, trust_remote_code: bool = False) -> Any:
    """What makes the encoder's inputs: of a speech model its feature extractor, of an image-text model its
    processor if it has one, and what that needs is installed; None for any other. Raises ModelError if unfit,
    or if it cannot be read.
    """
    reads = source_read(read_config(source.folder))
    if reads in ("audio", "image"):
        check_maker(source.folder)
    if reads == "audio":
        return _load_extractor(source)
    if reads != "image" or not any((source.folder / name).is_file() for name in PROCESSOR_FILES):
        return None
    from transformers import AutoProcessor

    try:
        auto: Any = AutoProcessor
        options = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        processor = auto.from_pretrained(source.folder, **options)
        settle(processor.tokenizer, source.folder)
        return processor
    except ImportError:  # of Pillow, which a picture asks for before anything else; texts do without
        return None
    except LOADING_ERRORS as error:
        raise ModelError(
            f"transformers cannot read the processor: {_brief(error)}",
            where=str(source.folder),
            fix="put the files of its processor there (what reads pictures: pip install 'offramp[images]')",
        ) from error


def _load_extractor(source: ModelFiles) -> Any:
    from transformers import AutoConfig, AutoFeatureExtractor

    try:
        auto: Any = AutoFeatureExtractor
        extractor = auto.from_pretrained(source.folder, local_files_only=True)
        config = AutoConfig.from_pretrained(source.folder, local_files_only=True)
    except LOADING_ERRORS as error:
        what = f"transformers cannot read what makes features of sounds: {_brief(error)}"
        raise ModelError(what, where=str(source.folder), fix=OWN_EXTRACTOR) from error
    check_extractor(extractor, config, source.folder)
    return extractor


def _brief(error: BaseException) -> str:
    """What a library says, on one line; its advice, which comes last, is seldom of use here."""
    said = " ".join(str(error).split())
    if isinstance(error, KeyError):
        said = f"it does not know, or misses, {said}"
    return said if len(said) <= LONGEST_REASON else f"{said[:LONGEST_REASON]}..."


def _blamed_file(folder: Path, error: Exception) -> Path:
    """Where to look first: a value that transformers does not know stands in a config."""
    if _comes_from_generation(error):
        return folder / GENERATION_FILE
    stated = isinstance(error, KeyError | TypeError) or "attn_implementation" in str(error)
    return folder / "config.json" if stated else folder


def _comes_from_generation(error: Exception) -> bool:
    """Whether it was raised while transformers checked how the model is to generate."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_globals.get("__name__", "").endswith("generation.configuration_utils") for frame in frames
    )


def _broken_file(folder: Path) -> Path | None:
    """The first of the tokenizer's and the generation's files that holds no JSON object."""
    paths = [folder / name for name in JSON_FILES]
    broken = (path for path in paths if path.is_file() and json_object_in(path, lenient=True) is None)
    return next(broken, None)


def _unread_of_tokenizer(folder: Path) -> str:
    """The tokenizer's file that transformers cannot read; where it can be read alone, those beside it."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_FILE
    try:
        Tokenizer.from_file(str(path))
    except BaseException as error:  # noqa: BLE001 - tokenizers' panics are no Exceptions
        raise_if_not_a_librarys(error)
        return str(path)
    beside = [folder / name for name in JSON_FILES[1:3]]
    return " or ".join(str(other) for other in beside if other.is_file()) or str(path)


def _not_utf8(folder: Path, error: BaseException) -> Path | None:
    """The first of the tokenizer's files of text that is no UTF-8, where that went wrong."""
    if not isinstance(error, UnicodeDecodeError):
        return None
    for path in sorted(path for ending in ("json", "jinja", "txt") for path in folder.glob(f"*.{ending}")):
        try:
            path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            return path
    return None


def _load_weights(
    source: ModelFiles, dtype: str, trust_remote_code: bool, placement: Placement
) -> tuple[Any, set[str]]:
    """The transformers model, and the names of stored tensors that have no place in it."""
    import torch

    auto_class = auto_class_of(source)
    try:
        hf, report = auto_class.from_pretrained(
            source.folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
            use_kernels=False,  # code of the Hub, of no version that is written down, in place of layers
            **placement.options,
        )
    except LOADING_ERRORS as error:
        raise_if_out_of_memory(error)
        mismatch = _other_shape(source, trust_remote_code) if "mismatched_sizes" in str(error) else None
        raise ModelError(
            f"transformers cannot load the model: {mismatch or _brief(error)}",
            where=str(_broken_file(source.folder) or _blamed_file(source.folder, error)),
            fix="check that the files are complete and of a causal language model that transformers knows",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"the weight files lack {len(missing)} tensors, the first is {missing[0]}; they would be random",
            where=str(source.folder),
            fix="use a complete checkpoint of a causal language model (with its output head)",
        )
    _check_kinds(hf, source)
    return hf, set(report["unexpected_keys"])


def _check_kinds(hf: Any, source: ModelFiles) -> None:
    """Refuse what cannot be weights in their place. Raises ModelError."""
    made = hf.state_dict(keep_vars=True)
    for stored in read_headers(source.folder).values():
        names = (stored.name, f"{hf.base_model_prefix}.{stored.name}")
        weight = next((made[name] for name in names if name in made), None)
        if weight is not None:
            check_kind(stored, weight.dtype)


def auto_class_of(source: ModelFiles) -> Any:
    """The class of transformers that loads a source: of an encoder-decoder with its encoder, of an image-text
    model with what sees."""
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    config = read_config(source.folder)
    reads = source_read(config)
    if reads == "image" and config.get("model_type") not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        reads = None
    names = {None: "CausalLM", "text": "Seq2SeqLM", "audio": "SpeechSeq2Seq", "image": "ImageTextToText"}
    return getattr(transformers, f"AutoModelFor{names[reads]}")


def _other_shape(source: ModelFiles, trust_remote_code: bool) -> str:
    """The first tensor whose stored shape is not the config's.

    transformers says it in a report that is not shown here.
    """
    import torch
    import transformers

    from offramp.models.weight_map import assign

    options = {"trust_remote_code": trust_remote_code}
    config = transformers.AutoConfig.from_pretrained(source.folder, local_files_only=True, **options)
    with torch.device("meta"):
        hf = auto_class_of(source).from_config(config, **options)
    expected = hf.state_dict()
    for step in assign(hf, read_headers(source.folder))[0]:
        (_, tensor), wanted = step.parts[0], tuple(expected[step.target].shape)
        if step.converter is None and tensor.shape != wanted:
            stored = list(tensor.shape)
            return f"{tensor.name} is {stored} in the weight files, and {list(wanted)} by config.json"
    return "tensors have other shapes in the weight files than by config.json"


def _check_no_strangers(stack: ExitStack, unexpected: set[str], where: str) -> None:
    """Refuse weights of layers that the model does not have. Raises ModelError."""
    path, layers = next(
        (path, module)
        for path, module in own_model(stack.hf).named_modules()
        if isinstance(module, nn.ModuleList) and stack.layers[0] in module
    )
    refuse_strangers(find_strangers(own_model(stack.hf), f"{path}.", len(layers), unexpected), where)
