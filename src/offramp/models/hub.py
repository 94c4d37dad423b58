"""Models from the Hugging Face Hub: only safetensors, config and tokenizer files are ever fetched."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from offramp.errors import ModelError
from offramp.models.checkpoint import check_no_remote_code, read_config
from offramp.models.registry import BUNDLED

HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[\w.\-]+)?")
SMALL_FILES = ["*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "README.md"]
REMOTE_CODE_FILES = ["*.py"]
WEIGHT_FILES = ["*.safetensors"]


@dataclass(frozen=True)
class Downloaded:
    """A snapshot of a Hub repository on this machine, and its commit."""

    folder: Path
    revision: str


def looks_like_hub_id(name: str) -> bool:
    """Whether a name could be a Hub id: "owner/name", or one word that is not a slip of a known name."""
    if HUB_ID.fullmatch(name) is None or name.count("/") > 1:
        return False
    return "/" in name or not _near_names(name)


def unknown_model(name: str) -> ModelError:
    """The error for a name that is neither bundled, nor a path, nor a Hub id; with near matches."""
    near = _near_names(name)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    return ModelError(
        f"unknown model {name!r}",
        where=str(Path.cwd()),
        fix=f"{meant}give a bundled model ({', '.join(BUNDLED)}), a folder, a .gguf file or a Hub id",
    )


def _near_names(name: str) -> list[str]:
    """Bundled names, and entries of the folder that the name points into, that are spelt alike."""
    parent = Path(name).expanduser().parent
    entries = sorted(os.listdir(parent)) if parent.is_dir() else []
    prefix = "" if str(parent) == "." else f"{parent}/"
    near = difflib.get_close_matches(name, list(BUNDLED), cutoff=0.6)
    return near + [
        prefix + entry for entry in difflib.get_close_matches(Path(name).name, entries, cutoff=0.7)
    ]


def download(name: str, *, trust_remote_code: bool) -> Downloaded:
    """Fetch a model's files, the config first, so that code to run is refused before any weight is fetched.

    Raises ModelError if the Hub cannot be reached or does not know the model.
    """
    folder = _fetch(name, SMALL_FILES)
    check_no_remote_code(read_config(folder), folder, trust_remote_code=trust_remote_code)
    folder = _fetch(name, SMALL_FILES + WEIGHT_FILES + (REMOTE_CODE_FILES if trust_remote_code else []))
    return Downloaded(folder, revision=folder.name)


def find_downloaded(name: str) -> Downloaded | None:
    """The newest snapshot of a Hub repository on this machine, None if there is none; asks no network.

    It may lack files: an earlier download may have been stopped.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return Downloaded(folder, revision=folder.name)


def _fetch(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        unknown = unknown_model(name)
        raise ModelError(
            f"the model {name!r} is not on this machine and could not be fetched from the Hub "
            f"({type(error).__name__})",
            where=f"https://huggingface.co/{name}",
            fix="check the name and the network; or download the model elsewhere "
            f"(hf download {name} --local-dir FOLDER) and give FOLDER. Otherwise: {unknown.fix}",
        ) from error
