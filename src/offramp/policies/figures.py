"""A policy with its figures: what it keeps and what it saves on some documents."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Generic

from typing_extensions import TypeVar

from offramp.kit.numbers import LARGEST_NUMBER, MOST_RUNS, SMALLEST_NUMBER, Count, Number, Proportion
from offramp.kit.rules import Must
from offramp.policies.cost_breakdown import Gain
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.scoring.estimate import Estimate

PLAIN_DECODING = Never()
"""Plain decoding: the policy that is no exit at all."""

NEVER = str(PLAIN_DECODING)
"""The name of plain decoding among decoders, and the text of its policy."""

Figure = TypeVar("Figure", default=Estimate)
"""What a figure is: an estimate with its interval over documents, or the mean alone."""

_ROUNDING = 1e-6


def _from(least: float, most: float, what: str) -> Must:
    """A figure whose numbers, those that are not undefined, lie between the two."""

    def holds(figure: Estimate | float) -> bool:
        found = (figure.value, figure.low, figure.high) if isinstance(figure, Estimate) else (figure,)
        return all(number is None or least <= number <= most for number in found)

    return Must(holds, what)


ShareOf = Annotated[Figure, _from(-_ROUNDING, 1 + _ROUNDING, "a share from 0 to 1")]
SkippedOf = Annotated[Figure, _from(-MOST_RUNS, 1 + _ROUNDING, "a share of 1 at most")]
"""Below 0 where wrong drafts are run for nothing."""
PositiveOf = Annotated[Figure, _from(SMALLEST_NUMBER, LARGEST_NUMBER, "above 0")]
"""Of a speed, or of what a token costs."""
NotNegativeOf = Annotated[Figure, _from(-_ROUNDING, LARGEST_NUMBER, "at least 0")]


@dataclass(frozen=True, kw_only=True)
class KeptAndSaved(Generic[Figure]):
    """What a policy keeps and saves, replayed or decoded.

    A record that says more of it has these fields, here and in its file.
    """

    agreement: ShareOf[Figure]
    """Share of tokens whose output is the full model's."""
    skip_ratio: SkippedOf[Figure]
    """Share of the full model's layers that are not executed, sooner or later."""
    net_speedup: PositiveOf[Figure]
    """Plain cost over the policy's: in seconds on a machine, or in bytes moved."""
    reference_agreement: ShareOf[Figure] | None = None
    """Agreement with the untransformed full model, None for a model without transforms."""
    gain: Gain | None = None
    """What each part of a step saves, None where that is not known of a batch, or without documents."""


@dataclass(frozen=True, kw_only=True)
class PolicyOutcome(KeptAndSaved[Figure]):
    """A policy with what it keeps and saves."""

    policy: ExitPolicy
    """Written as its text; `Never` is plain decoding."""
    kv: str
    """The strategy for keys and values of skipped layers that it is charged for, or decodes with."""
    reachable: bool = True
    """Whether a decoder could follow it; an oracle it could not."""

    @property
    def plain(self) -> bool:
        """Whether it is plain decoding, and no policy at all."""
        return self.policy == PLAIN_DECODING


@dataclass(frozen=True, kw_only=True)
class PolicyFigures(PolicyOutcome[Figure]):
    """The same on some documents, by the cost of each part, as a stopwatch does not know it."""

    probe_share: Proportion
    """Share of the policy's cost that its probes take."""


def shared_fields(record: object, kind: type[Any]) -> dict[str, Any]:
    """The fields that a record has of a kind that it derives from: another of that kind is made with them."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(kind)}


@dataclass(frozen=True)
class FreeRunning:
    """Quality of generated answers, judged by the full model (`decoding/judging.py`): means over prompts."""

    tokens_before_divergence: NotNegativeOf[Estimate[Number]]
    """New tokens up to the first that differs from the full model's own greedy answer."""
    sequence_match: ShareOf[Estimate[Number]]
    """Share of answers equal to it."""
    agreement: ShareOf[Estimate[Number]]
    """Share of generated tokens, without the first of each answer, that are the full model's choice on the
    same (generated) prefix."""
    nll: NotNegativeOf[Estimate[Number]]
    """Nats per token under the full model of what was generated."""
    plain_nll: NotNegativeOf[Estimate[Number]]
    """The same of the full model's own answer."""
    prompts: Count
    new_tokens: Count
