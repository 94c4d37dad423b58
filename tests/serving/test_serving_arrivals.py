"""What arrives: rates, bursts, files, lengths; and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offramp
from offramp.serving import request
from offramp.serving.request import Objectives, RequestLengths, read_arrivals, read_rates
from offramp.serving.simulator import demand_of


@pytest.mark.parametrize(("text", "cv"), [("poisson", 1.0), ("gamma:cv=4", 4.0), ("gamma:cv=0.5", 0.5)])
def test_gaps_have_the_rate_and_the_spread_that_were_asked_for(text: str, cv: float) -> None:
    times = demand_of(read_arrivals(text), RequestLengths(), 2.5, 200_000, 0).arrival
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(1 / 2.5, rel=0.04)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


@settings(deadline=None, max_examples=50)
@given(rate=st.floats(0.01, 1000), seed=st.integers(0, 1000), count=st.integers(1, 50))
def test_demands_of_one_seed_differ_by_their_times_alone(rate: float, seed: int, count: int) -> None:
    one, other = (
        demand_of(read_arrivals("poisson"), RequestLengths(), wanted, count, seed) for wanted in (rate, 1.0)
    )
    assert (np.diff(one.arrival) >= 0).all()
    assert one.arrival * rate == pytest.approx(other.arrival)
    assert one.prompt.tolist() == other.prompt.tolist()
    assert one.text.tolist() == other.text.tolist()
    assert ((one.output >= 1) & (one.output <= 8 * 32)).all()


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines), encoding="utf-8")
    return f"csv:{path}"


@settings(deadline=None, max_examples=40)
@given(
    gaps=st.lists(st.floats(0.01, 10), min_size=2, max_size=20),
    rate=st.floats(0.1, 10),
    seed=st.integers(0, 20),
)
def test_a_file_is_stretched_to_the_rate(
    tmp_path_factory: pytest.TempPathFactory, gaps: list[float], rate: float, seed: int
) -> None:
    seconds = np.cumsum([5.0, *gaps])
    rows = [f"{at!r},{place + 1},{place + 2}" for place, at in enumerate(seconds.tolist())]
    text = write(tmp_path_factory.mktemp("csv") / "a.csv", "arrival,prompt_tokens,output_tokens", *rows)
    found = read_arrivals(text)
    assert found.seconds == tuple(seconds.tolist())
    demand = demand_of(found, RequestLengths(), rate, len(gaps), seed)
    assert demand.arrival[-1] == pytest.approx(len(gaps) / rate)
    assert sorted(demand.output - demand.prompt) == [1] * len(gaps)
    assert set(demand.prompt.tolist()) == set(range(2, len(gaps) + 2))


@pytest.mark.parametrize(
    ("lines", "what", "line"),
    [
        (["arrival", "0", "1"], "3 are the fewest", 1),
        (["seconds", "0", "1", "2"], "not the names of its columns", 1),
        (["arrival", "0", "2", "1"], "not sorted", 4),
        (["arrival", '"0', "2", "1"], "unexpected end of data", 4),
        (["arrival,prompt_tokens,output_tokens", "0,1,1", "1,2", "2,2,2"], "2 of 3 columns", 3),
        (["arrival,prompt_tokens,output_tokens", "0,1,1", "1,,2", "2,2,2"], "2 of 3 columns", 3),
        (["arrival,prompt_tokens,output_tokens", "0,1,1", "1,0,2", "2,2,2"], "no tokens", 3),
        (["arrival", "0", "nan", "1"], "no time", 3),
        (["arrival", "0", "\u0661", "2"], "no time", 3),
        (["arrival", "0", "1_0", "20"], "no time", 3),
        (["arrival", "-1", "0", "1"], "no time", 2),
        (["arrival", "1", "1", "1"], "all its requests come at one time", 4),
        ([], "not the names of its columns", 1),
        (["arrival", "0", "1", "9" * 200_000], "field larger than field limit", 4),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, lines: list[str], what: str, line: int) -> None:
    path = tmp_path / "a.csv"
    with pytest.raises(offramp.InputError, match=what) as error:
        read_arrivals(write(path, *lines))
    assert error.value.where == f"{path}, line {line}"
    assert "arrival,prompt_tokens,output_tokens" in error.value.fix


@pytest.mark.parametrize("text", ["", "uniform", "poisson:2", "csv:"])
def test_arrivals_that_are_none(text: str) -> None:
    with pytest.raises(offramp.InputError, match="does not say how requests arrive") as error:
        read_arrivals(text)
    assert "gamma:cv=4" in error.value.fix


def test_a_file_of_too_many_requests_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "MOST_RECORDED", 3)
    assert len(read_arrivals(write(tmp_path / "a.csv", "arrival", "0", "1", "2")).seconds) == 3
    with pytest.raises(offramp.InputError, match="more than 3 requests") as error:
        read_arrivals(write(tmp_path / "a.csv", "arrival", "0", "1", "2", "3", "4", "never read"))
    assert error.value.where.endswith("line 5")


@pytest.mark.parametrize(
    "text", ["gamma", "gamma:cv=0", "gamma:cv=101", "gamma:cv=x", "gamma:seconds=1", "gamma:lengths=3"]
)
def test_bursts_that_are_none(text: str) -> None:
    with pytest.raises(offramp.InputError, match=r"means nothing|cv must be") as error:
        read_arrivals(text)
    assert error.value.where.startswith("--arrivals gamma:")


def test_lengths_and_objectives() -> None:
    assert RequestLengths.read("output=7") == RequestLengths(output=7)
    assert RequestLengths.read("prompt=3,output=4,sigma=0") == RequestLengths(3, 4, 0.0)
    assert Objectives.read("ttft=2,tpot=0.1").promised == {"ttft": 2.0, "tpot": 0.1}
    for text in ("", "output=0", "output=1.5", "sigma=9", "output=1,output=2", "width=3", "prompt=x"):
        with pytest.raises(offramp.InputError) as error:
            RequestLengths.read(text)
        assert error.value.where.startswith("--lengths")
    for text in ("", "ttft", "ttft=0", "latency=2", "itl=1", "ttft=1,ttft=2"):
        with pytest.raises(offramp.InputError) as error:
            Objectives.read(text)
        assert error.value.where.startswith("--slo")


def test_rates() -> None:
    assert read_rates("0.5,1,2") == read_rates([0.5, 1, 2]) == (0.5, 1.0, 2.0)
    assert read_rates(" .5, 1.,2e0,+1E1") == (0.5, 1.0, 2.0, 10.0)


@pytest.mark.parametrize(
    "rates", ["0", "-1", "2,1", "1,1", "inf", "nan", "fast", "1_0", "\u0661", "", (), (0.0,), (2.0, 1.0)]
)
def test_rates_that_are_none(rates: str | tuple[float, ...]) -> None:
    with pytest.raises(offramp.InputError, match="rates must be rising, each"):
        read_rates(rates)
