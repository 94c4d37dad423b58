"""`prose` and `code`: what the running Python carries, its reference for `help()` and its library's sources.

Also in short items, `prose:short` and `code:short`: docstrings and functions of the library.
"""

from __future__ import annotations

import ast
import functools
import platform
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from offramp.errors import WorkloadError
from offramp.files import sha256_of_text
from offramp.workloads.text_files import read_text
from offramp.workloads.workload import Document, Workload, WorkloadSize, WorkloadSource

FEWEST_ITEMS = 600
"""What a certificate of agreement 0.99 takes in practice; a workload of short items holds no fewer."""

# Left out: jokes, tables, copies of other text, tests, and what distributions ship apart or later
# versions dropped.
LEFT_OUT = frozenset(
    {"antigravity", "this", "encodings", "pydoc_data", "test", "ensurepip", "distutils", "lib2to3"}
    | {"idlelib", "tkinter", "turtle", "turtledemo"}
)
TESTS = frozenset({"test", "tests"})

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Piece:
    """A module, class or function with a docstring."""

    file: str
    """Relative to the library ("json/decoder.py")."""
    name: str
    """Dotted, "" for the module."""
    docstring: str
    """Without its indentation."""
    source: str
    """Of a function, without its indentation and decorators; "" for the others."""

    @property
    def id(self) -> str:
        """File and name: json/decoder.py:JSONDecoder.decode."""
        return f"{self.file}:{self.name}" if self.name else self.file


def short_items(
    name: str, text_of: Callable[[Piece], str | None], *, seed: str, per_file: int
) -> tuple[Document, ...]:
    """One document per piece that `text_of` has a text for, at most `per_file` of one file.

    Texts that repeat most long lines of a shorter one are left out. Which ones of a file, and the order of
    all, which mixes files, follow from a hash of seed and id: the first N are a fair sample.

    Raises WorkloadError if this Python comes without the sources of its standard library.
    """
    texts: dict[str, str] = {}
    file_of: dict[str, str] = {}
    for piece in pieces():
        text = text_of(piece)
        if text is not None and piece.id not in texts:
            texts[piece.id], file_of[piece.id] = text, piece.file
    kept = without_containers(texts)
    by_file: dict[str, list[str]] = {}
    for item in sorted(kept, key=lambda item: sha256_of_text(f"{seed} within its file {item}")):
        by_file.setdefault(file_of[item], []).append(item)
    chosen = [item for items in by_file.values() for item in items[:per_file]]
    chosen.sort(key=lambda item: sha256_of_text(f"{seed} {item}"))
    documents = tuple(Document(item, kept[item]) for item in chosen)
    if len(documents) < FEWEST_ITEMS:
        raise WorkloadError(
            f"this Python's standard library gives {len(documents)} items for {name!r}, "
            f"fewer than {FEWEST_ITEMS}",
            where=sysconfig.get_path("stdlib"),
            fix="use a Python that is installed with its library's sources and docstrings",
        )
    return documents


def without_containers(texts: Mapping[str, str]) -> dict[str, str]:
    """The texts that do not hold most long lines of a shorter one; of equal texts the first by name stays."""
    lines = {
        name: frozenset(line.strip() for line in text.splitlines() if len(line.strip()) >= 40)
        for name, text in texts.items()
    }
    kept: dict[str, str] = {}
    kept_with: dict[str, list[str]] = {}  # by line, the kept texts that hold it
    for name in sorted(texts, key=lambda name: (len(texts[name]), name)):
        shared = Counter(other for line in lines[name] for other in kept_with.get(line, ()))
        if not any(count > 0.7 * len(lines[other]) for other, count in shared.items()):
            kept[name] = texts[name]
            for line in lines[name]:
                kept_with.setdefault(line, []).append(name)
    return kept


def pieces() -> Iterator[Piece]:
    """Every module, class, method and function with a docstring; nested functions stay in their outer one."""
    for file, path in library_files():
        text = read_text(path)
        tree = ast.parse(text)
        if docstring := ast.get_docstring(tree):
            yield Piece(file, "", docstring, "")
        yield from _definitions(file, tree.body, "", text.splitlines())


def library_files() -> Iterator[tuple[str, Path]]:
    """The library's source files with their names in it, sorted; those this Python lacks are passed over."""
    folder = Path(sysconfig.get_path("stdlib"))
    for module in sorted(sys.stdlib_module_names - LEFT_OUT):
        package = folder / module
        paths = sorted(package.rglob("*.py")) if package.is_dir() else [folder / f"{module}.py"]
        for path in paths:
            inside = path.relative_to(folder)
            if path.is_file() and path.stat().st_size and not TESTS & set(inside.parts):
                yield inside.as_posix(), path


def _definitions(file: str, body: list[ast.stmt], outer: str, lines: list[str]) -> Iterator[Piece]:
    for node in body:
        if not isinstance(node, Definition):
            continue
        name = f"{outer}{node.name}"
        is_class = isinstance(node, ast.ClassDef)
        if docstring := ast.get_docstring(node):
            # Not textwrap.dedent: a docstring may have lines at the margin.
            margin = re.compile(f"^ {{0,{node.col_offset}}}")
            own = [] if is_class else lines[node.lineno - 1 : node.end_lineno]
            source = "\n".join(margin.sub("", line) for line in own)
            yield Piece(file, name, docstring, source)
        if is_class:
            yield from _definitions(file, node.body, f"{name}.", lines)


LICENCE = "PSF-2.0"
CODE_SEED = "offramp code 1"
SHORTEST_FUNCTION = 400
FUNCTIONS_PER_FILE = 4
CODE_SHORT_SEED = "offramp code short 1"
FIRST_DEFINITION = re.compile(r"^(?:@\w|(?:async )?def \w+\(|class \w+[:(])", flags=re.MULTILINE)


def load_code(argument: str = "") -> Workload:
    """One document per file of a fixed list, from its first function or class on, in a fixed shuffled order.

    Licence header, module docstring and imports are left out: they would be prose and lists at the very place
    that a short document is cut from. The text, and so the fingerprint, is the running Python version's.

    Raises WorkloadError if this Python comes without the sources of its standard library.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    names = sorted(code_files(), key=lambda name: sha256_of_text(f"{CODE_SEED} {name}"))
    missing = [name for name in names if not (folder / f"{name}.py").is_file()]
    if missing:
        raise WorkloadError(
            f"this Python's standard library lacks {len(missing)} source files, {missing[0]}.py for one",
            where=str(folder),
            fix="use a Python that is installed with its library's sources",
        )
    return Workload(
        name="code",
        mode="text",
        documents=tuple(
            Document(f"{name}.py", from_first_definition(read_text(folder / f"{name}.py"))) for name in names
        ),
        licence=LICENCE,
        source=f"standard library of Python {platform.python_version()}",
    )


@functools.cache
def code_files() -> tuple[str, ...]:
    """Those that Python 3.11 and every later version have under the same name, without their ".py"."""
    listed = files("offramp.workloads") / "data" / "code_files.txt"
    return tuple(listed.read_text(encoding="utf-8").split())


def from_first_definition(text: str) -> str:
    """A module's text from its first function, class or decorator on; all of it if there is none."""
    match = FIRST_DEFINITION.search(text)
    return text[match.start() :] if match else text


# Kept: reading the whole library takes two seconds, and a run asks for its workloads many times.
@functools.cache
def load_short_code() -> Workload:
    """One document per function or method with a docstring, at most four of one file, in a mixed order.

    Without decorators, and at least 400 characters. A guarantee takes the items as independent; functions of
    one file share names and style, which four of a file at most keeps small beside some 260 files.

    Raises WorkloadError if this Python comes without its library's sources.
    """
    return Workload(
        name="code:short",
        mode="text",
        documents=short_items("code:short", _function, seed=CODE_SHORT_SEED, per_file=FUNCTIONS_PER_FILE),
        licence=LICENCE,
        source=f"functions of the standard library of Python {platform.python_version()}",
    )


def _function(piece: Piece) -> str | None:
    return piece.source + "\n" if len(piece.source) >= SHORTEST_FUNCTION else None


CODE = WorkloadSource(
    name="code",
    load=load_code,
    mode="text",
    documents=f"{len(code_files())} files",
    licence=LICENCE,
    description="Python code: the standard library's sources",
    sizes=(
        WorkloadSize(
            "short",
            load_short_code,
            documents=f"one per function (more than {FEWEST_ITEMS})",
            description="Python code in short items, enough to certify agreement 0.99: functions of the "
            f"standard library, at most {FUNCTIONS_PER_FILE} of one file; they are taken as independent",
        ),
    ),
)


SHORTEST_TOPIC = 300
PROSE_SEED = "offramp prose 1"
SHORTEST_DOCSTRING = 200
DOCSTRINGS_PER_FILE = 5
PROSE_SHORT_SEED = "offramp prose short 1"


def load_prose(argument: str = "") -> Workload:
    """One document per topic of `pydoc_data.topics`, in a fixed shuffled order.

    Topics under 300 characters, and topics that repeat a shorter one (the chapter that holds a section), are
    left out: documents must not share text, since every interval resamples them as independent units.
    """
    from pydoc_data.topics import topics

    texts = {name: clean_topic(text) for name, text in topics.items()}
    texts = {name: text for name, text in texts.items() if len(text) >= SHORTEST_TOPIC}
    kept = without_containers(texts)
    # Ordered by a hash: the first N topics are a fair sample, and a new topic moves no other.
    names = sorted(kept, key=lambda name: sha256_of_text(f"{PROSE_SEED} {name}"))
    return Workload(
        name="prose",
        mode="text",
        documents=tuple(Document(name, kept[name]) for name in names),
        licence=LICENCE,
        source=f"pydoc_data.topics of Python {platform.python_version()}",
    )


def clean_topic(text: str) -> str:
    """A topic without its headings' underlines, and with single blank lines."""
    text = re.sub(r"^[*=\-~^]{3,}\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@functools.cache
def load_short_prose() -> Workload:
    """One document per docstring of the standard library, at most five of one file, in a mixed order.

    Not paragraphs of the topics: there are only some sixty topics of a few authors, and paragraphs of one
    text depend on each other, while these come from about 260 files by many hands. A guarantee takes the
    items as independent; those of one file still share their subject, which five of a file at most keeps
    small beside the whole. Docstrings under 200 characters (about 45 tokens) or with doctests are left out.

    Raises WorkloadError if this Python comes without its library's sources.
    """
    return Workload(
        name="prose:short",
        mode="text",
        documents=short_items("prose:short", _docstring, seed=PROSE_SHORT_SEED, per_file=DOCSTRINGS_PER_FILE),
        licence=LICENCE,
        source=f"docstrings of the standard library of Python {platform.python_version()}",
    )


def _docstring(piece: Piece) -> str | None:
    text = piece.docstring
    return None if len(text) < SHORTEST_DOCSTRING or ">>>" in text else text + "\n"


PROSE = WorkloadSource(
    name="prose",
    load=load_prose,
    mode="text",
    documents="one per topic (more than 60)",
    licence=LICENCE,
    description="technical English, no literature: the topics of the Python language reference",
    sizes=(
        WorkloadSize(
            "short",
            load_short_prose,
            documents=f"one per docstring (more than {FEWEST_ITEMS})",
            description="technical English in short items, enough to certify agreement 0.99: docstrings of "
            f"the standard library, at most {DOCSTRINGS_PER_FILE} of one file; they are taken as independent",
        ),
    ),
)
