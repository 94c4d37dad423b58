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
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from offramp import Document, InputError, load_workload

NaturalKind = Literal["prose", "manual", "code", "reasoning"]
"""Of text: what is written to be read, to be looked up, to be run; puzzles of a package."""

NATURAL: tuple[NaturalKind, ...] = get_args(NaturalKind)

Part = Literal["train", "validation", "report"]
"""What weights are fitted on; what tells how training goes; what nothing is looked at before the end."""

PARTS: tuple[Part, ...] = get_args(Part)

SHORTEST = 300
"""Characters of a document; a shorter one is no text to learn from."""

LEFT_OUT = frozenset(
    {"antigravity", "this", "encodings", "pydoc_data", "test", "ensurepip", "distutils", "lib2to3"}
    | {"idlelib", "tkinter", "turtle", "turtledemo"}
)
"""Of the standard library: jokes, tables, copies of other text, tests, and what is shipped apart."""

PSF = "PSF-2.0"
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
class Work:
    """A package of a library, a chapter of a book, a manual page: documents that go to one part together.

    name: unique within its source. documents: their ids are unique within the text. part: where it must go,
    None if that is dealt.
    """

    source: str
    name: str
    kind: NaturalKind
    documents: tuple[Document, ...]
    part: Part | None = None

    @property
    def id(self) -> str:
        """Unique within the text: standard-library:email."""
        return f"{self.source}:{self.name}"

    @property
    def characters(self) -> int:
        """Of all its documents."""
        return sum(len(document.text) for document in self.documents)


@dataclass(frozen=True)
class Found:
    """What a source gave. version: of the package it is in, with what else decides its text."""

    version: str
    works: tuple[Work, ...]


@dataclass(frozen=True)
class Source:
    """One source of text.

    find: what there is of it in these folders, None if it is not here. fix: how it is had then. limits: what
    must be said of models that are trained on it, "" for nothing.
    """

    name: str
    kind: NaturalKind
    licence: str
    find: Callable[[Sequence[Path]], Found | None]
    fix: str = ""
    limits: str = ""


def work_of(source: str, name: str, kind: NaturalKind, documents: Sequence[Document]) -> Work:
    """A work of those documents that are long enough."""
    return Work(
        source, name, kind, tuple(document for document in documents if len(document.text) >= SHORTEST)
    )


def standard_library(folders: Sequence[Path]) -> Found | None:
    """The sources of the running Python's library, a work for each top package or module."""
    works: dict[str, list[Document]] = {}
    for file, path in _library_files():
        text = path.read_bytes().decode("utf-8-sig")
        works.setdefault(file.partition("/")[0].removesuffix(".py"), []).append(
            Document(f"standard-library:{file}", text)
        )
    found = (work_of("standard-library", name, "code", documents) for name, documents in works.items())
    return Found(f"Python {platform.python_version()}", tuple(work for work in found if work.documents))


def _library_files() -> Iterator[tuple[str, Path]]:
    """Source files with their names in the library, sorted; those that this Python lacks are passed over."""
    folder = Path(sysconfig.get_path("stdlib"))
    for module in sorted(sys.stdlib_module_names - LEFT_OUT):
        package = folder / module
        for path in sorted(package.rglob("*.py")) if package.is_dir() else [folder / f"{module}.py"]:
            inside = path.relative_to(folder)
            if path.is_file() and path.stat().st_size and not {"test", "tests"} & set(inside.parts):
                yield inside.as_posix(), path


def python_reference(folders: Sequence[Path]) -> Found | None:
    """The topics of the language reference, each a work."""
    works = (
        work_of("python-reference", topic.id, "prose", [Document(f"python-reference:{topic.id}", topic.text)])
        for topic in load_workload("prose").documents
    )
    return Found(f"Python {platform.python_version()}", tuple(works))


def reasoning(folders: Sequence[Path]) -> Found | None:
    """Questions and answers of reasoning-gym, each family a work."""
    if importlib.util.find_spec("reasoning_gym") is None:
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
        works.append(work_of("reasoning-gym", family, "reasoning", documents))
    version = f"{importlib.metadata.version('reasoning_gym')}, seed {REASONING_SEED}"
    return Found(version, tuple(works))


def debian_files(package: str, kind: NaturalKind, pattern: str) -> Callable[[Sequence[Path]], Found | None]:
    """A finder of the files of a Debian package, each a work."""

    def find(folders: Sequence[Path]) -> Found | None:
        for folder in folders:
            version = _debian_version(folder, package)
            if version is None:
                continue
            # Of a file that is there under several names, as Perl's versions are, one.
            paths = sorted(
                path for path in {path.resolve() for path in folder.glob(pattern)} if path.is_file()
            )
            works = [
                work_of(
                    package, _stem(path), kind, [Document(f"{package}:{_stem(path)}", _decompressed(path))]
                )
                for path in paths
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
            listed = folder / "var/lib/dpkg/info" / f"{package}.list"
            names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else ()
            for path in (folder / name.removeprefix("/") for name in names):
                if re.search(r"usr/share/man/man\d/[^/]+\.gz$", str(path)) and path.is_file():
                    name, text = _stem(path), plain_text(_decompressed(path))
                    works[name] = work_of("manpages", name, "manual", [Document(f"manpages:{name}", text)])
        if kept := tuple(works[name] for name in sorted(works) if works[name].documents):
            return Found(_debian_version(folder, "manpages") or "unknown", kept)
    return None


def _debian_version(folder: Path, package: str) -> str | None:
    """Of the package's own list of changes; None if it is not there."""
    for name in ("changelog.Debian.gz", "changelog.gz"):
        path = folder / "usr/share/doc" / package / name
        if path.is_file() and (found := re.match(r"\S+ \(([^)]+)\)", _decompressed(path))):
            return found[1]
    return None


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


SPECIAL = {
    "em": " - ", "en": "-", "aq": "'", "dq": '"', "rs": "\\", "bu": "*", "co": "(C)", "lq": '"', "rq": '"',
    "oq": "'", "cq": "'", "ti": "~", "ha": "^", "mu": "x", "+-": "+-", ">=": ">=", "<=": "<=", "->": "->",
    "Fo": '"', "Fc": '"', "ga": "`", "lB": "[", "rB": "]", "lC": "{", "rC": "}", "hy": "-", "mi": "-",
}  # fmt: skip
"""Of groff_char(7), those that occur."""

# What is not closed stays as it is, as when the published text was made. Its end is looked for so far only:
# from each beginning to the end of the line would take the square of a line's length.
_SPECIAL = re.compile(r"\\\[([^\]]{0,400})\]|\\\((..)|\\\*\[[^\]]{0,400}\]|\\\*\(..|\\\*.")
_FONT = re.compile(
    r"\\f(?:\[[^\]]{0,400}\]|\(..|.)|\\s(?:[+-]?\d|\[[^\]]{0,400}\])|\\[%&|^/,c]|\\[hvwlLD]'[^']{0,400}'"
)
_SHOWN = re.compile(r"^\.\s*(?:SH|SS|B|I|BR|BI|IB|IR|RB|RI|SM|SB|TP|IP|MR|UR|UE|TQ)\b ?(.*)$")
_ALTERNATING = re.compile(r"^\.\s*(?:BR|BI|IB|IR|RB|RI|MR)\b")
_QUOTED = re.compile(r'"((?:[^"]|""){0,400})"|(\S+)')
_PARAGRAPH = re.compile(r"^\.\s*(?:PP|P|LP|SH|SS|TP|IP|TQ|sp)\b")


def plain_text(page: str) -> str:
    """What a reader sees of a manual page in man(7), well enough to learn from.

    "" for a page that only sends the reader to another (`.so`).
    """
    if re.search(r"^\.so ", page, flags=re.MULTILINE):
        return ""
    lines: list[str] = []
    for line in page.splitlines():
        if line.startswith(('.\\"', "'\\\"")):
            continue
        if _PARAGRAPH.match(line):
            lines.append("")
        if not line.startswith((".", "'")):
            lines.append(_plain(re.sub(r'\\".*$', "", line)))
        elif shown := _SHOWN.match(line):
            words = [quoted or word for quoted, word in _QUOTED.findall(shown[1])]
            lines.append(_plain(("" if _ALTERNATING.match(line) else " ").join(words)))
    text = "\n".join(line.rstrip() for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _plain(line: str) -> str:
    """A line without fonts and with plain characters in the place of special ones."""
    line = _FONT.sub("", line)
    line = _SPECIAL.sub(lambda found: SPECIAL.get(found[1] or found[2] or "", ""), line)
    for written, read in (("\\-", "-"), ("\\~", " "), ("\\ ", " "), ("\\e", "\\"), ("\\0", " ")):
        line = line.replace(written, read)
    return line


def _apt(package: str) -> str:
    return f"apt-get install {package}, or unpack it (apt-get download, dpkg -x) and name the folder"


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("standard-library", "code", PSF, standard_library),
        Source("python-reference", "prose", PSF, python_reference),
        Source(
            "anarchism",
            "prose",
            "GPL-2",
            debian_files("anarchism", "prose", "usr/share/doc/anarchism/markdown/*.md*"),
            _apt("anarchism"),
            "essays of a few authors in one voice and of one conviction: prose here is mostly theirs",
        ),
        Source(
            "debian-faq",
            "prose",
            "copyleft of its own (the file copyright of the package)",
            debian_files("debian-faq", "prose", "usr/share/doc/debian/FAQ/debian-faq.en.txt*"),
            _apt("debian-faq"),
        ),
        Source(
            "perl-doc",
            "manual",
            "GPL-1+ or Artistic",
            debian_files("perl-doc", "manual", "usr/share/perl/*/pod/*.pod"),
            _apt("perl-doc"),
        ),
        Source(
            "manpages",
            "manual",
            "several free licences, named in each page's source",
            manual_pages,
            "apt-get install manpages manpages-dev",
        ),
        Source(
            "reasoning-gym",
            "reasoning",
            "Apache-2.0",
            reasoning,
            "pip install reasoning-gym",
            "questions of a few templates each",
        ),
    )
}
"""By name, in the order in which they are gathered."""
