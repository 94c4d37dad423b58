"""What the public functions make of arguments of other types than their annotations say."""

from __future__ import annotations

import inspect
import math
import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tracing_models import tiny_llama

import offramp
from offramp.errors import InputError, WorkloadError
from offramp.kit.arguments import _fitting, _hints, checked, settle_fields
from offramp.kit.numbers import Count, Seconds, Share, Whole
from offramp.runs.request import run
from offramp.testing import (
    check_machine,
    check_policy,
    check_transform,
    check_workload,
    check_workload_source,
)
from offramp.training.gate_training import train_gates
from offramp.training.train import train_exits

if TYPE_CHECKING:
    from nowhere import there

FUNCTIONS = [
    name
    for name in offramp.__all__
    if inspect.isfunction(getattr(offramp, name)) and not hasattr(getattr(offramp, name), "request")
]
"""All but those of requests, which check themselves."""


@checked
def asked(
    count: int = 1,
    share: float = 0.5,
    exits: str | tuple[int, ...] = "all",
    floor: Mapping[str, float] | None = None,
    place: str | Path | None = None,
) -> tuple[Any, ...]:
    return count, share, exits, floor, place


class PathOfBytes:
    def __fspath__(self) -> bytes:
        return b"here"


def test_numbers_of_every_kind_become_pythons() -> None:
    found = asked(np.int64(3), np.float32(0.5), np.array([1, 2]), None, Path("here"))
    assert found == (3, 0.5, (1, 2), None, Path("here"))
    assert [type(one) for one in (found[0], found[1], found[2][0])] == [int, float, int]
    assert asked(share=1)[1] == 1


@pytest.mark.parametrize(
    ("given", "what", "fix"),
    [
        ({"count": 2.0}, "count cannot be float 2.0", "give int"),
        ({"count": "2"}, "count cannot be str '2'", "give int"),
        ({"count": True}, "count cannot be bool True", "give int"),
        ({"share": "half"}, "share cannot be str 'half'", "give float"),
        ({"exits": [1.9]}, "exits cannot be list [1.9]", "give str or tuple[int, ...]"),
        ({"place": b"here"}, "place cannot be bytes b'here'", "give str or Path or None"),
        ({"place": PathOfBytes()}, "place cannot be PathOfBytes", "give str or Path or None"),
        ({"count": None}, "count cannot be None", "give int"),
        ({"exits": {1: 2}}, "exits cannot be dict", "give str"),
        ({"floor": {"agreement": None}}, "floor cannot be dict", "give Mapping[str, float]"),
    ],
)
def test_another_type_is_named(given: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(InputError) as refused:
        asked(**given)
    assert what in refused.value.what
    assert refused.value.where == f"{next(iter(given))}="
    assert refused.value.fix.startswith(fix)


def test_a_public_type_is_named_with_what_gives_one() -> None:
    with pytest.raises(InputError, match=r"give Trace: offramp\.Trace\.load\(FOLDER\)"):
        offramp.score("runs/trace")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_takes_its_defaults_and_nothing_unknown(name: str) -> None:
    function = getattr(offramp, name)
    parameters = inspect.signature(inspect.unwrap(function)).parameters
    for parameter, (words, hint) in _hints(function.__wrapped__).items():
        assert "Source" not in words  # what an alias means is said, not its name
        default = parameters[parameter].default
        if default is not inspect.Parameter.empty:
            assert _fitting(default, hint) == default
    assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize(
    "call",
    [
        lambda: offramp.parse_policy(None),
        lambda: offramp.replay({"exit": 2}, "static:exit=2"),
        lambda: offramp.score([1]),
        lambda: offramp.find_machine(None),
        lambda: offramp.read_study(None),
        lambda: offramp.compare("runs"),
        lambda: offramp.load_model(None),
        lambda: offramp.wrap(None, name=5),
        lambda: offramp.tune_tasks([], "agreement=0.5"),
        lambda: offramp.ExitScoreCallback(tokens="9"),
        lambda: offramp.ExitScoreCallback(exits="a", workload="prose:short"),
        lambda: offramp.bench("a model", [], prompts=[]),
        lambda: check_policy(None),
        lambda: check_policy("static:exit=2"),
        lambda: check_machine("h100"),
        lambda: check_workload(None),
        lambda: check_workload(lambda: None),
        lambda: check_workload_source("prose"),
        lambda: check_transform("int8"),
        lambda: check_transform(None),
    ],
)
def test_public_functions_refuse_other_types(call: Any) -> None:
    with pytest.raises(InputError, match=r"cannot be|not a list of layers"):
        call()


def test_arguments_are_checked_once() -> None:
    assert checked(asked) is asked


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: asked(cuont=1), "asked() got an unexpected keyword argument 'cuont': did you mean 'count'?"),
        (lambda: asked(xyz=1), "asked() got an unexpected keyword argument 'xyz'"),
        (lambda: run(tokns=1), "run() got an unexpected keyword argument 'tokns': did you mean 'tokens'?"),
        (
            lambda: train_exits(tiny_llama(), "prose", at="1", unitz=3),
            "train_exits() got an unexpected keyword argument 'unitz': did you mean 'units'?",
        ),
        (
            lambda: train_gates(tiny_llama(), "prose", machine="h100", floor=0.9, step=3),
            "train_gates() got an unexpected keyword argument 'step': did you mean 'steps'?",
        ),
    ],
)
def test_a_name_that_there_is_not_is_refused_with_a_near_one(call: Any, what: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(what)}$"):
        call()


def test_each_of_any_number_of_arguments_is_held_against_the_annotation() -> None:
    @checked
    def several(*counts: int) -> tuple[int, ...]:
        return counts

    assert several(1, np.int64(2)) == (1, 2)
    assert several() == ()
    with pytest.raises(InputError, match="counts cannot be"):
        several(1, 2.5)  # type: ignore[arg-type]


@checked
def limited(
    count: Count = 1,
    seed: Whole = 0,
    share: Share | None = None,
    seconds: Seconds | Literal["auto"] = "auto",
    sizes: tuple[Count, ...] = (),
) -> tuple[Any, ...]:
    return count, seed, share, seconds, sizes


@pytest.mark.parametrize(
    ("given", "what", "fix"),
    [
        ({"count": 0}, "count must be at least 1, not 0", "give a number that is at least 1"),
        ({"count": 10**16}, "count must be 1,000,000,000,000,000 at most, not", "give a number"),
        ({"count": 10**5000}, "count must be 1,000,000,000,000,000 at most, not a number of", "give"),
        ({"count": 1.5}, "count cannot be float 1.5", "give int"),
        ({"seed": -1}, "seed must be at least 0, not -1", "give a number that is at least 0"),
        ({"share": 1.0}, "share must be below 1, not 1.0", "give a number that is below 1"),
        ({"share": math.nan}, "share must be a finite number, not nan", "give a finite number"),
        ({"share": "half"}, "share cannot be str 'half'", "give float or None"),
        ({"seconds": 0}, "seconds must be above 0, not 0", "give a number that is above 0"),
        ({"seconds": math.nan}, "seconds must be a finite number, not nan", "give a finite number"),
        ({"seconds": math.inf}, "seconds must be 31,622,400.0 at most, not inf", "give a number"),
        ({"sizes": [4, 0]}, "sizes must be at least 1", "give a number that is at least 1"),
    ],
)
def test_a_number_outside_its_limits_is_refused_by_its_type(
    given: dict[str, Any], what: str, fix: str
) -> None:
    with pytest.raises(InputError) as refused:
        limited(**given)
    assert refused.value.what.startswith(what)
    assert refused.value.fix.startswith(fix)


def test_a_number_within_its_limits_passes() -> None:
    assert limited(1, np.int64(0), 0.5, 3, [1, 2]) == (1, 0, 0.5, 3, (1, 2))
    assert limited() == (1, 0, None, "auto", ())


Colour = Literal["red", "blue"]


@dataclass(frozen=True)
class Made:
    """Fields of every kind that annotations are read of."""

    colour: Colour
    counts: tuple[int, ...] | Literal["all"] = "all"
    pair: tuple[str, int] = ("a", 1)
    rows: Sequence[Sequence[int]] = ()
    other: there.Thing[int] | None = None

    def __post_init__(self) -> None:
        settle_fields(self, WorkloadError)


def test_fields_become_what_their_annotations_say() -> None:
    made = Made("red", [np.int64(1), 2], ["b", np.int64(2)], torch.tensor([[1, 2], [3, 4]]))
    assert made == Made("red", (1, 2), ("b", 2), ((1, 2), (3, 4)))
    assert {type(count) for count in (*made.counts, made.pair[1], made.rows[0][0])} == {int}
    assert Made("blue", (count for count in (1, 2))).counts == (1, 2)


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ({"colour": "green"}, "give 'red' or 'blue'"),
        ({"counts": "most"}, "give tuple[int, ...] or 'all'"),
        ({"counts": (1, True)}, "give tuple[int, ...] or 'all'"),
        ({"pair": ("a",)}, "give tuple[str, int]"),
        ({"pair": ("a", 1, 2)}, "give tuple[str, int]"),
        ({"rows": torch.tensor([1, 2])}, "give Sequence[Sequence[int]]"),
        ({"rows": torch.tensor([[0.5]])}, "give Sequence[Sequence[int]]"),
        ({"other": 5}, "give Thing[int] or None"),
    ],
)
def test_a_field_of_another_type_is_named_with_its_class(given: dict[str, Any], fix: str) -> None:
    with pytest.raises(WorkloadError, match=r"cannot be|must be 'red' or 'blue', not 'green'") as refused:
        Made(**{"colour": "red", **given})
    assert (refused.value.where, refused.value.fix) == (f"Made({next(iter(given))}=)", fix)


@checked
def counted(
    rows: NDArray[np.int64] | NDArray[np.bool_], weights: NDArray[np.float64] | None = None
) -> NDArray[Any]:
    return rows


def test_arrays_are_made_of_what_numpy_reads() -> None:
    assert counted([0, 2]).dtype == np.int64
    assert counted([True, False]).dtype == np.bool_
    assert counted(range(3)).tolist() == [0, 1, 2]
    assert counted([]).dtype == np.int64
    assert counted(torch.tensor([1])).tolist() == [1]
    assert counted([0], [1, 2]).tolist() == [0]  # whole numbers are numbers, too
    same = np.array([3], dtype=np.int32)
    assert counted(same) is same


@pytest.mark.parametrize("rows", [[0.5], "01", None, 3, {0: 1}, [[1], [2, 3]], [None]])
def test_what_is_no_array_of_that_kind_is_named(rows: Any) -> None:
    with pytest.raises(InputError, match="rows cannot be"):
        counted(rows)


class Counting:
    @checked
    def of(self, count: int) -> int:
        return count

    @classmethod
    @checked
    def made(cls, count: int) -> int:
        return count


def test_methods_are_held_against_their_annotations() -> None:
    assert (Counting().of(np.int64(3)), Counting.made(4)) == (3, 4)
    for call in (Counting().of, Counting.made):
        with pytest.raises(InputError, match="count cannot be str '3'"):
            call("3")
