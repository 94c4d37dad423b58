"""How exits are trained: everything that decides their weights, but for the model and the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from offramp.errors import InputError
from offramp.kit.defaults import TRAINING_MINUTES, TRAINING_ROWS
from offramp.kit.numbers import require_bounded, require_fitting_seed
from offramp.lab.exits.divergence import PRECISIONS, Precision
from offramp.lab.exits.kinds import EXECUTED, KINDS, REGULARISED, check_kind
from offramp.lab.exits.layer_skip import fewest_steps
from offramp.lab.exits.regularisation import Regularisation
from offramp.tracing.request import LOSS_VOCABULARY, parse_exits
from offramp.workloads.packing import require_sizes

SEQUENCE_BATCH = 512
"""Positions of a step where the model itself is trained, at most: whole sequences, or one that is longer."""

RATE = 1e-3
WHOLE_RATE = 5e-5
"""Of all weights of a model; low ranks take RATE."""
EXECUTED_RATE = 0.02
"""Of changes of K,V maps, relative to their size (`offramp.lab.exits.trainable_maps`)."""
LEAVE, MOST_LEAVE = 0.3, 0.9
"""Share of the tokens that leave while K,V maps are trained, and the largest."""

MINIMUM_LOGITS = 256
"""Fewest tokens of a vocabulary of the loss."""

UNITS_PER_HIDDEN = 8 / 3
"""Units of a block over the hidden size: three matrices then hold as much as two of four times the size
(arXiv 2002.05202, section 2)."""


@dataclass(frozen=True)
class Recipe:
    """One training.

    at: exits, ascending, below L. tokens: to read, those held out included. steps, minutes: one of them None;
    minutes, of all of it, become tokens and steps by pilots. batch: positions a step. rate: the largest
    learning rate. units: of a block, 0 for other kinds. rank: of the lenses, 0 where they are whole. shared:
    whether all exits use one network. loss_vocabulary: tokens that the loss looks at, 0 for all.
    precision: of the products with the output head in training, "auto" for the usual of the device. leave:
    share of the tokens that leave while K,V maps are trained, 0 for other kinds. regularisation: of the kind
    "regularised", None for others.
    """

    kind: str
    at: tuple[int, ...]
    tokens: int
    steps: int | None
    minutes: float | None
    seed: int
    units: int
    loss_vocabulary: int
    batch: int = TRAINING_ROWS
    rate: float = RATE
    context: int | None = None
    precision: Precision | str = "auto"
    leave: float = 0.0
    regularisation: Regularisation | None = None
    rank: int = 0
    shared: bool = False

    @property
    def fewest_steps(self) -> int:
        """Steps in which each exit is looked at once."""
        if self.regularisation is None:
            return 1
        return fewest_steps(self.at, self.regularisation.curriculum)


def make_recipe(
    *,
    layers: int,
    hidden: int,
    vocabulary: int,
    kind: str,
    at: str | Sequence[int] | None,
    leave: float | None,
    mapped: Sequence[int],
    tokens: int,
    steps: int | None,
    minutes: float | None,
    seed: int,
    units: int | None,
    loss_vocabulary: int | None,
    context: int | None,
    precision: str,
    regularisation: Regularisation | None = None,
    rank: int | None = None,
    shared: bool = False,
) -> Recipe:
    """The recipe that is asked for, checked against the sizes of a model.

    mapped: the exits that have K,V maps to train. Raises InputError.
    """
    check_kind(kind)
    require_sizes(tokens=tokens, context=context)
    check_length(steps, minutes, seed)
    check_network(kind, units, shared)
    has_units = kind in KINDS and KINDS[kind].has_units
    _check_rank(kind, rank, hidden)
    if precision not in ("auto", *PRECISIONS):
        raise InputError(
            f"products cannot be in {precision!r}",
            where="precision=",
            fix=f"give auto, {' or '.join(PRECISIONS)}",
        )
    check_loss_vocabulary(loss_vocabulary)
    check_leave(kind, leave)
    if loss_vocabulary is None:
        loss_vocabulary = LOSS_VOCABULARY if kind in KINDS else 0
    regularisation = _regularisation(kind, regularisation)
    exits = _exits(kind, at, mapped, layers)
    if not exits:
        raise InputError(
            "there is no exit below the last layer to train",
            where="at= (--at)",
            fix=f"choose among 1 to {layers - 1}",
        )
    found = Recipe(
        kind=kind,
        at=exits,
        tokens=tokens,
        steps=steps,
        minutes=TRAINING_MINUTES if steps is None and minutes is None else minutes,
        seed=seed,
        units=(units or _default_units(hidden)) if has_units else 0,
        loss_vocabulary=0 if loss_vocabulary >= vocabulary else loss_vocabulary,
        batch=TRAINING_ROWS if regularisation is None else SEQUENCE_BATCH,
        context=context,
        precision=precision,
        rate=_rate(kind, regularisation),
        leave=0.0 if kind != EXECUTED else LEAVE if leave is None else leave,
        regularisation=regularisation,
        rank=rank or 0,
        shared=shared,
    )
    if steps is not None and steps < found.fewest_steps:
        raise InputError(
            f"{steps} steps do not look at each of {len(exits)} exits once",
            where="steps= (--steps)",
            fix=f"give {found.fewest_steps} or more, or fewer exits",
        )
    return found


MOST_STEPS, MOST_UNITS = 100_000_000, 65_536
"""Years of training, and more than the networks of models of 70 billion parameters have."""


def check_length(steps: int | None, minutes: float | None, seed: int) -> None:
    """Refuse, before a model is there, a training that cannot be so long, and a seed that cannot be.

    Raises InputError.
    """
    require_sizes(steps=steps)
    if steps is not None and steps > MOST_STEPS:
        raise InputError(
            f"{steps:,} steps would never end", where="steps= (--steps)", fix=f"give {MOST_STEPS:,} at most"
        )
    if steps is not None and minutes is not None:
        raise InputError(
            "both steps and minutes of training are given", where="steps= (--steps)", fix="give one of them"
        )
    require_bounded(minutes=minutes)
    if minutes is not None and not minutes > 0:
        raise InputError(
            f"training cannot take {minutes:g} minutes",
            where="minutes= (--minutes)",
            fix="give a number above 0",
        )
    require_fitting_seed(seed)


def check_network(kind: str, units: int | None, shared: bool) -> None:
    """Refuse a network of no units, or where a kind of exits has none. Raises InputError."""
    require_sizes(units=units)
    if units is not None and units > MOST_UNITS:
        raise InputError(
            f"a network of {units:,} units at an exit costs more than the model",
            where="units= (--units)",
            fix=f"give {MOST_UNITS:,} at most",
        )
    if kind in KINDS and KINDS[kind].has_units:
        return
    if units is not None:
        raise InputError(
            f"exits of the kind {kind} have no units", where="units= (--units)", fix="leave it out"
        )
    if shared:
        raise InputError(
            f"exits of the kind {kind} have no network to share",
            where="shared= (--shared)",
            fix="leave it out",
        )


def check_leave(kind: str, leave: float | None) -> None:
    """Refuse a share of the tokens that cannot leave, or where none leave in training. Raises InputError."""
    if leave is None:
        return
    if kind != EXECUTED:
        raise InputError(
            f"no tokens leave while exits of the kind {kind} are trained",
            where="leave= (--leave)",
            fix="leave it out",
        )
    if not 0 < leave <= MOST_LEAVE:
        raise InputError(
            f"a share of {leave:g} of the tokens cannot leave",
            where="leave= (--leave)",
            fix=f"give a number above 0, {MOST_LEAVE:g} at most",
        )


def check_loss_vocabulary(tokens: int | None) -> None:
    """Refuse a loss that looks at too few tokens. Raises InputError."""
    if tokens and tokens < MINIMUM_LOGITS:
        raise InputError(
            f"a loss over {tokens} tokens says little",
            where="loss_vocabulary= (--loss-vocabulary)",
            fix=f"give {MINIMUM_LOGITS} or more, or 0 for all",
        )


def _check_rank(kind: str, rank: int | None, hidden: int) -> None:
    """Refuse a lens of low rank where there is no lens, or where it would cost more than a whole one."""
    if rank is None:
        return
    if kind not in KINDS:
        raise InputError(f"exits of the kind {kind} have no lens", where="rank= (--rank)", fix="leave it out")
    if not 1 <= rank <= hidden // 2:
        raise InputError(
            f"a lens of rank {rank} is not possible, or costs more than a whole one of {hidden} x {hidden}",
            where="rank= (--rank)",
            fix=f"give 1 to {hidden // 2}, or leave it out for a whole lens",
        )


def refuse_needless(kind: str, given: Mapping[str, object]) -> None:
    """Raise InputError for an option that says nothing for a kind. given: by name, None where left out."""
    for name, value in given.items():
        if value is not None:
            raise InputError(
                f"{name} says nothing for exits of the kind {kind}", where=name, fix="leave it out"
            )


def _rate(kind: str, regularisation: Regularisation | None) -> float:
    if kind == EXECUTED:
        return EXECUTED_RATE
    return RATE if regularisation is None or regularisation.lora else WHOLE_RATE


def _regularisation(kind: str, given: Regularisation | None) -> Regularisation | None:
    if kind != REGULARISED:
        if given is not None:
            raise InputError(
                f"exits of the kind {kind} leave the model as it is",
                where="regularisation=",
                fix="leave it out, or train the kind regularised",
            )
        return None
    return given or Regularisation()


def _exits(kind: str, at: str | Sequence[int] | None, mapped: Sequence[int], layers: int) -> tuple[int, ...]:
    """The exits below L that are asked for; those with maps by default, where these are trained."""
    if at is None:
        if kind != EXECUTED:
            raise InputError("it is not said which exits to train", where="at= (--at)", fix="write 12,20")
        return tuple(mapped)
    exits = parse_exits(at if isinstance(at, str) else list(at), layers, "at= (--at)")[:-1]
    if kind == REGULARISED and 1 in exits:
        raise InputError(
            "exit 1 has no weight in the loss of LayerSkip, and would not be trained",
            where="at= (--at)",
            fix=f"choose among 2 to {layers - 1}",
        )
    without = [exit for exit in exits if kind == EXECUTED and exit not in mapped]
    if without:
        raise InputError(
            f"the heads have no K,V maps at exit {without[0]}; they have: {', '.join(map(str, mapped))}",
            where="at= (--at)",
            fix="choose among these, or fit maps there first: offramp heads fit --kv-maps",
        )
    return tuple(exits)


def _default_units(hidden: int) -> int:
    """A multiple of 64 where the size is that large."""
    units = UNITS_PER_HIDDEN * hidden
    return 64 * round(units / 64) if units >= 64 else round(units)
