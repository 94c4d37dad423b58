"""How many tokens are drafted before a verification: a fixed number, or what has paid so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from offramp.costs.probes import ProbeSizes
from offramp.decoding.engine.engine import Engine
from offramp.policies.policy import ExitPolicy

Rows = Callable[[int], float]
"""Cost of running one layer, or the head, for so many rows at once; for one row it is 1."""

FEW_ROWS = 0.25
"""What a further row costs where products of few rows run the faster way."""

FORGETTING = 0.9
"""Weight of what was seen a round earlier."""

TRUSTED = (2.0, 3.0)
"""Accepted and judged drafts that are assumed before any was made."""

SHORTEST_PAUSE, LONGEST_PAUSE = 8, 128
"""Tokens decoded plainly between two tries while drafting does not pay."""


def each_costs(share: float) -> Rows:
    """Every row beyond the first costs this share of it."""
    return lambda rows: 1.0 + share * (rows - 1)


@dataclass(frozen=True)
class Auto:
    """Settings of an adaptive draft length.

    rows: see `Rows`; by default each further row costs 0.6 of the first, as in float32 on a small processor.
    head, exit_head: what the full model's head and that of an exit cost, in layers; None: by their
    parameters. longest: never more drafts.
    """

    rows: Rows = field(default_factory=lambda: each_costs(0.6))
    head: float | None = None
    exit_head: float | None = None
    longest: int = 8


class AdaptiveLength:
    """The draft length with the most tokens per cost, as far as the drafts so far tell.

    With n drafts of which each is right with probability a, a round gives (1 - a^(n+1)) / (1 - a) tokens
    (Leviathan et al., arXiv 2211.17192, equation 1). It costs, in layers, with e the mean exit of drafts, h
    the head, x an exit's and r(.) the cost of rows: n + 1 rows through layers 1..e one by one, n exit heads,
    and the rest with the head as one block: (n + 1) e + n x + (L - e + h) r(n + 1). The best n in 0..longest
    is taken, where 0 decodes plainly, without asking the policy, for L + h.

    a = (2 + accepted) / (3 + judged), e and both counts with weights that fall by 0.9 a round; before the
    first draft e is the policy's shallowest exit. A length of 0 teaches nothing, so that after a pause of 8
    tokens one is drafted, and each pause in a row is twice as long, up to 128; but nothing is tried where
    not even right drafts (a = 1) would pay. All follows from which drafts were accepted, nothing from a
    clock: the same run repeats itself.
    """

    def __init__(self, settings: Auto, layers: int, head: float, exit_head: float, shallowest: float) -> None:
        self._settings = settings
        self._layers = layers
        self._head = head
        self._exit_head = exit_head
        self._exit = shallowest
        self._accepted = self._judged = self._exits = self._drafts = 0.0
        self._pause = SHORTEST_PAUSE
        self._left = 0

    def next(self) -> int:
        """The longest draft of the next round: the best, 1 to find out, or 0 to decode a token plainly."""
        if not self.best(1.0):
            return 0
        if self._left:
            self._left -= 1
            return 0 if self._left else 1
        right = (TRUSTED[0] + self._accepted) / (TRUSTED[1] + self._judged)
        best = self.best(right) if self._drafts else 1
        if best:
            self._pause = SHORTEST_PAUSE
        else:
            self._left = self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return best

    def best(self, right: float) -> int:
        """The length with the most tokens per cost if drafts are right with this probability."""
        return max(range(self._settings.longest + 1), key=lambda length: (self._gain(length, right), -length))

    def _gain(self, length: int, right: float) -> float:
        """Tokens per cost of a round; see the class."""
        tokens = sum(right**draft for draft in range(length + 1))
        exit = self._exit if length else 0.0
        below = (length + 1) * exit + length * self._exit_head
        return tokens / (below + (self._layers - exit + self._head) * self._settings.rows(length + 1))

    def learn(self, accepted: int, rejected: bool, exits: list[int]) -> None:
        """Count a round, and let the older ones fade; a round without drafts teaches nothing.

        accepted: drafts kept. rejected: whether the next one was wrong. exits: of all its drafts.
        """
        if exits:
            self._accepted = FORGETTING * self._accepted + accepted
            self._judged = FORGETTING * self._judged + accepted + rejected
            self._exits = FORGETTING * self._exits + sum(exits)
            self._drafts = FORGETTING * self._drafts + len(exits)
            self._exit = self._exits / self._drafts


def draft_length_of(value: int | str | Auto, engine: Engine, policy: ExitPolicy) -> AdaptiveLength | int:
    """What a caller's draft length means for a policy: a number, "auto", or settings of it."""
    if isinstance(value, int):
        return value
    usual = Auto(rows=each_costs(FEW_ROWS)) if any(engine.linears) else Auto()
    settings = value if isinstance(value, Auto) else usual
    head = settings.head if settings.head is not None else head_in_layers(engine)
    exit_head = settings.exit_head
    if exit_head is None:
        exit_head = head * _share_of_vocabulary(engine) if policy.short_list else head
    shallowest = min(policy.leaves_at(engine.layers), default=engine.layers)
    return AdaptiveLength(settings, engine.layers, head, exit_head, shallowest)


def head_in_layers(engine: Engine) -> float:
    """Parameters of the output head over those of a layer: about what its product costs, in layers."""
    stack = engine.stack
    layers = sum(parameter.numel() for layer in set(stack.layers) for parameter in layer.parameters())
    head = sum(parameter.numel() for parameter in stack.head.parameters()) if stack.head else 0
    return head * len(set(stack.layers)) / layers


def _share_of_vocabulary(engine: Engine) -> float:
    vocabulary = int(engine.hf.config.get_text_config().vocab_size)
    return min(1.0, ProbeSizes().shortlist / vocabulary)
