"""GGUF files: checked, and turned into dense safetensors folders, which are cached.

A folder is written whole or not at all, and checked on reading.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import importlib.metadata
import json
import math
import os
import re
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from offramp.errors import DamagedFileError, InputError, ModelError, OfframpError
from offramp.files import (
    TEMPORARY_PREFIX,
    PathBelow,
    require_lock,
    sha256_of_file,
    sha256_of_text,
    sync_folder,
)
from offramp.kit.sealed_file import SealedFile
from offramp.models.checkpoint import AGAIN, StoredTensor
from offramp.models.gguf_header import ARRAY, SCALARS, STRING, GgufHeader, read_header
from offramp.models.gguf_metadata import check_all_read, check_split
from offramp.models.process import quiet_transformers

SOURCE_FILE = "source.json"
"""In a converted folder: what the GGUF file says beside the model, a JSON object."""


def write_description(path: Path, folder: Path) -> None:
    """Write what a GGUF file holds beside its weights into `folder`: config and tokenizer as transformers
    saves them, and the stated licence (SOURCE_FILE). No weight is read.

    Raises ModelError if the file is damaged, if transformers cannot read its architecture, or if its tensors
    have other names or shapes than the model's.
    """
    import torch
    import transformers

    header = read_header(path)
    check_split(header.values, path)
    auto_class: Any = transformers.AutoModelForCausalLM
    with quiet_transformers(), _refused_by_transformers(path), _read_quickly():
        config = transformers.AutoConfig.from_pretrained(path.parent, **_packed(path))
        check_all_read(header.values, header.tensors, header.architecture, config, path)
        with torch.device("meta"):
            hf = auto_class.from_config(config)
        if not _compared_at_load(header.architecture):
            _check_tensors(hf, header, path)
        _save_pretrained(hf, folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **_packed(path))
        tokenizer.save_pretrained(folder)
    text = json.dumps({"licence": header.licence})
    (folder / SOURCE_FILE).write_text(f"{text}\n", encoding="utf-8")


def _save_pretrained(hf: Any, folder: Path) -> None:
    """The configs that transformers saves beside the weights of a model, which here has none."""
    hf.config._name_or_path = ""
    hf.config.architectures = [type(hf).__name__]
    hf.config.save_pretrained(folder)
    if hf.can_generate():
        hf.generation_config.save_pretrained(folder)


def convert_to_safetensors(path: Path, folder: Path) -> None:
    """Write the model of a GGUF file into `folder` as transformers saves it, without its tokenizer.

    The weights are unpacked to float32, and kept in float16 or bfloat16 where every single one survives that
    unchanged. Raises ModelError if transformers cannot read the file, misses weights, has no place
    for some, or if one is not finite.
    """
    import torch
    import transformers

    from offramp.models.tensors import check_finite

    auto_class: Any = transformers.AutoModelForCausalLM
    options = {"dtype": torch.float32, "output_loading_info": True, "use_kernels": False}
    options |= _dequantize_option(path)
    with quiet_transformers():
        with _refused_by_transformers(path), _read_quickly():
            model, report = auto_class.from_pretrained(path.parent, **_packed(path), **options)
        _refuse(path, missing=report["missing_keys"], unread=report["unexpected_keys"])
        check_finite(model, str(path))
        for dtype in (torch.float16, torch.bfloat16):
            if all(torch.equal(tensor.to(dtype).float(), tensor) for tensor in model.parameters()):
                model.to(dtype)
                break
        model.config._name_or_path = ""
        model.save_pretrained(folder)


def _packed(path: Path) -> dict[str, Any]:
    return {"gguf_file": path.name, "local_files_only": True}


@contextmanager
def _read_quickly() -> Iterator[None]:
    """The gguf package makes arrays of each value of a header, which takes a minute for a large vocabulary.

    And transformers asks it for the names of all tensors once for each module of the model, which takes
    10 s for 30 layers, and draws a bar over the tensors, whether or not its bars are asked for."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    loader: Any = modeling_gguf_pytorch_utils
    package: Any = gguf
    reader: Any = gguf.GGUFReader
    bar, parts, names = loader.tqdm, reader._get_field_parts, package.get_tensor_name_map
    loader.tqdm = functools.partial(bar, disable=True)
    reader._get_field_parts = functools.partialmethod(_field_parts, parts)
    package.get_tensor_name_map = functools.cache(names)
    try:
        yield
    finally:
        loader.tqdm, reader._get_field_parts, package.get_tensor_name_map = bar, parts, names


def _field_parts(reader: Any, slow: Callable[..., Any], offset: int, kind: int) -> Any:
    """Size, parts, which of them are values, and types of a value of a header, as GGUFReader gives them."""
    if kind not in (STRING, ARRAY):
        return slow(reader, offset, kind)
    data, at = memoryview(reader.data), offset

    def text() -> bytes:
        nonlocal at
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + length
        return bytes(data[at - length : at])

    if kind == STRING:
        parts: list[Any] = [text()]
        return at - offset, parts, [0], [STRING]
    item, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if item == STRING:
        parts = [text() for _ in range(count)]
    else:
        form = f"<{SCALARS[item]}"
        end = at + count * struct.calcsize(form)
        parts, at = list(struct.iter_unpack(form, data[at:end])), end
    return at - offset, parts, list(range(count)), [ARRAY, item]


@contextmanager
def _refused_by_transformers(path: Path) -> Iterator[None]:
    try:
        yield
    except OfframpError:
        raise
    except Exception as error:  # tokenizers raises plain Exception, so nothing narrower will do
        raise ModelError(
            f"transformers cannot read this GGUF file: {type(error).__name__}: {error}",
            where=str(path),
            fix="use the same model as safetensors, or a GGUF of another architecture",
        ) from error


def _check_tensors(hf: Any, header: GgufHeader, path: Path) -> None:
    """Compare the file's tensors with those of the model that is to be filled, names and shapes, both ways.

    transformers makes up what is missing and passes over what it has no name for. Raises ModelError.
    """
    from transformers import modeling_gguf_pytorch_utils as loader

    processor: Any = loader.TENSOR_PROCESSORS.get(header.architecture, loader.TensorProcessor)
    names = loader.get_gguf_hf_weights_map(hf, processor(config=hf.config.to_dict()))
    parts: dict[str, list[StoredTensor]] = {}
    unread = []
    for name, tensor in header.tensors.items():
        # Merged experts are listed without their ending.
        own = names.get(name) or names.get(name.removesuffix(".weight"))
        if own is None:
            unread.append(name)
        else:
            parts.setdefault(own, []).append(tensor)
    needed = dict(hf.named_parameters())  # a tied one under its first name
    _refuse(path, missing=needed.keys() - parts.keys(), unread=unread)
    for name, weight in needed.items():
        if not _fits(parts[name], tuple(weight.shape), header.architecture):
            first = parts[name][0]
            raise ModelError(
                f"{first.name} is {list(first.shape)} in the GGUF file, and by its header {name} is "
                f"{list(weight.shape)}",
                where=str(path),
                fix=AGAIN,
            )


def _compared_at_load(architecture: str) -> bool:
    """Whether transformers loads every tensor of the file by a name, and so reports those without a place:
    newer ones do, for some architectures."""
    try:
        from transformers.integrations.gguf.utils import is_gguf_arch_supported
    except ImportError:
        return False
    return bool(is_gguf_arch_supported(architecture))


def _fits(parts: list[StoredTensor], shape: tuple[int, ...], architecture: str) -> bool:
    """Whether tensors of the file can make a weight: GPT-2's are transposed, some families' lack axes of one
    element, and several are merged; whether they do, transformers checks once they are unpacked."""
    if len(parts) > 1:
        return sum(part.elements for part in parts) == math.prod(shape)
    stored, made = ([axis for axis in axes if axis > 1] for axes in (parts[0].shape, shape))
    return stored == made or (architecture == "gpt2" and stored[::-1] == made)


def _refuse(path: Path, *, missing: Iterable[str], unread: Iterable[str]) -> None:
    """Raise ModelError if the file lacks weights of the model, or holds tensors that it does not read."""
    lacks = "the GGUF file lacks {} of the model's weights, the first is {}; they would be random"
    holds = (
        "transformers does not read {} of the GGUF file's tensors, the first is {}: without them the model "
    )
    holds += "is another one"
    for what, names in ((lacks, sorted(missing)), (holds, sorted(unread))):
        if names:
            raise ModelError(
                what.format(len(names), names[0]),
                where=str(path),
                fix="download the file again, or use the same model as safetensors",
            )


def _dequantize_option(path: Path) -> dict[str, Any]:
    """Ask transformers to unpack every weight: newer ones keep them packed unless told otherwise."""
    import transformers

    config_class = getattr(transformers, "GgufConfig", None)
    return {} if config_class is None else {"quantization_config": config_class(dequantize=True)}


CACHE_VARIABLE = "OFFRAMP_CACHE"
MANIFEST = "manifest.json"
DESCRIBED = "-described"
"""How a folder without the weights is called, after the name of the one with them."""


@dataclass(frozen=True)
class Converted:
    """What a converted folder holds: SHA-256 by file."""

    files: Mapping[PathBelow, str]
    source: str
    """The name of the GGUF file."""


_FILE = SealedFile(Converted, "{name}", "none is needed: it is converted again")
# Raise it when the converted folder's content changes: old folders are then left alone and new ones written.
FORMAT_VERSION = 2
LONGEST_CONVERSION = 1800.0
"""Seconds that another process is waited for."""

Convert = Callable[[Path, Path], None]


def cache_folder() -> Path:
    """The user cache directory for offramp, or what the environment variable OFFRAMP_CACHE names.

    Raises InputError for the home of a user who does not exist.
    """
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        try:
            return Path(chosen).expanduser()
        except RuntimeError as error:  # "~name" of nobody
            raise InputError(
                f"{error}", where=f"{CACHE_VARIABLE}={chosen}", fix="set it to a folder"
            ) from error
    import platformdirs

    return Path(platformdirs.user_cache_dir("offramp"))


def converted_models() -> list[Path]:
    """The folders of converted models and their descriptions in the cache: those that have the name and the
    manifest of one."""
    root = cache_folder() / "dense"
    entries = sorted(root.iterdir()) if root.is_dir() else []
    return [
        entry
        for entry in entries
        if re.fullmatch(rf"[0-9a-f]{{24}}-[0-9a-f]{{8}}({DESCRIBED})?", entry.name)
        and (entry / MANIFEST).is_file()
    ]


def dense_folder(source: Path, source_sha256: str, convert: Convert) -> Path:
    """The dense folder of a GGUF file, converted now if it is not there or no longer as it was written.

    source: the GGUF file; convert(source, folder) fills an empty folder. One process converts while others
    wait for it. A conversion that is killed leaves only a temporary folder, which the next one sweeps.

    Raises OfframpError if the disk is too small, with sizes; whatever `convert` raises, with nothing left
    behind.
    """
    return _cached(source, source_sha256, convert, f"converting {source.name} to safetensors, once")


def description_folder(source: Path, source_sha256: str) -> Path:
    """The same of what `write_description` writes, which takes seconds."""
    return _cached(source, source_sha256, write_description, f"reading {source.name}, once", DESCRIBED)


def _cached(source: Path, source_sha256: str, convert: Convert, said: str, ending: str = "") -> Path:
    root = cache_folder() / "dense"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "it may not be written", str(root))
    except OSError as error:
        raise InputError(
            f"the cache for converted models cannot be used: {error.strerror}",
            where=str(root),
            fix=f"set {CACHE_VARIABLE} to a folder that can be written",
        ) from error
    versions = f"{importlib.metadata.version('transformers')} {FORMAT_VERSION}"
    folder = root / f"{source_sha256[:24]}-{sha256_of_text(versions)[:8]}{ending}"
    with _only_one_process(root / f"{folder.name}.lock"):
        if folder.is_dir() and not folder.is_symlink():
            problem = find_damage(folder)
            if problem is None:
                return folder
            _say(f"the cached copy of {source.name} is damaged ({problem}); converting it again")
            shutil.rmtree(folder)
        else:
            folder.unlink(missing_ok=True)  # a link or a file of that name
            _say(f"{said}; kept in {root}")
        _sweep(root, folder.name)
        _convert_atomically(source, folder, convert)
    return folder


def _convert_atomically(source: Path, folder: Path, convert: Convert) -> None:
    from safetensors import SafetensorError

    temporary = folder.with_name(f"{TEMPORARY_PREFIX}{folder.name}-{os.getpid()}")
    temporary.mkdir()
    try:
        convert(source, temporary)
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        manifest = {path.relative_to(temporary).as_posix(): sha256_of_file(path) for path in files}
        _FILE.write(temporary / MANIFEST, Converted(manifest, source.name))
        for path in files:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(temporary)
        temporary.rename(folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        written = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
        free = shutil.disk_usage(folder.parent).free
        raise OfframpError(
            f"the converted model could not be written ({error}): {written:,} bytes were, {free:,} are free",
            where=str(folder.parent),
            fix=f"free some space, or set {CACHE_VARIABLE} to a folder on a larger disk",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def find_damage(folder: Path) -> str | None:
    """What differs from the manifest written with the folder, None if nothing does.

    A file that it does not list may be one that the tokenizer or the model would read.
    """
    try:
        files = _FILE.read(folder / MANIFEST).files
        for name, expected in files.items():
            if sha256_of_file(folder / name) != expected:
                return f"{name} changed"
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    except DamagedFileError as error:
        return error.what
    # A link to a folder counts as a file: what it leads to is read as part of the model.
    found = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    others = sorted({path.relative_to(folder).as_posix() for path in found} - {MANIFEST, *files})
    return f"{others[0]} was added" if others else None


def _sweep(root: Path, name: str) -> None:
    """Remove what killed conversions of this folder left. Called while holding its lock."""
    for leftover in root.glob(f"{TEMPORARY_PREFIX}{name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def _only_one_process(path: Path) -> Iterator[None]:
    """Wait until no other process holds the lock; the operating system frees it when a process ends.

    Raises OfframpError where one holds it for longer than any conversion takes; InputError for a file under
    that name that is no lock of ours.
    """
    began, told = time.monotonic(), False
    require_lock(path, lambda content: not content)
    with path.open("a") as file:
        while not _locked(file):
            if time.monotonic() - began >= LONGEST_CONVERSION:
                raise OfframpError(
                    "another process has been converting this model for "
                    f"{LONGEST_CONVERSION / 60:.0f} minutes",
                    where=str(path),
                    fix="end that process (it may be stopped), then run the same command again",
                )
            if not told:
                _say("another process is converting this model; waiting for it")
            told = True
            time.sleep(0.2)
        yield


def _locked(file: IO[str]) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _say(message: str) -> None:
    print(f"offramp: {message}", file=sys.stderr, flush=True)
