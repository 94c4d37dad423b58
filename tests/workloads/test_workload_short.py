"""Workloads of short items: enough independent ones that a floor of 0.99 can be certified."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from offramp.errors import WorkloadError
from offramp.testing import check_workload, check_workload_source
from offramp.workloads import standard_library
from offramp.workloads.prompts import load_math
from offramp.workloads.registry import (
    describe_workloads,
    load_workload,
)
from offramp.workloads.shared_text import Sketcher, shares_text, text_groups, without_shared_text
from offramp.workloads.standard_library import (
    DOCSTRINGS_PER_FILE,
    FEWEST_ITEMS,
    FUNCTIONS_PER_FILE,
    LICENCE,
    Piece,
    library_files,
    load_code,
    pieces,
    short_items,
)
from offramp.workloads.workload import Document, Workload, WorkloadSize, WorkloadSource

PER_FILE = {"prose:short": DOCSTRINGS_PER_FILE, "code:short": FUNCTIONS_PER_FILE}


@pytest.fixture(scope="module")
def loaded() -> dict[str, Workload]:
    return {name: load_workload(name) for name in (*PER_FILE, "math:short")}


@pytest.mark.parametrize("name", [*PER_FILE, "math:short"])
def test_there_are_enough_distinct_items(loaded: dict[str, Workload], name: str) -> None:
    workload = check_workload(loaded[name])
    assert workload.name == name
    assert len(workload.documents) >= FEWEST_ITEMS
    assert len({document.text for document in workload.documents}) == len(workload.documents)
    assert workload.licence in ("PSF-2.0", "Apache-2.0")


@pytest.mark.parametrize("name", PER_FILE)
def test_items_are_long_enough_and_mix_many_files(loaded: dict[str, Workload], name: str) -> None:
    documents = loaded[name].documents
    files = [document.id.partition(":")[0] for document in documents]
    assert min(len(document.text) for document in documents) >= 120
    assert max(Counter(files).values()) <= PER_FILE[name]
    # A fair sample at the front: the first 100 come from many files, and files do not stand together.
    assert len(set(files[:100])) >= 70
    assert sum(one == next_one for one, next_one in itertools.pairwise(files)) <= len(files) / 20


def test_code_items_are_whole_functions_with_docstrings(loaded: dict[str, Workload]) -> None:
    for document in loaded["code:short"].documents:
        (function,) = ast.parse(document.text).body
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert ast.get_docstring(function)


def test_prose_items_hold_no_doctest(loaded: dict[str, Workload]) -> None:
    assert not any(">>>" in document.text for document in loaded["prose:short"].documents)


def test_math_items_are_others_than_those_of_math(loaded: dict[str, Workload]) -> None:
    math = load_math()
    short = loaded["math:short"]
    assert not {document.text for document in math.documents} & {
        document.text for document in short.documents
    }
    assert (short.mode, short.chat) == (math.mode, math.chat) == ("generation", True)
    assert len({document.id.rpartition("-")[0] for document in short.documents[:14]}) == 14


def test_fingerprints_are_the_same_in_another_process(loaded: dict[str, Workload]) -> None:
    program = (
        "from offramp.workloads.registry import load_workload; "
        f"print(*(load_workload(name).fingerprint for name in {[*loaded]!r})); "
        "import sys; assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [workload.fingerprint for workload in loaded.values()]


def test_functions_that_lie_in_the_files_of_code_are_found(loaded: dict[str, Workload]) -> None:
    """About half of the functions of code:short lie in files of code; the others share little with them."""
    items, files = loaded["code:short"].documents, load_workload("code").documents
    seen = Sketcher.of(files).sketches(files)
    found = shares_text(Sketcher.of(items).sketches(items), seen)
    assert found.sum() > 300
    some, longer = ([words_of(one.text) for one in side] for side in (items[:200], files))
    expected = np.array([any(one in other for other in longer) for one in some])
    assert expected.sum() > 50
    assert np.all(found[:200][expected])
    assert (found[:200] & ~expected).sum() <= 0.05 * len(some)
    assert len(without_shared_text(items, seen)) == (~found).sum()


def words_of(text: str) -> str:
    """A text's words and marks, as they are compared."""
    return " ".join(re.findall(r"\w+|[^\w\s]", text.lower()))


@pytest.mark.parametrize("name", ["prose", "code", "code:short", "chat"])
def test_documents_of_a_workload_share_little(loaded: dict[str, Workload], name: str) -> None:
    """Or no roles could be drawn that share no text."""
    own = (loaded.get(name) or load_workload(name)).documents
    groups = text_groups(Sketcher.of(own).sketches(own))
    assert len(set(groups.tolist())) > 0.75 * len(own)
    assert np.bincount(groups).max() <= max(4, 0.02 * len(own))


def test_sizes_are_listed_with_what_they_assume() -> None:
    described = {item.name: item for item in describe_workloads()}
    for name in (*PER_FILE, "math:short"):
        assert "independent" in described[name].description
        assert "600" in described[name].documents
        assert described[name].licence == described[name.partition(":")[0]].licence
    assert described["prose"].documents != described["prose:short"].documents


def library(folder: Path, monkeypatch: pytest.MonkeyPatch, **modules: str) -> None:
    for name, text in modules.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(folder))
    monkeypatch.setattr("sys.stdlib_module_names", frozenset({"aa", "bb", "tkinter", "absent"}))


SMALL_MODULE = '''"""Of the module."""
class A:
    """Of A."""
    def f(self):
        """Of f."""
        def inner():
            """Stays within f."""
        return inner
    def bare(self):
        pass
@staticmethod
async def g():
    """Of g."""
'''


def test_pieces_of_a_small_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(
        tmp_path,
        monkeypatch,
        aa=SMALL_MODULE,
        bb__cc='"""Of cc."""',
        bb__test='"""No."""',
        tkinter='"""No."""',
    )
    (tmp_path / "bb" / "tests").mkdir()
    (tmp_path / "bb" / "tests" / "dd.py").write_text('"""No."""')
    (tmp_path / "bb" / "__init__.py").write_text("")
    assert [file for file, _ in library_files()] == ["aa.py", "bb/cc.py", "bb/test.py"]
    found = {piece.id: piece for piece in pieces()}
    assert list(found) == ["aa.py", "aa.py:A", "aa.py:A.f", "aa.py:g", "bb/cc.py", "bb/test.py"]
    assert found["aa.py:A"].source == ""
    assert found["aa.py:A.f"].source.startswith('def f(self):\n    """Of f."""\n    def inner():')
    assert found["aa.py:g"].source == 'async def g():\n    """Of g."""'


def test_a_docstring_at_the_margin_keeps_the_function_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = 'class A:\n    def f(self):\n        """One.\nTwo."""\n        return 1\n'
    library(tmp_path, monkeypatch, aa=method)
    (piece,) = pieces()
    assert piece.source == 'def f(self):\n    """One.\nTwo."""\n    return 1'


def test_a_file_gives_no_more_than_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    functions = "\n".join(f'def f{number}():\n    """Text {number}."""' for number in range(9))
    library(tmp_path, monkeypatch, aa=functions, bb=functions.replace("Text", "Words"))
    monkeypatch.setattr(standard_library, "FEWEST_ITEMS", 1)

    def docstring(piece: Piece) -> str | None:
        return None if "4" in piece.docstring else piece.docstring

    documents = short_items("some", docstring, seed="s", per_file=3)
    assert Counter(document.id.partition(":")[0] for document in documents) == {"aa.py": 3, "bb.py": 3}
    assert documents == short_items("some", docstring, seed="s", per_file=3)
    assert documents != short_items("some", docstring, seed="another", per_file=3)
    assert not any("4" in document.text for document in documents)


def test_a_library_without_sources_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library(tmp_path, monkeypatch, aa=SMALL_MODULE)
    with pytest.raises(WorkloadError, match="gives 4 items for 'some', fewer than 600"):
        short_items("some", lambda piece: piece.docstring, seed="s", per_file=5)


def test_a_source_has_an_argument_or_sizes() -> None:
    size = WorkloadSize("short", load_code, "one", "short ones")
    workload = Workload("poems", "text", (Document("a", "A"),), LICENCE, "here")
    source = WorkloadSource(
        "poems", lambda argument: workload, "text", "one", LICENCE, "poems", "PATH", (size,)
    )
    with pytest.raises(WorkloadError, match="not both"):
        check_workload_source(source, "x")
