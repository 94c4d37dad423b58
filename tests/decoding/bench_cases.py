"""What tests of the bench share: fake contenders whose seconds and tokens are given, and tiny models."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tracing"))

from tracing_models import NumberTokenizer, build_family, tiny_model

from offramp.decoding.bench.contenders import GENERATE, NEVER, NEVER_AGAIN, Cell, Setting
from offramp.decoding.bench.entrant import Decoded, Entrant, batches_of
from offramp.decoding.bench.results import BenchResult
from offramp.decoding.bench.summary import summarise
from offramp.decoding.bench.turns import Trial
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy

LAYERS, NEW_TOKENS = 6, 5
QUIET: dict[str, Any] = {"cores": 2, "threads": 2, "other_load": 0.05, "omp_wait_policy": "passive"}
PROMPT_LENGTHS = (2, 3)
TOKENS = ((1, 2, 3, 4, 5),), ((6, 7, 8, 9, 10),)
"""Of each batch of one prompt."""


class Padding(NumberTokenizer):
    """The tokenizer of numbers with what decoding asks of one besides."""

    pad_token_id: int | None = None


def family_model(name: str) -> Model:
    """A small random model of a family."""
    return tiny_model(build_family(name), name=name, tokenizer=Padding())


def fake_setting(policy: str = "static:exit=3") -> Setting:
    """Two prompts, one after the other, for a model that is only a number of layers."""
    model: Any = SimpleNamespace(name="fake", shown_name="fake", layers=LAYERS, dtype="float32")
    prompts = batches_of([[1] * length for length in PROMPT_LENGTHS], 1)
    return Setting(model, prompts, NEW_TOKENS, (Cell(parse_policy(policy)),), distinct=2)


@dataclasses.dataclass(frozen=True)
class Fake:
    """A contender: seconds per token of each timed decoding, what it says that it ran, and what ran."""

    name: str
    role: str
    seconds: Sequence[float]
    claimed: float | None = LAYERS
    counted: float = LAYERS
    tokens: Sequence[tuple[tuple[int, ...], ...]] = TOKENS
    must_match: bool = False

    def decoded(self, place: int, seconds: float) -> Decoded:
        rows = self.tokens[place % len(self.tokens)]
        claimed = None if self.claimed is None else rows_times_layers(place, self.claimed)
        return Decoded(rows, 0.5, seconds * (NEW_TOKENS - 1), claimed_layers=claimed)

    @property
    def trial(self) -> Trial:
        counted = tuple(rows_times_layers(place, self.counted) for place in range(2))
        return Trial((self.decoded(0, 9.0), self.decoded(1, 9.0)), counted, 2**20)


def rows_times_layers(place: int, layers: float) -> int:
    """The prompt at full depth, then so many layers for each fed new token."""
    return round(PROMPT_LENGTHS[place % 2] * LAYERS + (NEW_TOKENS - 1) * layers)


def fakes(*further: Fake, seconds: float = 0.1, again: Sequence[float] | None = None) -> list[Fake]:
    """A quiet run of three rounds on two prompts, in which the policy takes half the time."""
    same = [seconds] * 6
    return [
        Fake("static:exit=3 (propagate)", "policy", [seconds / 2] * 6, claimed=3, counted=3),
        Fake(NEVER, "plain", same, must_match=True),
        Fake(GENERATE, "plain", [1.1 * seconds] * 6, must_match=True),
        Fake(NEVER_AGAIN, "a/a", same if again is None else again, must_match=True),
        *further,
    ]


def result_of(contenders: Sequence[Fake], **circumstances: Any) -> BenchResult:
    """What is made of them."""
    entrants = [Entrant(fake.name, fake.role, _undecodable, fake.must_match) for fake in contenders]
    return summarise(
        fake_setting(),
        entrants,
        {fake.name: fake.trial for fake in contenders},
        {fake.name: [fake.decoded(*pair) for pair in enumerate(fake.seconds)] for fake in contenders},
        QUIET | circumstances,
    )


def _undecodable(prompts: Any, new_tokens: int) -> Decoded:
    raise AssertionError("it has decoded already")


def recording(name: str, log: list[tuple[str, int]], decoded: Callable[[], Decoded] | None = None) -> Entrant:
    """A contender that notes its turn and the length of the prompts."""

    def decode(prompts: Any, new_tokens: int) -> Decoded:
        log.append((name, prompts.ids.shape[1]))
        return decoded() if decoded is not None else Decoded(((0,) * new_tokens,), 0.1, 0.3)

    return Entrant(name, "plain", decode)


def hook_count(hf: torch.nn.Module) -> int:
    """Hooks of all kinds on all modules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in hf.modules() for kind in kinds)
