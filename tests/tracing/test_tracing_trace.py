"""A trace as an object: what it refuses, and that it can be taken to another process."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tracing_models import tiny_llama, workload_of

from offramp.errors import DamagedFileError, InputError
from offramp.testing.contracts import example_shape
from offramp.tracing.sealed_parts import part_path
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

SHAPE = example_shape()
TOP1 = np.arange(24, dtype=np.int32).reshape(6, 4)
DOCUMENT = np.array([0, 0, 0, 0, 1, 1], dtype=np.int32)


def of_facts(document: Any = DOCUMENT, **given: Any) -> Trace:
    return Trace.from_facts({"top1": TOP1}, document=document, shape=SHAPE, **given)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: Trace.load(None), "folder cannot be None"),
        (lambda: Trace.load(["trace"]), "folder cannot be list"),
        (lambda: of_facts().fact(5), "name cannot be int 5"),
        (lambda: of_facts().fact(["top1"]), "name cannot be list"),
        (lambda: of_facts().document_fact(None), "name cannot be None"),
        (lambda: of_facts().at_rows([6]), "has 6 tokens, and no row 6"),
        (lambda: of_facts().at_rows([-7]), "has 6 tokens, and no row -7"),
        (lambda: of_facts().at_rows([True]), "has 6 tokens, and no bool"),
        (lambda: of_facts().at_rows([0.5]), "rows cannot be list"),
        (lambda: of_facts([]), "cannot be an array"),
        (lambda: of_facts([[0] * 6]), "cannot be an array"),
        (lambda: of_facts([-1, 0, 0, 0, 1, 1]), "-1 is no document of 6 tokens"),
        (lambda: of_facts([0, 0, 0, 0, 1, 2**31 - 1]), "2147483647 is no document of 6 tokens"),
        (lambda: of_facts([0, 0]), r"top1 is an array \[6, 4\]"),
        (lambda: of_facts([0, 1, 0, 0, 1, 1]), "the rows of document 0 are not contiguous"),
        (
            lambda: of_facts(exits=[1, 2, 3, 5]),
            r"the exits \[1, 2, 3, 5\] do not rise from 1 or more and end at layer 4",
        ),
        (lambda: of_facts(exits=[1, 2]), "do not rise from 1 or more and end at layer 4"),
        (lambda: of_facts(exits=[3, 3, 1, 4]), "do not rise from 1 or more and end at layer 4"),
        (lambda: of_facts(exits=[-1, 2, 3, 4]), "do not rise from 1 or more and end at layer 4"),
        (lambda: of_facts(exits=[]), "do not rise from 1 or more and end at layer 4"),
        (lambda: of_facts(exits=[1, 4]), r"top1 is an array \[6, 4\]"),
        (lambda: of_facts(position=[1, 2]), r"position is an array \[2\]"),
    ],
)
def test_what_is_no_part_of_a_trace_is_named(call: Callable[[], Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        call()


def test_no_array_of_a_trace_can_be_written_to() -> None:
    given = np.full(6, 0.5)
    whole = of_facts(document_facts={"prompt_entropy": given}, reference_top1=TOP1[:, 3])
    for one in (whole, whole.subset([1])):
        for values in (one.exits, *one.token_columns.values(), one.top1, one.full_top1):
            with pytest.raises(ValueError, match="read-only"):
                values[:] = 0
        with pytest.raises(ValueError, match="read-only"):
            one.document_fact("prompt_entropy")[:] = 0.0
    given[0] = 1.0  # what somebody else holds stays theirs


def test_rows_are_chosen_by_number_or_by_truth() -> None:
    whole = of_facts(DOCUMENT.tolist())
    assert np.array_equal(whole.at_rows([4, 0]).fact("top1"), TOP1[[4, 0]])
    assert np.array_equal(whole.at_rows(TOP1[:, 0] > 12).fact("top1"), TOP1[4:])
    assert whole.subset([1]).token_count == 2


@pytest.mark.parametrize("kind", ["facts", "marginal"])
def test_an_open_trace_never_reads_what_took_a_files_place(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "trace"
    monkeypatch.chdir(tmp_path)
    opened = [
        trace(tiny_llama(), workload_of(lengths=(20, 30)), tokens=40, output=folder),
        Trace.load("trace"),
        Trace.load("trace"),
    ]
    monkeypatch.chdir("/")
    path = part_path(folder, kind, 0)
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)  # another file of the same bytes
    assert read(opened.pop(), kind)
    trace(tiny_llama(), workload_of(lengths=(20, 20)), tokens=30, output=folder, overwrite=True)
    for one in opened:
        with pytest.raises(DamagedFileError, match="changed since the trace was opened") as caught:
            read(one, kind)
        assert caught.value.where == str(path)
        assert "load the trace again" in caught.value.fix
    assert read(Trace.load(folder), kind)
    path.unlink()
    with pytest.raises(DamagedFileError, match="changed since the trace was opened"):
        read(opened[0], kind)


def read(trace: Trace, kind: str) -> int:
    """How many numbers of a kind the trace reads."""
    return trace.max_prob.size if kind == "facts" else trace.marginal.sums.size


def test_a_trace_is_pickled_and_copied(tmp_path: Path) -> None:
    traced = trace(tiny_llama(), workload_of(lengths=(20, 30)), tokens=40, output=tmp_path / "trace")
    for one in (traced, Trace.load(tmp_path / "trace"), traced.at_rows(np.arange(10)), of_facts()):
        for other in (pickle.loads(pickle.dumps(one)), copy.copy(one), copy.deepcopy(one)):
            assert other.fact_names == one.fact_names
            for name in one.fact_names:
                assert np.array_equal(other.fact(name), one.fact(name), equal_nan=True)
            for values in (other.exits, *other.token_columns.values(), other.fact("top1")):
                assert not values.flags.writeable
    again = pickle.loads(pickle.dumps(Trace.load(tmp_path / "trace")))
    assert np.array_equal(again.marginal.sums, traced.marginal.sums)
    with pytest.raises(InputError, match="no marginal"):
        pickle.loads(pickle.dumps(of_facts())).marginal  # noqa: B018
