"""How many threads decode: the fewest that take no longer, by tokens of both in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tracing_models import tiny_llama

from offramp.models.process import use_threads, with_most_threads, with_threads
from offramp.timing import threads
from offramp.timing.threads import AS_FAST, fewest_threads

MODEL: Any = SimpleNamespace(
    stack=SimpleNamespace(device=torch.device("cpu")),
    hf=SimpleNamespace(device=torch.device("cpu")),
    shape=SimpleNamespace(vocabulary_size=9),
)


class Timed:
    """A decoding whose tokens take as long as the threads say that are in use."""

    seconds: Mapping[int, float] = {}
    most = 99

    def __init__(self, start: object, prompts: object, new_tokens: int) -> None:
        self.blocks: list[float] = []
        self.new_tokens = new_tokens

    def take(self, block: int) -> None:
        self.blocks.append(self.seconds[torch.get_num_threads()] * (5.0 if not self.blocks else 1.0))

    @property
    def over(self) -> bool:
        return len(self.blocks) >= self.new_tokens


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "Stepping", Timed)
    monkeypatch.setattr(threads, "probing", lambda hf: with_threads(torch.get_num_threads()))
    with with_threads(4):
        yield


@pytest.mark.parametrize(
    ("seconds", "fewest"),
    [
        ({4: 1.0, 2: AS_FAST - 0.001, 1: 2.0}, 2),
        ({4: 1.0, 2: 1.0, 1: 0.9}, 1),
        ({4: 1.0, 2: AS_FAST + 0.001, 1: 0.5}, 4),
        ({4: 50.0, 2: 40.0, 1: 50.0}, 2),
    ],
)
def test_halved_as_long_as_a_token_takes_no_longer(
    seconds: Mapping[int, float], fewest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Timed, "seconds", seconds)
    assert fewest_threads(MODEL) == fewest
    assert torch.get_num_threads() == 4


def test_all_of_them_where_nothing_is_to_choose_or_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("cannot")

    elsewhere = SimpleNamespace(**{**vars(MODEL), "stack": SimpleNamespace(device=torch.device("meta"))})
    assert fewest_threads(elsewhere) == 4
    monkeypatch.setattr(threads, "Stepping", fails)
    assert fewest_threads(MODEL) == 4
    use_threads(1)
    assert fewest_threads(MODEL) == 1


def test_a_real_model_decodes_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    with with_threads(2):
        assert fewest_threads(tiny_llama()) in (1, 2)


def test_many_tokens_at_once_have_the_threads_that_one_does_without() -> None:
    use_threads(2)
    use_threads(1)
    with with_most_threads():
        assert torch.get_num_threads() == 4
    assert torch.get_num_threads() == 1
    torch.set_num_threads(3)  # somebody else's wish
    with with_most_threads():
        assert torch.get_num_threads() == 3
    use_threads(5)
    with with_most_threads():
        assert torch.get_num_threads() == 5
