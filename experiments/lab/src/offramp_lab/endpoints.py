"""The endpoints of one model on the report part of a text: layers skipped, what the middle layers hold, ...

As `docs/preregistered.md` has them: P1 and P2 (`skipped`, `skipped_lens`), P3 and P4 (`representation`,
`representation_lens`), P5 (`calibration`), D1 (`required_depth`), and of family 6 the saving and the scores.
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp import (
    Document,
    InputError,
    Model,
    OfframpError,
    Trace,
    Workload,
    execute,
    load_model,
    score,
    trace,
    train_exits,
)
from offramp_lab import family
from offramp_lab.depth import RequiredDepth, answers_of, has_tokenizer_of, required_depth
from offramp_lab.runs import SKIPPED_THIRD
from offramp_lab.sources import NaturalKind, Part
from offramp_lab.text import LabText, sha256_of

ENDPOINTS = (
    "skipped",
    "skipped_lens",
    "representation",
    "representation_lens",
    "calibration",
    "required_depth",
    "skipped_code",
    "scores",
)
"""Of the registered study."""

CANDIDATES = {
    **dict.fromkeys(("representation", "increment", "calibration", "composite"), 1),
    **dict.fromkeys(("eas_logit", "eas_centred_logit", "eas_hidden"), 1),
    **dict.fromkeys(("mean_kl", "block_influence"), -1),
}
"""Scores that may tell savings beforehand, and the sign with which a larger one means more."""

ORACLE = "oracle_saturation"
"""What the saturation exit skips: shown beside the candidates, and none."""

CHARACTERS = 1 << 14
"""Of a document: nothing reads further, and to encode whole books would take longer than to measure."""

DRAWS = 40
"""Of documents behind intervals that nobody reads here: as few as there may be."""

THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""On an exit's largest probability."""


@dataclass(frozen=True)
class Asked:
    """What layers skipped are asked for: the agreement that must be kept, thresholds that are tried,
    ascending, and whether exits before a third of the depth are left out."""

    agreement: float = 0.95
    thresholds: tuple[float, ...] = THRESHOLDS
    from_third: bool = False

    def exits(self, layers: int) -> str:
        """The exits, as a policy takes them. From a third on, of 6 layers: 2 to 5."""
        first = math.ceil(layers / 3)
        return "+".join(map(str, range(first, layers))) if self.from_third else "all"


REGISTERED = Asked()
LOWER = (0.1, 0.15, 0.2, 0.25, *THRESHOLDS)
OF_REPLICATION = {
    name: Asked(agreement, LOWER, from_third=True)
    for name, agreement in zip(SKIPPED_THIRD, (0.8, 0.9), strict=True)
}
"""Endpoints of the replication."""

MEASURABLE = (*ENDPOINTS, *OF_REPLICATION)


@dataclass(frozen=True)
class Sizes:
    """How much is decoded, read and trained on: as `docs/preregistered.md` fixes it, less for a trial."""

    prompts: int = 32
    """Half of them prose, half code, or all code."""
    prompt_tokens: int = 64
    new_tokens: int = 48
    traced: int = 20_480
    """Tokens."""
    lens_tokens: int = 32_768
    """Of validation works."""
    lens_steps: int = 600
    context: int = 256
    """Tokens that are read at once, at most."""


PREREGISTERED = Sizes()


@dataclass(frozen=True)
class Point:
    """What one threshold did when it was executed.

    agreement: share of all new tokens that are the full model's choice on their own prefix. skipped: share of
    the layers of the tokens that were fed, all new ones but the last, that did not run. above: share of them
    above where tokens left: the same, but for recurrent layers, which propagation has to run.
    """

    value: float
    agreement: float
    skipped: float
    above: float


@dataclass(frozen=True)
class Skipped:
    """The share of layers skipped at the agreement asked for, and the executed thresholds, ascending.

    Between the two neighbouring thresholds around that agreement it is interpolated linearly in agreement. 0
    if the largest falls short; that of the smallest if this keeps it already: then it is a lower bound.
    above: likewise of the layers above where tokens left.
    """

    share: float
    above: float
    points: tuple[Point, ...]
    asked: Asked = REGISTERED

    @property
    def monotone(self) -> bool:
        """Whether agreement never fell from one executed threshold to the next: bisection supposes it."""
        return all(one.agreement <= two.agreement for one, two in itertools.pairwise(self.points))

    @property
    def bound(self) -> bool:
        """Whether the smallest threshold kept the agreement, so that at least so much is skipped."""
        smallest = self.points[0]
        return smallest.value == self.asked.thresholds[0] and smallest.agreement >= self.asked.agreement


def find_skipped(execute_at: Callable[[float], Point], asked: Asked = REGISTERED) -> Skipped:
    """Bisect for the smallest threshold that keeps the agreement. execute_at: decodes with one."""
    agreement, thresholds = asked.agreement, asked.thresholds
    points: dict[int, Point] = {}
    short, kept = -1, len(thresholds)  # the last place that falls short, the first that keeps it
    while kept - short > 1:
        place = (short + kept) // 2
        points[place] = execute_at(thresholds[place])
        short, kept = (short, place) if points[place].agreement >= agreement else (place, kept)
    executed = tuple(points[place] for place in sorted(points))
    if kept == len(thresholds):
        return Skipped(0.0, 0.0, executed, asked)
    above, below = points[kept], points.get(short)
    if below is None:
        return Skipped(above.skipped, above.above, executed, asked)
    part = (agreement - below.agreement) / (above.agreement - below.agreement)
    skipped = below.skipped + part * (above.skipped - below.skipped)
    return Skipped(skipped, below.above + part * (above.above - below.above), executed, asked)


def skipped_layers(
    model: Model,
    prompts: Sequence[Sequence[int]],
    new_tokens: int,
    heads: Any = None,
    asked: Asked = REGISTERED,
) -> Skipped:
    """Decode all prompts side by side with one threshold after the other, each to so many new tokens.

    Greedy, end tokens being tokens like others; K and V of skipped layers are propagated. heads: a lens that
    exits are read through. Raises OfframpError for logits that are not finite.
    """
    endless = replace(model, eos_token_ids=())

    def execute_at(value: float) -> Point:
        policy = f"threshold:signal=max_prob,value={value:g},exits={asked.exits(model.layers)}"
        rows = execute(endless, prompts, policy, kv="propagate", heads=heads, new_tokens=new_tokens)
        for row in rows:
            if row.problem is not None:
                raise OfframpError(f"decoding stopped: {row.problem}", where=f"{model.name}, {row.document}")
        new = sum(len(row.answer) for row in rows)
        whole = sum(len(row.answer) - 1 for row in rows) * model.layers
        agreeing = sum(sum(row.agrees) for row in rows)
        ran = sum(row.layers_executed for row in rows)
        left = sum(sum(row.exits[1:]) for row in rows)  # the first token is the prompt's
        return Point(value, agreeing / new, 1.0 - ran / whole, 1.0 - left / whole)

    return find_skipped(execute_at, asked)


def works_of(text: LabText, part: Part, kinds: Sequence[NaturalKind]) -> Workload:
    """Documents of some kinds, one of each in turn as long as it has any; those of a kind ordered by a hash.

    The order depends on their ids alone: the same for every model, and of all sources of a kind.
    Raises InputError for a kind that the part has not.
    """
    by_kind = []
    for kind in kinds:
        if not text.has(part, kind):
            raise InputError(
                f"the text has no {kind} in its {part} part",
                where=str(text.folder),
                fix=f"make one with more {kind}: offramp-lab text",
            )
        begun = (Document(one.id, one.text[:CHARACTERS]) for one in text.documents(part, kind))
        by_kind.append(sorted(begun, key=lambda one: sha256_of(f"offramp lab endpoint {one.id}")))
    sources = [one for one in text.record["sources"] if one["kind"] in kinds]
    return Workload(
        name=f"{part} works: {', '.join(kinds)}",
        mode="text",
        documents=tuple(one for one in chain.from_iterable(zip_longest(*by_kind)) if one is not None),
        licence=", ".join(sorted({one["licence"] for one in sources})),
        source=", ".join(one["name"] for one in sources),
    )


def prompts_of(
    model: Model, text: LabText, kinds: Sequence[NaturalKind], sizes: Sizes
) -> list[tuple[int, ...]]:
    """The first tokens, the beginning of a text among them, of the first documents that have so many.

    As many of each kind. Raises InputError where a kind has none.
    """
    found = []
    for kind in kinds:
        encoded = (model.encode(one.text) for one in works_of(text, "report", [kind]).documents)
        long = (tuple(ids[: sizes.prompt_tokens]) for ids in encoded if len(ids) >= sizes.prompt_tokens)
        found.append(list(itertools.islice(long, sizes.prompts // len(kinds))))
    fewest = min(map(len, found))
    if not fewest:
        raise InputError(
            f"no report work of {' or '.join(kinds)} has {sizes.prompt_tokens} tokens",
            where=str(text.folder),
            fix="make a text with more of it: offramp-lab text",
        )
    return [prompt for prompts in found for prompt in prompts[:fewest]]


def measure(
    source: str | Path | Model,
    text: LabText,
    *,
    endpoints: Sequence[str] = ENDPOINTS,
    seed: int = 0,
    sizes: Sizes = PREREGISTERED,
    device: str = "cpu",
    threads: int = 1,
    trust_remote_code: bool = False,
) -> Endpoints:
    """The endpoints of a model of the lab on the text that it was trained on, or of any model.

    source: a folder, a name as `offramp.load_model` takes it, in float32 on the device; or a loaded model. A
    model of another tokenizer than the text's reads the same works by its own, and has no required depth.
    endpoints: some of MEASURABLE. seed: of the lens, and of draws.

    Raises InputError for an unknown endpoint, and a text without prose or code; what offramp raises for what
    is no model, or one whose numbers are not finite.
    """
    if unknown := [name for name in endpoints if name not in MEASURABLE]:
        raise InputError(
            f"there is no endpoint {unknown[0]!r}",
            where="endpoints",
            fix=f"choose of: {', '.join(MEASURABLE)}",
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        family.register()
        model = source
        if not isinstance(model, Model):
            model = load_model(
                str(source), dtype="float32", device=device, trust_remote_code=trust_remote_code
            )
        found = Endpoints(model, text, seed, sizes)
        with model.evaluating():
            for name in MEASURABLE:
                if name in endpoints:
                    with found.timed(name):
                        found.measure(name)
        return found
    finally:
        torch.set_num_threads(before)


@dataclass
class Endpoints:
    """What is measured of one model; what several endpoints share is made once.

    values: figures by the name of their column in a table of runs; None for one that cannot be told, and
    `untold` then says why. executed: the thresholds behind the layers skipped, by column. depth: what is
    behind `required_depth`. seconds: of the processor, by endpoint, and apart of the "lens" of P2 and P4 and
    the "trace" of P3 and P5.
    """

    model: Model
    text: LabText
    seed: int
    sizes: Sizes
    values: dict[str, float | None] = field(default_factory=dict)
    untold: dict[str, str] = field(default_factory=dict)
    executed: dict[str, Skipped] = field(default_factory=dict)
    depth: RequiredDepth | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keep the seconds of something, less those of what is timed within it."""
        before, started = sum(self.seconds.values()), time.process_time()
        yield
        self.seconds[name] = time.process_time() - started - (sum(self.seconds.values()) - before)
        print(f"{self.model.name}: {name}, {self.seconds[name]:.1f} s", file=sys.stderr, flush=True)

    def measure(self, name: str) -> None:
        """One endpoint, and before it what it shares with others, if that is not there."""
        values = self.values
        if name.startswith("skipped"):
            kinds: tuple[NaturalKind, ...] = ("code",) if name == "skipped_code" else ("prose", "code")
            prompts = prompts_of(self.model, self.text, kinds, self.sizes)
            heads = self.lens if name == "skipped_lens" else None
            asked = OF_REPLICATION.get(name, REGISTERED)
            self.executed[name] = skipped_layers(self.model, prompts, self.sizes.new_tokens, heads, asked)
            values[name] = self.executed[name].share
        elif name == "representation":
            values[name] = score(self.traced, draws=DRAWS).representation.value
        elif name == "representation_lens":
            values[name] = score(
                self._trace(self._works("report"), self.lens), draws=DRAWS
            ).representation.value
        elif name == "calibration":
            first, second = halved_calibration(self.traced)
            values |= {name: (first + second) / 2, f"{name}_first": first, f"{name}_second": second}
        elif name == "required_depth":
            if has_tokenizer_of(self.model, self.text):
                self.depth = required_depth(answers_of(self.model, self.text, "report"), self.seed)
                self._put(name, self.depth.slope, self.depth.untold)
            else:
                self._put(name, None, "the model has another tokenizer than the text")
        else:
            self._scores()

    def _scores(self) -> None:
        """The candidates of family 6, and the oracle."""
        card = score(self._trace(works_of(self.text, "report", ["prose"])), draws=DRAWS)
        for name, sign in CANDIDATES.items():
            value = card.candidates[name]
            why = getattr(getattr(card, name, None), "undefined", None) or "there is no exit before the last"
            self._put(f"score_{name}", None if value is None else sign * value, why)
        self.values[ORACLE] = card.candidates["saturation_skip"]

    def _put(self, name: str, value: float | None, why: str) -> None:
        """A figure, or why there is none."""
        self.values[name] = value
        if value is None:
            self.untold[name] = why

    @cached_property
    def traced(self) -> Trace:
        """What P3 and P5 read."""
        with self.timed("trace"):
            return self._trace(self._works("report"))

    @cached_property
    def lens(self) -> Any:
        """The lens of P2 and P4: without classifiers and K,V maps, which nothing here reads."""
        works = [works_of(self.text, "validation", [kind]) for kind in self.text.kinds("validation")]
        with self.timed("lens"):
            return train_exits(
                self.model,
                works,
                kind="lens",
                at="all",
                steps=self.sizes.lens_steps,
                tokens=self.sizes.lens_tokens,
                seed=self.seed,
                context=self._context,
                classifiers=False,
                kv_maps=False,
                precision="bfloat16",
                progress=False,
            ).heads

    @property
    def _context(self) -> int:
        """Some kinds of models take texts of any length; all are to read the same."""
        return min(self.sizes.context, self.model.context_length or self.sizes.context)

    def _works(self, part: Part) -> Workload:
        return works_of(self.text, part, self.text.kinds(part))

    def _trace(self, works: Workload, heads: Any = None) -> Trace:
        return trace(self.model, works, self.sizes.traced, heads=heads, context=self._context, progress=False)


def halved_calibration(traced: Trace) -> tuple[float, float]:
    """P5: the mean over exits below L of their ECE against agreement, of either half of the documents.

    The halves are every other document in the order of SHA-256 of their ids.
    """
    places = sorted(np.unique(traced.document).tolist(), key=lambda one: sha256_of(traced.documents[one].id))

    def mean_error(half: Iterable[int]) -> float:
        errors = score(traced.subset(np.array([*half])), draws=DRAWS).curves.values["ece_agreement"]
        return float(np.mean(errors[:-1]))

    return mean_error(places[::2]), mean_error(places[1::2])
