"""What tests of the bench share: fake contenders on their own clock, made-up results, and tiny models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest
from tracing_models import NumberTokenizer, build_family, tiny_model

from offramp.decoding.generation.prompts import PromptBatch
from offramp.decoding.options import DecodingOptions
from offramp.models.model import Model
from offramp.policies.cost_breakdown import Gain
from offramp.scoring.estimate import Estimate
from offramp.timing import decoder, stopping
from offramp.timing.bench import Measurement, run, settle
from offramp.timing.contenders import GENERATE, WITHOUT_PEERS, Extent
from offramp.timing.decoder import DecodedBatch, Decoder, Running, Setting
from offramp.timing.results import BenchResult, Cluster, Contender, Counted
from offramp.timing.stopping import TimeLimits


class Padding(NumberTokenizer):
    """The tokenizer of numbers with what decoding asks of one besides."""

    pad_token_id: int | None = None


def family_model(name: str) -> Model:
    """A small random model of a family."""
    return tiny_model(build_family(name), name=name, tokenizer=Padding())


class Clock:
    """Time that passes only when a fake contender lets it. log: whose turn it was, and how many tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.log: list[tuple[str, int]] = []
        fake = SimpleNamespace(perf_counter=lambda: self.now, monotonic=lambda: self.now)
        for module in (stopping, decoder):
            monkeypatch.setattr(module, "time", fake)


@dataclass
class FakeRunning(Running):
    """Decodes `at_once` tokens a step, each of `seconds` by the clock."""

    clock: Clock
    name: str
    prompts: PromptBatch
    seconds: Callable[[Clock], float]
    at_once: int
    new_tokens: int
    made: int = 1

    @property
    def count(self) -> int:
        return self.made

    def step(self) -> None:
        new = min(self.at_once, self.new_tokens - self.made)
        self.clock.now += new * self.seconds(self.clock)
        self.clock.log.append((self.name, new))
        self.made += new

    def finish(self, first_seconds: float, seconds: float) -> DecodedBatch:
        rows = tuple(tuple(range(self.new_tokens)) for _ in self.prompts.ids)
        return DecodedBatch(rows, first_seconds, seconds)


@dataclass
class Fake:
    """A contender whose token takes so many seconds. prompt: seconds that a prompt takes."""

    clock: Clock
    name: str
    seconds: float | Callable[[Clock], float]
    at_once: int = 1
    prompt: float = 0.0
    role: str = "policy"
    stepping: bool = True
    note: str | None = None
    full_depth: bool = False
    short_list: bool = False
    prompts_seen: list[int] = field(default_factory=list)

    def start(self, prompts: PromptBatch, new_tokens: int) -> Running:
        self.clock.now += self.prompt
        self.prompts_seen.append(prompts.ids.shape[1])
        given = self.seconds
        each = given if callable(given) else lambda clock: float(given)  # type: ignore[arg-type]
        return FakeRunning(self.clock, self.name, prompts, each, self.at_once, new_tokens)

    @property
    def decoder(self) -> Decoder:
        way = {"start": self.start} if self.stepping else {"whole": self.whole}
        about = {"note": self.note, "full_depth": self.full_depth, "short_list": self.short_list}
        return Decoder(self.name, self.role, **way, **about)  # type: ignore[arg-type]

    def whole(self, prompts: PromptBatch, new_tokens: int) -> DecodedBatch:
        """At a stretch."""
        return replace(Decoder(self.name, self.role, self.start).decode(prompts, new_tokens), blocks=())


def made_up_result(*further: Contender, **changes: Any) -> BenchResult:
    """A sound result of a policy that is twice as fast as plain decoding."""
    clusters = tuple(Cluster(0, prompt, 0.69, 8) for prompt in range(3))
    policy = Contender(
        name="static:exit=3 (propagate)", role="policy", answer="faster", ratio=Estimate(2.0, 1.9, 2.1),
        resolution=0.05, clusters=clusters, samples=(0.05, 0.05, 0.05),
        seconds_per_token=Estimate(0.05, 0.049, 0.051), first_token_seconds=0.5, tokens_per_second=20.0,
        counted=Counted(3.0, 1.0, 0.0, 1e6, 2e6), layers_per_token=3.0, claimed_layers_per_token=3.0,
        same_output=0.5, executed_agreement=Estimate(0.9), gain=Gain(0.4, 0.1, 0.0),
    )  # fmt: skip
    plain = Contender(
        GENERATE, "plain", "equivalent", Estimate(1.0, 1.0, 1.0), 0.0, seconds_per_token=Estimate(0.1)
    )
    again = Contender(f"{GENERATE} again", "a/a", "equivalent", Estimate(1.0, 0.99, 1.01), 0.01, clusters)
    values: dict[str, Any] = {
        "model": "fake", "policy": "static:exit=3", "kv": "propagate", "batch": 1, "batching": "lockstep",
        "new_tokens": 5, "prompts": 3, "rounds": 1, "worth": 0.05, "plain": GENERATE,
        "contenders": (policy, plain, again, *further), "defects": (), "a_a": Estimate(1.0, 0.98, 1.02),
        "stopped": "answered", "seconds_spent": 41.5, "circumstances": {"cores": 2, "threads": 2},
    }  # fmt: skip
    return BenchResult(**{**values, **changes})


def settled(
    model: Model,
    policy: str,
    *,
    prompts: Sequence[Sequence[int]],
    cells: Sequence[tuple[str, str]] = (),
    kv: str | None = None,
    batch: int = 1,
    task: str | None = None,
    **options: Any,
) -> Setting:
    """What is timed, with the options as `offramp.bench` takes them."""
    pairs = ((policy, kv), *cells)
    asked = [DecodingOptions.read(one, kv=way, **options).for_task(task) for one, way in pairs]
    return settle(model, asked, prompts=prompts, batch=batch, task=task)


def measure(
    model: Model, policy: str, *, rounds: int, seconds: float = 3600.0, peers: bool = True, **options: Any
) -> Measurement:
    """A bench with what was decoded; time enough for peers, however busy it is. options: of `settled`."""
    setting = settled(model, policy, **options)
    return run(setting, limits=TimeLimits(seconds, rounds), extent=Extent() if peers else WITHOUT_PEERS)
