"""The interface of KV strategies: each advances the sequences by one step and keeps later tokens possible."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.engine import Engine
from offramp.decoding.engine.meter import Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.generation.next_token import Chooser
from offramp.decoding.generation.policy_driver import PolicyDriver
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.state_maps import StateMaps


@dataclass(frozen=True)
class Work:
    """What a strategy works with during one generation.

    sequences: fed up to the prompt's end, which has run all layers. driver: the policy at work, and the
    exits' readings. chooser: from logits to tokens (processors, sampling, forced tokens). tokens: of the
    whole batch so far, int64 [batch, length], also where sequences hold the rows that are not over only.
    limit: new tokens that are wanted in all, None for no limit; end_tokens: those that end a row: both end a
    round of drafts early. maps: what skipped layers are given, for the strategy that maps.
    """

    engine: Engine
    options: DecodingOptions
    sequences: Sequences
    driver: PolicyDriver
    chooser: Chooser
    meter: Meter
    tokens: Callable[[], Tensor]
    limit: int | None = None
    end_tokens: tuple[int, ...] = ()
    maps: StateMaps | None = None


@dataclass(frozen=True)
class Request:
    """What is asked of a strategy, before anything runs.

    layers, dtype: of the model. batch: sequences. processors: transformers' logits processors in their order.
    padded: some row has padding on its left.
    """

    options: DecodingOptions
    layers: int
    dtype: str
    batch: int = 1
    processors: tuple[Any, ...] = ()
    padded: bool = False


@dataclass(frozen=True)
class Advance:
    """What one step gives.

    tokens, chosen, exits: int64 [batch, new >= 1], the next tokens to be fed, what was chosen in their place,
    and where each prediction left (by each row's own policy under "rebatch", the batch's exit in lockstep).
    scores: float32 [batch, new, vocabulary], the processed logits that they were chosen from, on demand of
    stopping criteria and transformers' callers. layers: int64 [batch], layers executed for each
    row in this step, None if every row's share of what ran is the same.
    """

    tokens: Tensor
    chosen: Tensor
    exits: NDArray[np.int64]
    scores: Tensor
    layers: NDArray[np.int64] | None = None


class Strategy(ABC):
    """One way to let later tokens find the K and V of skipped layers.

    exact: what is exact and what is approximate, in one sentence. lossless: whether every output is the full
    model's. drops: whether rows that are over can leave the batch between two steps (see `keep_rows`).
    drafted, accepted: drafts made and kept so far, of strategies that draft.

    A strategy counts its own items, "overhead" included: once for each step, with the rows that it advances.
    A non-finite logit ends the generation by itself: `Chooser` raises.
    """

    name: ClassVar[str]
    exact: ClassVar[str]
    lossless: ClassVar[bool] = False
    drops: ClassVar[bool] = True

    drafted: int = 0
    accepted: int = 0

    def __init__(self, work: Work) -> None:
        self.work = work

    # Not abstract: most strategies refuse nothing.
    @classmethod  # noqa: B027
    def check(cls, request: Request) -> None:
        """Raise InputError for a request that it cannot meet."""

    # Not abstract: most strategies hold nothing between two steps.
    def keep_rows(self, rows: Tensor) -> None:  # noqa: B027
        """The sequences now hold these of their rows only, int64; so must all that waits."""

    @abstractmethod
    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], which have run no layer yet, and predict what follows.

        Tokens and what is returned are of the whole batch, whichever rows are present.
        """
