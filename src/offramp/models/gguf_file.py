"""One GGUF file: checking that it is whole, and turning it into a dense safetensors folder."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offramp.errors import ModelError
from offramp.models.quiet import TORCHAO_LOGGERS, quiet_loggers

MAGIC = b"GGUF"
# What the gguf package raises on a file whose header points outside it or makes no sense.
READER_ERRORS = (
    IndexError,
    KeyError,
    OverflowError,
    TypeError,
    UnicodeDecodeError,
    ValueError,
    struct.error,
    MemoryError,
    AttributeError,
)


def check_magic(path: Path) -> None:
    """Refuse a file that does not begin as a GGUF file does."""
    with path.open("rb") as file:
        start = file.read(len(MAGIC))
    if start != MAGIC:
        raise ModelError(
            f"the file does not begin with the letters GGUF (but with {start!r}), so it is not a GGUF file",
            where=str(path),
            fix="download the file again, and check that it is the model, not a pointer to it",
        )


def read_licence(path: Path) -> str | None:
    """Check a whole GGUF file's header and extents and return the licence it states, None if it states none.

    Raises ModelError without the gguf package, and for a file that is truncated or whose header is damaged.
    """
    require_gguf_package()
    from gguf import GGUFReader

    check_magic(path)
    size = path.stat().st_size
    try:
        reader = GGUFReader(path)
        ends = [int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors]
        field = reader.get_field("general.license")
        licence = None if field is None else str(field.contents())
    except READER_ERRORS as error:
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    if not ends:
        raise _damaged(path, "it holds no tensors")
    if max(ends) > size:
        raise _damaged(path, f"its tensors end at byte {max(ends):,}, the file at {size:,}")
    return licence


def _damaged(path: Path, detail: str) -> ModelError:
    return ModelError(
        f"the GGUF file is truncated or damaged ({detail})", where=str(path), fix="download the file again"
    )


def require_gguf_package() -> None:
    """Refuse with the name of the extra if a package that transformers reads GGUF files with is missing."""
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"reading a GGUF file needs the {missing[0]} package",
            where="offramp[gguf]",
            fix="pip install 'offramp[gguf]'",
        )


def convert_to_safetensors(path: Path, folder: Path) -> None:
    """Write a GGUF file as a dense model and its tokenizer into `folder`, as transformers saves them.

    The weights are unpacked to float32, and kept in float16 or bfloat16 where every single one survives that
    unchanged. Raises ModelError if transformers cannot read the file's architecture.
    """
    import torch
    import transformers
    from transformers import AutoTokenizer

    auto_class: Any = transformers.AutoModelForCausalLM
    packed: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    with quiet_transformers():
        try:
            model = auto_class.from_pretrained(
                path.parent, dtype=torch.float32, **packed, **_dequantize_option(path)
            )
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **packed)
        except Exception as error:  # tokenizers raises plain Exception, so nothing narrower will do
            raise ModelError(
                f"transformers cannot read this GGUF file: {type(error).__name__}: {error}",
                where=str(path),
                fix="use the same model as safetensors, or a GGUF of another architecture",
            ) from error
        for dtype in (torch.float16, torch.bfloat16):
            if all(torch.equal(tensor.to(dtype).float(), tensor) for tensor in model.parameters()):
                model.to(dtype)
                break
        model.config._name_or_path = ""
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _dequantize_option(path: Path) -> dict[str, Any]:
    """Ask transformers to unpack every weight: newer ones keep them packed unless told otherwise."""
    import transformers

    config_class = getattr(transformers, "GgufConfig", None)
    return {} if config_class is None else {"quantization_config": config_class(dequantize=True)}


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Run without transformers' progress bars and warnings, and those of torchao, which it may import."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with quiet_loggers(*TORCHAO_LOGGERS):
            yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
