"""A checkpoint folder on disk, its config and weight files: all that is refused before a weight is loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, MinLen

from offramp.errors import InputError, ModelError, refused_as
from offramp.files import PathBelow
from offramp.kit.given import Kind
from offramp.kit.rules import shown
from offramp.models.shape import DTYPES

PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CONVERT_TO_SAFETENSORS = (
    "convert it once, on a machine where you trust the file: load it with "
    "AutoModelForCausalLM.from_pretrained(folder) and save it as safetensors with save_pretrained(new_folder)"
)
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
AGAIN = "download the file again"
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation")


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a weight file, as its header names it."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _Index:
    """What is read of an index of weight files."""

    weight_map: Annotated[Mapping[str, PathBelow], MinLen(1)]
    """File names by tensor names."""
    metadata: Mapping[str, Any]
    """What transformers loads no shards without."""


def find_weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model: model.safetensors, else those that the index names.

    That is what transformers loads if there are both.

    Raises ModelError if there are none, if one is missing or outside, or if the index is damaged.
    """
    single, index = folder / SINGLE_FILE, folder / INDEX_FILE
    if single.is_file():
        return [single]
    if index.is_file():
        return _files_of_index(index)
    pickles = sorted(path.name for pattern in PICKLE_PATTERNS for path in folder.glob(pattern))
    if pickles:
        raise ModelError(
            f"the weights are pickle files ({', '.join(pickles[:3])}), which can run code on loading",
            where=str(folder),
            fix=CONVERT_TO_SAFETENSORS,
        )
    raise ModelError(
        f"the folder has no weights: neither {SINGLE_FILE} nor {INDEX_FILE}",
        where=str(folder),
        fix="download the model's .safetensors files into this folder",
    )


def _files_of_index(index: Path) -> list[Path]:
    names = set(_weight_map(index).values())
    missing = sorted(name for name in names if not (index.parent / name).is_file())
    if missing:
        raise ModelError(
            f"{len(missing)} of {len(names)} weight files are missing, the first is {missing[0]}",
            where=str(index.parent),
            fix="download the missing files; the index names them",
        )
    return [index.parent / name for name in sorted(names)]


def _weight_map(index: Path) -> dict[str, str]:
    """File names by tensor names, as an index lists them."""
    from offramp.kit.typed import read_record

    refused = _refused("the index of the weight files is damaged")
    return dict(read_record(index, _Index, refused, lenient=True).weight_map)


def _refused(what: str) -> Callable[[Path, ValueError], ModelError]:
    return lambda path, error: ModelError(f"{what}: {error}", where=str(path), fix=AGAIN)


def read_headers(folder: Path) -> dict[str, StoredTensor]:
    """Every tensor of a checkpoint folder, by name, from the headers of its weight files alone.

    Raises ModelError for files that are missing, damaged or truncated, for a tensor that lies in two of them,
    and for an index that names a tensor which none of them holds.
    """
    files = find_weight_files(folder)
    stored = stored_in(
        files, folder, "the files are not of one model: download them again, into an empty folder"
    )
    if files != [folder / SINGLE_FILE]:
        _check_index(folder / INDEX_FILE, stored)
    return stored


def stored_in(files: Iterable[Path], where: Path, fix: str) -> dict[str, StoredTensor]:
    """Every tensor of some safetensors files, by name, from their headers alone.

    where, fix: of files of which two have a tensor of one name. Raises ModelError for these, and for files
    that are damaged or truncated.
    """
    stored: dict[str, StoredTensor] = {}
    for path in files:
        for tensor in _read_header(path):
            first = stored.setdefault(tensor.name, tensor)
            if first is not tensor:
                raise ModelError(
                    f"the tensor {tensor.name} lies in two weight files, {first.file.name} and {path.name}",
                    where=str(where),
                    fix=fix,
                )
    return stored


def _read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one file; the shapes, types and offsets of its header must fill it exactly."""
    from offramp.kit.sealed_tensors import NoTensorsError, opened  # numpy comes with it

    try:
        with opened(path) as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
            tensors = [
                StoredTensor(name, path, part.get_dtype(), tuple(part.get_shape()))
                for name, part in parts.items()
            ]
    except NoTensorsError as error:
        size = f"{path} ({path.stat().st_size:,} bytes)"
        raise ModelError(f"the weight file is {error}", where=size, fix=AGAIN) from error
    except OSError as error:
        said = f"the weight file cannot be read: {error.strerror}"
        raise ModelError(said, where=str(path), fix="change its permissions") from error
    if not tensors:
        raise ModelError("the weight file holds no tensors", where=str(path), fix=AGAIN)
    return tensors


def _check_index(index: Path, stored: dict[str, StoredTensor]) -> None:
    listed = _weight_map(index)
    strayed = sorted(listed.keys() - stored.keys())
    if strayed:
        raise ModelError(
            f"the index names {len(strayed)} tensors that no weight file holds, the first is {strayed[0]}, "
            f"which should be in {listed[strayed[0]]}",
            where=str(index),
            fix="a file is of another model or another revision: download the index and all files together",
        )


CONFIG_FILE = "config.json"
GENERATION_FILE = "generation_config.json"
TOKEN_ID_KEYS = re.compile(
    r".*token_id|(begin_)?suppress_tokens|(bad|force)_words_ids|forced_decoder_ids|(lang|task)_to_id"
    r"|sequence_bias"
)
NONE_KEYS = ("pad_token_id", "eos_token_id", "suppress_tokens", "begin_suppress_tokens")
"""Where -1 is written for none."""
ADAPTER_FILE = "adapter_config.json"
MOST_COUNTED = 1_000_000
"""Heads, experts and such that a config.json may state: some are made one by one, whatever the weights."""
MOST_LABELS = 100_000
LONGEST_LIST = 10_000
"""Entries of a list in a config.json: real ones have one for each layer, or a few."""
# Layers that share weights are stored once: how many a stored one may stand for.
LAYERS_PER_STORED = 100
AXIS_KEYS = ("hidden_size", "n_embd", "d_model", "vocab_size")
"""Sizes that are an axis of a weight, whatever the family."""
HEAD_KEYS = ("num_attention_heads", "num_key_value_heads", "n_head")
"""By which widths are divided."""

# Names under which configs and modules state how many layers there are.
CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "context_length",
    "n_ctx",
)
LONGEST_CONTEXT = 10**9
TURNS = {
    **dict.fromkeys(("rope_theta", "rotary_emb_base", "rope_local_base_freq"), 1e12),
    **dict.fromkeys(("factor", "long_factor", "short_factor", "attention_factor"), 1e6),
    **dict.fromkeys(("low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow"), 1e6),
}
"""Numbers by which positions are turned, and their most: beyond it, or with 0, NaN or less, logits stay
finite, and are another model's."""
OTHER_WEIGHTS = "transformers_weights"
"""Names a file that transformers reads instead of `SINGLE_FILE`, which is checked, hashed and streamed."""
SWITCHES = ("is_encoder_decoder", "output_attentions", "output_hidden_states", "return_dict")
"""True or false for every family, which transformers does not check."""
# Of the two sides of an encoder-decoder, where they are stated apart.
TARGET_WINDOW_KEYS = ("max_target_positions", "max_decoder_position_embeddings")
SOURCE_WINDOW_KEYS = ("max_source_positions", "max_encoder_position_embeddings", "max_position_embeddings")
LAYER_COUNT_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers")
# Constants that GPT-Neo and its kin once stored with their weights.
OBSOLETE_CONSTANTS = (".masked_bias",)
OF_EVERY_TOKEN = re.compile(r"^(?!.*(vision|visual|image|audio)).*(embed|norm|pos|wpe|ln_)")
"""Names beside a model's layers of what every token passes through."""


SOURCES: dict[Kind | None, tuple[str, str]] = {
    None: ("none", ""),
    "text": ("a source", "pairs:FILE.jsonl#source,target, or generate with --source"),
    "audio": ("a sound", "audio:DIR or audio:FILE.jsonl, or generate with --audio"),
    "image": ("a picture", "images:FILE.jsonl, or generate with --image"),
}
"""By what an encoder reads: its name, and where it comes from."""

READERS: dict[Kind, str] = {
    "text": "an encoder-decoder",
    "audio": "a speech model",
    "image": "an image-text model",
}
"""Who reads it."""

PICTURED_KEYS = ("image_token_id", "image_token_index")
"""Entries of a config.json, beside a vision_config: the token that stands where a feature is to stand."""


def source_read(config: Mapping[str, Any]) -> Kind | None:
    """What a model reads beside texts that a config.json states; None for any but an encoder-decoder and an
    image-text model, and for one whose decoder was stored alone."""
    architectures = config.get("architectures") or []
    alone = any(str(name).endswith("ForCausalLM") for name in architectures)
    if alone:
        return None
    if config.get("is_encoder_decoder") is not True:
        sees = "vision_config" in config and any(key in config for key in PICTURED_KEYS)
        return "image" if sees else None
    return "audio" if config.get("model_type") == "whisper" else "text"


def fits_source(reads: Kind | None, given: Kind | None) -> bool:
    """Whether a document with this beside its text, or nothing, is one for a model that reads that: an
    image-text model takes texts alone, too."""
    return given == reads or (reads == "image" and given is None)


def unfit_source(name: str, *, reads: Kind | None, given: Kind | None, where: str) -> InputError:
    """The error for a document without what a model reads beside it, and the other way round."""
    here = SOURCES[given][0]
    if reads:
        read, grammar = SOURCES[reads]
        what = f"{name} is {READERS[reads]}: it reads {read} beside each text, and here is {here}"
        fix = f"name a workload with such, {grammar}"
    else:
        reader = READERS[given or "text"]
        what = f"there is {here} beside the text, and {name} reads none: it is not {reader}"
        fix = f"name a workload of texts, such as jsonl:FILE.jsonl#field, or {reader}"
    return InputError(what, where=where, fix=fix)


def check_checkpoint(folder: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Check a model folder and return its config.json.

    Raises ModelError for a folder without config.json, with an adapter, with code to run, with only pickle
    weights, with safetensors files that are missing, truncated, whose header is damaged or that are not of
    one model, or with a config that states sizes which the weights cannot have.
    """
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ModelError(
                f"{path.name} in the model's folder is a device, a pipe or a socket",
                where=str(path),
                fix="put the file itself there",
            )
    if (folder / ADAPTER_FILE).exists():  # applied by transformers, by offramp's own reading not
        raise ModelError(
            f"the folder holds an adapter ({ADAPTER_FILE}), which is no part of a model's own files",
            where=str(folder / ADAPTER_FILE),
            fix="merge it into the model (PEFT's merge_and_unload, then save_pretrained), or take it out",
        )
    config = read_config(folder)
    check_no_remote_code(config, folder, trust_remote_code=trust_remote_code)
    check_sizes(config, read_headers(folder), folder / CONFIG_FILE)
    return config


def check_sizes(config: Mapping[str, Any], stored: Mapping[str, StoredTensor], path: Path) -> None:
    """Hold the sizes that a config.json states against the stored tensors, before anything is built of them.

    Raises ModelError for many times more layers than are stored, a size that is longer than any axis, a list
    that is longer than LONGEST_LIST, a context or window without positions, positions that nothing turns, an
    epsilon beyond 1, a switch that is not true or false, and weights in a file of another name. The configs
    of the model's parts count as its own.
    """
    parts = [part for name in stored for part in name.split(".")]
    last = max((int(part) for part in parts if part.isdecimal() and len(part) < 10), default=0)
    longest = max((axis for tensor in stored.values() for axis in tensor.shape), default=0)
    for name, part in _configs_in(config):
        for key, value in _turns(part):
            if not 0 < value <= TURNS[key]:
                said = f"config.json states {name}{key} = {value:g}, by which no position can be turned"
                raise ModelError(said, where=str(path), fix=AGAIN)
        for key, value in part.items():
            if key == OTHER_WEIGHTS and value is not None:
                said = f"config.json names weights of its own, {name}{key} = {shown(value)}"
                raise ModelError(
                    said, where=str(path), fix=f"rename that file to {SINGLE_FILE}, and leave {key} out"
                )
            kernels = value.values() if isinstance(value, dict) else (value,)
            for one in kernels if key in (*SWITCHES, *ATTENTION_KEYS) else ():
                kind, wanted = (bool, "true or false") if key in SWITCHES else (str, "a text")
                if one is not None and not isinstance(one, kind):
                    said = f"config.json states {name}{key} = {shown(one)}, not {wanted}"
                    raise ModelError(said, where=str(path), fix=AGAIN)
            if re.search(r"(^|_)eps(ilon)?$", key) and isinstance(value, int | float) and not 0 <= value <= 1:
                said = f"config.json states {name}{key} = {value:g}, which is not 0 to 1"
                raise ModelError(said, where=str(path), fix=AGAIN)
            if isinstance(value, list) and len(value) > LONGEST_LIST:
                raise ModelError(
                    f"config.json lists {len(value):,} entries under {name}{key}, as no model's does",
                    where=str(path),
                    fix=AGAIN,
                )
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            stated = f"{name}{key} = {value:,}"
            if key in CONTEXT_KEYS and not 1 <= value <= LONGEST_CONTEXT:
                said = f"config.json states {stated}, which is not 1 to {LONGEST_CONTEXT:,} positions"
                raise ModelError(said, where=str(path), fix=AGAIN)
            if key == "sliding_window" and value < 1 and part.get("use_sliding_window") is not False:
                said = f"config.json states {stated}, in which no position is (for no window, write null)"
                raise ModelError(said, where=str(path), fix=AGAIN)
            if key in (*LAYER_COUNT_KEYS, *AXIS_KEYS, *HEAD_KEYS) and value < 1:
                raise _other_size(stated, f"{len(stored):,} tensors", path)
            if re.search(r"layers?$", key) and value > LAYERS_PER_STORED * (1 + last):
                raise _other_size(stated, f"{len(stored):,} tensors, numbered up to {last:,}", path)
            if key.startswith("num_") and value > (MOST_LABELS if key == "num_labels" else MOST_COUNTED):
                raise _other_size(stated, "nothing of that number", path)
            if key in AXIS_KEYS and value > longest:
                raise _other_size(stated, f"no tensor with an axis longer than {longest:,}", path)


def _configs_in(config: Mapping[str, Any], name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """A config and those of the model's parts within it, each with what stands in front of its keys."""
    yield name, config
    for key, value in config.items():
        if isinstance(value, dict) and (key.endswith("_config") or key in ("encoder", "decoder")):
            yield from _configs_in(value, f"{name}{key}.")


def _turns(part: Mapping[str, Any], *, inside: bool = False) -> Iterator[tuple[str, float]]:
    """The numbers by which a config turns positions: at its top, or in parts for layers of each kind.

    inside: whether it is such a part.
    """
    for key, value in part.items():
        if isinstance(value, dict) and (inside or key.startswith("rope_")):
            yield from _turns(value, inside=True)
        elif key in TURNS:
            numbers = value if isinstance(value, list) else [value]
            yield from ((key, one) for one in numbers if type(one) in (int, float))


def _other_size(stated: str, held: str, path: Path) -> ModelError:
    return ModelError(
        f"config.json states {stated}, but the weight files hold {held}",
        where=str(path),
        fix="put the config.json and the weight files of one and the same model into the folder",
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json as a dict."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        packed = sorted(folder.glob("*.gguf"))
        raise ModelError(
            "the folder has no config.json, so it is not a model",
            where=str(folder),
            fix=f"give the file itself: {packed[0]}"
            if packed
            else "give the folder that holds config.json, the tokenizer and the .safetensors files",
        )
    from offramp.kit.typed import read_record

    config = read_record(path, dict[str, Any], _refused("config.json cannot be read"), lenient=True)
    if not isinstance(config.get("text_config") or {}, dict):
        raise ModelError("text_config in config.json is no object", where=str(path), fix=AGAIN)
    return config


def stored_dtype(folder: Path) -> str:
    """The dtype that a checkpoint's config states, float32 where that is none that models are loaded in."""
    config = read_config(folder)
    parts = (config, config.get("text_config") or {})
    stated = [part.get(key) for part in parts for key in ("dtype", "torch_dtype")]
    return next((str(dtype) for dtype in stated if dtype in DTYPES), "float32")


def stated_layers(config: Mapping[str, Any]) -> int | None:
    """How many layers a config.json states, None if it does not say."""
    return stated_count(config, LAYER_COUNT_KEYS)


def stated_count(config: Mapping[str, Any], keys: Iterable[str]) -> int | None:
    """The first whole number that a config.json states under one of some keys, its text part first."""
    keys, text = tuple(keys), config.get("text_config")
    stated = [part[key] for part in (text or {}, config) for key in keys if part.get(key)]
    return next((count for count in stated if isinstance(count, int)), None)


def check_no_remote_code(config: dict[str, Any], folder: Path, *, trust_remote_code: bool) -> None:
    """Refuse a config that names code to run (`auto_map`, or an attention kernel of the Hub), at any depth,
    unless asked for."""
    if trust_remote_code:
        return
    if any(_stated_under(config, ["auto_map"])):
        raise remote_code(folder / CONFIG_FILE)
    if any("/" in str(kernel) for kernel in _stated_under(config, ATTENTION_KEYS)):  # names a repository
        raise remote_code(folder / CONFIG_FILE, "a kernel of the Hub for attention (attn_implementation)")


def remote_code(file: Path, code: str = "Python code that comes with the model (auto_map)") -> ModelError:
    """The error for a file that names code to run, where nobody said that it is trusted."""
    return ModelError(
        f"{file.name} asks to run {code}",
        where=str(file),
        fix="read that code; if you trust it, pass trust_remote_code=True (--trust-remote-code)",
    )


def _stated_under(value: Any, keys: Collection[str]) -> Iterator[Any]:
    """What stands under some keys, at any depth."""
    if isinstance(value, dict):
        yield from (value[key] for key in keys if key in value)
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _stated_under(item, keys)


def find_strangers(hf: Any, prefix: str, layers: int, unexpected: Iterable[str]) -> list[str]:
    """Tensors of a checkpoint that its model computed with and this one has no place for, sorted.

    They belong to a layer, to a module that has weights here (the head's bias), or to an embedding or a norm
    beside the layers.

    prefix: what the names of the layers' tensors begin with, before the layer's number. layers: how many the
    model has. unexpected: all stored tensors that the model lacks, by the model's names for them.

    Left out are announced layers that predict tokens further ahead, which are numbered after the model's own
    and which transformers does not build, and constants that the model computes itself.
    """
    ahead = getattr(hf.config.get_text_config(), "num_nextn_predict_layers", None) or 0
    announced = tuple(f"{prefix}{layers + number}." for number in range(ahead))
    computed = {name for name, _ in hf.named_buffers()}
    weighted = {name.rpartition(".")[0] for name, _ in hf.named_parameters(remove_duplicate=False)}
    around = prefix.removesuffix(".").rpartition(".")[0]

    def takes_part(name: str) -> bool:
        module, beside = name.rpartition(".")[0], name.removeprefix(f"{around}.").split(".")
        return (
            name.startswith(prefix)
            or module in weighted
            or (module == f"{around}.{beside[0]}" and OF_EVERY_TOKEN.search(beside[0]) is not None)
        )

    return sorted(
        name
        for name in unexpected
        if takes_part(name) and not name.startswith(announced)
        if name not in computed and not name.endswith(OBSOLETE_CONSTANTS)
    )


def refuse_strangers(strangers: list[str], where: str) -> None:
    """Raise ModelError if there are any of `find_strangers`: without them the model is another one."""
    if strangers:
        raise ModelError(
            f"the weight files hold {len(strangers)} tensors that the model in config.json does not have, "
            f"the first is {strangers[0]}",
            where=where,
            fix="put the config.json and the weight files of one and the same model into the folder; heads "
            "for exits belong into a file of their own",
        )


@dataclass(frozen=True)
class _Generation:
    """What a generation_config.json may state that transformers looks at once it generates."""

    repetition_penalty: Annotated[float, Gt(0)] | None = None
    forced_decoder_ids: Sequence[tuple[int, int | None]] | None = None
    sequence_bias: Annotated[Sequence[tuple[Sequence[int], float]], MinLen(1)] | None = None
    stop_strings: Annotated[Sequence[Annotated[str, MinLen(1)]], MinLen(1)] | None = None
    """A single one may stand without a list."""


def check_generation(stated: Mapping[str, Any], rows: int, path: Path) -> None:
    """Refuse a generation_config.json with a token id beyond the vocabulary, or by which nothing can be
    generated. rows: of the embedding."""
    from offramp.kit.typed import InvalidRecordError, from_json

    own, stops = "copy the file of the original model into the folder", stated.get("stop_strings")
    with refused_as(ModelError, f"{path.name} cannot be used", InvalidRecordError, where=str(path), fix=own):
        from_json(_Generation, {**stated, "stop_strings": [stops] if isinstance(stops, str) else stops})
    pairs = {"forced_decoder_ids": slice(1, None), "sequence_bias": slice(1)}
    for key, value in stated.items():
        if not TOKEN_ID_KEYS.fullmatch(key):
            continue
        ids = list(_ids_in([pair[pairs[key]] for pair in value] if key in pairs and value else value))
        least = -1 if key in NONE_KEYS else 0
        other = [one for one in ids if type(one) is not int or not least <= one < rows]
        if other or (key == "suppress_tokens" and len({*ids} - {-1}) >= rows):
            what = f"has {shown(other[0])}" if other else "leaves no token"
            raise ModelError(
                f"{key} in {path.name} {what}, and the ids of tokens are 0 to {rows - 1:,}",
                where=str(path),
                fix=own,
            )


def _ids_in(value: Any) -> Iterator[Any]:
    """What stands in a value, in lists of lists, and by name."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _ids_in(item)
    elif value is not None:
        yield value


def check_vocabulary(tokenizer: Any, config: Any, folder: Path) -> None:
    """Refuse a tokenizer whose vocabulary is larger than the model's embedding.

    Special tokens beyond it do not count: many checkpoints, and transformers itself for a GGUF file,
    add an unused padding or unknown token. `Model.encode` refuses a text that needs one.
    """
    longest = tokenizer.model_max_length
    if isinstance(longest, bool) or not isinstance(longest, int | float):
        raise ModelError(
            f"model_max_length is {longest!r}, not a number",
            where=str(folder / "tokenizer_config.json"),
            fix=AGAIN,
        )
    text = config.get_text_config()
    if isinstance(text, dict):  # of a family that has none, so that transformers keeps it as it stands
        what = f"config.json states a text_config, which a model of the type {config.model_type} has not"
        raise ModelError(what, where=str(folder / "config.json"), fix=AGAIN)
    rows = text.vocab_size
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    largest = max(set(tokenizer.get_vocab().values()) - special, default=-1)
    if largest >= rows:
        raise ModelError(
            f"the tokenizer knows token ids up to {largest:,}, the model's embedding has {rows:,} rows: "
            "they are not of the same model",
            where=str(folder),
            fix="put the tokenizer files that belong to this model into the folder",
        )
