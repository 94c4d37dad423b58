"""Where text comes from: packages that are here, each with its licence, and what its text is like.

Debian's packages are read from folders that hold a `usr`: the machine's own, or one that packages were
unpacked into (`apt-get download perl-doc; dpkg -x perl-doc_*.deb FOLDER`).
"""

from __future__ import annotations

import gzip
import importlib.metadata
import importlib.util
import platform
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.errors import InputError
from offramp.lab.text.roff import plain_text
from offramp.lab.text.work import Kind, Work
from offramp.workloads.standard_library import LICENCE as PSF
from offramp.workloads.standard_library import library_files, load_prose
from offramp.workloads.text_files import read_text
from offramp.workloads.workload import Document

SHORTEST = 300
"""Characters of a document; a shorter one is no text to learn from."""

REASONING_SEED = 20261128
REASONING_ITEMS = 300
REASONING_FAMILIES = (
    "basic_arithmetic", "caesar_cipher", "calendar_arithmetic", "chain_sum", "coin_flip", "count_primes",
    "family_relationships", "fraction_simplification", "gcd", "gsm_symbolic", "knights_knaves", "lcm",
    "leg_counting", "letter_counting", "number_sequence", "number_sorting", "prime_factorization",
    "simple_equations", "spell_backward", "syllogism", "time_intervals", "word_sequence_reversal",
    "word_sorting",
)  # fmt: skip


@dataclass(frozen=True)
class Found:
    """What a source gave. version: of the package it is in, with what else decides its text."""

    version: str
    works: tuple[Work, ...]


@dataclass(frozen=True)
class Source:
    """One source of text.

    find: what there is of it in these folders, None if it is not here. version: of what there is, without
    reading it. fix: how it is had if it is not here. limits: what must be said of models that are trained on
    it, "" for nothing.
    """

    name: str
    kind: Kind
    licence: str
    find: Callable[[Sequence[Path]], Found | None]
    version: Callable[[Sequence[Path]], str | None]
    fix: str = ""
    limits: str = ""


def python_version(folders: Sequence[Path]) -> str:
    """Of the running Python."""
    return f"Python {platform.python_version()}"


def standard_library(folders: Sequence[Path]) -> Found | None:
    """The library's sources, a work for each top package or module."""
    works: dict[str, list[Document]] = {}
    for file, path in library_files():
        works.setdefault(file.partition("/")[0].removesuffix(".py"), []).append(
            Document(f"standard-library:{file}", read_text(path))
        )
    found = (_work("standard-library", name, "code", documents) for name, documents in works.items())
    return Found(python_version(folders), tuple(one for one in found if one.documents))


def python_reference(folders: Sequence[Path]) -> Found | None:
    """The topics of the language reference, each a work."""
    works = (
        _work("python-reference", one.id, "prose", [Document(f"python-reference:{one.id}", one.text)])
        for one in load_prose().documents
    )
    return Found(python_version(folders), tuple(works))


def reasoning_version(folders: Sequence[Path]) -> str | None:
    """Of reasoning-gym, and the seed of its questions; None if it is not installed."""
    if importlib.util.find_spec("reasoning_gym") is None:
        return None
    return f"{importlib.metadata.version('reasoning_gym')}, seed {REASONING_SEED}"


def reasoning(folders: Sequence[Path]) -> Found | None:
    """Questions and answers of reasoning-gym, each family a work."""
    version = reasoning_version(folders)
    if version is None:
        return None
    import reasoning_gym

    works = []
    for family in REASONING_FAMILIES:
        items = reasoning_gym.create_dataset(family, size=REASONING_ITEMS, seed=REASONING_SEED)
        texts = [f"{item['question']}\n{item['answer']}\n" for item in items]
        # Ten to a document: alone they are too short to tell what a text is like.
        documents = [
            Document(f"reasoning-gym:{family}-{start // 10}", "\n".join(texts[start : start + 10]))
            for start in range(0, len(texts), 10)
        ]
        works.append(_work("reasoning-gym", family, "reasoning", documents))
    return Found(version, tuple(works))


def debian_files(
    package: str, kind: Kind, patterns: Sequence[str], read: Callable[[str], str] = str
) -> Callable[[Sequence[Path]], Found | None]:
    """A finder of the files of a Debian package, each a work; `read` makes text of what a file holds."""

    def find(folders: Sequence[Path]) -> Found | None:
        for folder in folders:
            version = _debian_version(folder, package)
            if version is None:
                continue
            # Of a file that is there under several names, as Perl's versions are, one.
            found = {path.resolve() for pattern in patterns for path in folder.glob(pattern)}
            paths = sorted(path for path in found if path.is_file())
            works = [
                _work(package, name, kind, [Document(f"{package}:{name}", read(_decompressed(path)))])
                for name, path in ((_stem(path), path) for path in paths)
            ]
            if kept := tuple(work for work in works if work.documents):
                return Found(version, kept)
        return None

    return find


def manual_pages(folders: Sequence[Path]) -> Found | None:
    """The pages of the packages manpages and manpages-dev, by the system's list of their files."""
    for folder in folders:
        works: dict[str, Work] = {}
        for package in ("manpages", "manpages-dev"):
            for path in _listed_files(folder, package):
                if re.fullmatch(r"usr/share/man/man\d/[^/]+\.gz", path) and (folder / path).is_file():
                    name = _stem(folder / path)
                    text = plain_text(_decompressed(folder / path))
                    works[name] = _work("manpages", name, "manual", [Document(f"manpages:{name}", text)])
        if kept := tuple(works[name] for name in sorted(works) if works[name].documents):
            return Found(_debian_version(folder, "manpages") or "unknown", kept)
    return None


def _work(source: str, name: str, kind: Kind, documents: Sequence[Document]) -> Work:
    """A work of those documents that are long enough."""
    return Work(source, name, kind, tuple(one for one in documents if len(one.text) >= SHORTEST))


def _listed_files(folder: Path, package: str) -> Iterator[str]:
    """The files of an installed Debian package, relative to the folder."""
    listed = folder / "var/lib/dpkg/info" / f"{package}.list"
    if listed.is_file():
        yield from (line.removeprefix("/") for line in listed.read_text(encoding="utf-8").splitlines())


def _debian_version(folder: Path, package: str) -> str | None:
    """Of the package's own list of changes; None if it is not there."""
    for name in ("changelog.Debian.gz", "changelog.gz"):
        path = folder / "usr/share/doc" / package / name
        if path.is_file() and (found := re.match(r"\S+ \(([^)]+)\)", _decompressed(path))):
            return found[1]
    return None


def debian_version(package: str) -> Callable[[Sequence[Path]], str | None]:
    """A finder of the version of a Debian package that is in one of the folders."""

    def find(folders: Sequence[Path]) -> str | None:
        versions = (_debian_version(folder, package) for folder in folders)
        return next((one for one in versions if one is not None), None)

    return find


def _stem(path: Path) -> str:
    """A file's name without the endings that say how it is packed."""
    return re.sub(r"\.(gz|md|pod|txt)\b", "", path.name)


def _decompressed(path: Path) -> str:
    """The text of a file; bytes that are no UTF-8 are left out."""
    content = path.read_bytes()
    try:
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"the compressed file is cut off or damaged: {error}",
            where=str(path),
            fix="install or unpack its package again, or remove the file",
        ) from error
    return content.decode("utf-8", errors="ignore").replace("\0", "")


def _apt(package: str) -> str:
    return f"apt-get install {package}, or unpack it (apt-get download, dpkg -x) and name the folder"


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("standard-library", "code", PSF, standard_library, python_version),
        Source("python-reference", "prose", PSF, python_reference, python_version),
        Source(
            "anarchism",
            "prose",
            "GPL-2",
            debian_files("anarchism", "prose", ["usr/share/doc/anarchism/markdown/*.md*"]),
            debian_version("anarchism"),
            _apt("anarchism"),
            "essays of a few authors in one voice and of one conviction: prose here is mostly theirs",
        ),
        Source(
            "debian-faq",
            "prose",
            "copyleft of its own (the file copyright of the package)",
            debian_files("debian-faq", "prose", ["usr/share/doc/debian/FAQ/debian-faq.en.txt*"]),
            debian_version("debian-faq"),
            _apt("debian-faq"),
        ),
        Source(
            "perl-doc",
            "manual",
            "GPL-1+ or Artistic",
            debian_files("perl-doc", "manual", ["usr/share/perl/*/pod/*.pod"]),
            debian_version("perl-doc"),
            _apt("perl-doc"),
        ),
        Source(
            "manpages",
            "manual",
            "several free licences, named in each page's source",
            manual_pages,
            debian_version("manpages"),
            "apt-get install manpages manpages-dev",
        ),
        Source(
            "reasoning-gym",
            "reasoning",
            "Apache-2.0",
            reasoning,
            reasoning_version,
            "pip install 'offramp[math]'",
            "questions of a few templates each",
        ),
    )
}
"""By name, in the order in which they are gathered."""
