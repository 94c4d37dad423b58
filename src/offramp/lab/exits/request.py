"""What a training of exits is asked for: one request for each kind, with what means something for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from offramp.errors import InputError
from offramp.files import require_writable
from offramp.kit.defaults import SEED, SHORTLIST, TRAINING_MINUTES
from offramp.kit.numbers import Count, FittingSeed, Minutes
from offramp.kit.request import Request, flags, one_word, python_only
from offramp.lab.exits.regularisation import Regularisation
from offramp.tracing.asked import InContext, OnModel
from offramp.tracing.request import LOSS_VOCABULARY, TRAINING_TOKENS, parse_exits

if TYPE_CHECKING:
    from offramp.tracing.exit_heads import ExitHeads
    from offramp.workloads.workload import Workload

MOST_STEPS, MOST_UNITS = 100_000_000, 65_536
"""Years of training, and more than the networks of models of 70 billion parameters have."""

LEAVE, MOST_LEAVE = 0.3, 0.9
"""Share of the tokens that leave while K,V maps are trained, and the largest."""

MINIMUM_LOGITS = 256
"""Fewest tokens of a vocabulary of the loss."""

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class ExitsTraining(OnModel, InContext):
    """What is asked of a training of every kind. In Python the model is at hand, and its name only shown."""

    kind: ClassVar[str]

    workloads: Annotated[str | Workload | Sequence[str | Workload], flags("--workload", "-w")]
    """What to train on; may be repeated: prose, code, chat, math, txt:PATH, jsonl:PATH#field."""
    output: Annotated[Path | str | None, flags("--output", "-o")]
    """A folder. What was killed goes on there; gates, which take minutes, begin anew."""
    at: Annotated[str | Sequence[int] | None, one_word] = None
    """Exits to train: 12,20, or all; gates, executed: all of --from."""
    steps: Count | None = None
    """Steps in the place of minutes: the same command then gives the same exits. Of gates by default some 40
    passes over their rows."""
    tokens: Count = TRAINING_TOKENS
    """Over all workloads, if there are so many."""
    seed: FittingSeed = SEED
    """Deals documents and rows out, and starts blocks."""
    overwrite: bool = False
    """Replace what is in the folder, finished or another; what was killed of the same goes on."""

    def check(self) -> None:
        """Refuse no exits, steps without end, and an output that is no folder."""
        super().check()
        if self.steps is not None and self.steps > MOST_STEPS:
            what = f"{self.steps:,} steps would never end"
            raise InputError(what, where="steps= (--steps)", fix=f"give {MOST_STEPS:,} at most")
        if self.at is not None:
            parse_exits(self.at, None, "at= (--at)")
        elif not isinstance(self, FromHeads):
            fix = "name some, as in 12,20, or all"
            raise InputError("no exit is named to train", where="at= (--at)", fix=fix)
        if self.output is not None:
            require_writable(Path(self.output))

    def texts(self) -> tuple[Workload, ...]:
        """The workloads, each once. Raises WorkloadError."""
        from offramp.workloads.registry import distinct_workloads

        return distinct_workloads(self.workloads)


@dataclass(frozen=True, kw_only=True)
class FromHeads(ExitsTraining):
    """A training that begins from exit heads."""

    start: Annotated[Path | str | ExitHeads | None, flags("--from")] = None
    """Heads whose K,V maps are trained; exits that get gates, by default those of the model."""

    def check(self) -> None:
        """Refuse a path at which nothing lies."""
        if isinstance(self.start, Path | str) and not Path(self.start).exists():
            fix = "give a file or a folder of heads, or leave it out"
            raise InputError("there are no heads", where=f"--from {self.start}", fix=fix)
        super().check()


@dataclass(frozen=True, kw_only=True)
class ResumableTraining(ExitsTraining, Request):
    """A training that can be killed, and goes on in its folder, which is looked into last."""

    minutes: Minutes | None = None
    """Of all of it on this machine, by default {TRAINING_MINUTES:g}: reading the text, steps, and what goes
    with the exits. What there is no time for is left out: tokens, then steps."""
    precision: Annotated[str, python_only] = AUTO
    """Of products while it trains, with the output head or, of the model itself, of all: float32, bfloat16,
    or auto for the usual of the device."""

    @property
    def allowed_minutes(self) -> float | None:
        """Of all of it; None where steps are counted."""
        return TRAINING_MINUTES if self.steps is None and self.minutes is None else self.minutes

    def check(self) -> None:
        """Refuse minutes beside steps, products that cannot be, and a folder of something else."""
        super().check()
        if self.steps is not None and self.minutes is not None:
            what, fix = "both steps and minutes of training are given", "give one of them"
            raise InputError(what, where="steps= (--steps)", fix=fix)
        if self.precision != AUTO:
            from offramp.lab.exits.divergence import PRECISIONS

            if self.precision not in PRECISIONS:
                fix = f"give auto, {' or '.join(PRECISIONS)}"
                raise InputError(f"products cannot be in {self.precision!r}", where="precision=", fix=fix)
        if self.output is not None:
            from offramp.lab.exits.folder import require_own

            require_own(Path(self.output))


@dataclass(frozen=True, kw_only=True)
class LensTraining(ResumableTraining):
    """An affine map in front of the output head: the tuned lens (arXiv 2303.08112, section 3)."""

    kind: ClassVar[str] = "lens"

    rank: int | None = None
    """Of each exit's lens: two thin products in the place of a square one. By default whole."""
    loss_vocabulary: int = LOSS_VOCABULARY
    """Tokens that the loss looks at: those that the model thinks likely most often; 0: all."""
    classifiers: Annotated[bool, flags("--classifiers/--no-classifiers")] = True
    """Fit classifiers that predict agreement, on other documents."""
    kv_maps: Annotated[bool, flags("--kv-maps/--no-kv-maps")] = True
    """Fit K,V maps for the exits, for --kv mapped."""
    short_list: int = SHORTLIST
    """Tokens of the restricted vocabulary: fewer are cheaper to read, more keep more answers."""

    def check(self) -> None:
        """Refuse a loss that looks at too few tokens."""
        if self.loss_vocabulary and self.loss_vocabulary < MINIMUM_LOGITS:
            raise InputError(
                f"a loss over {self.loss_vocabulary} tokens says little",
                where="loss_vocabulary= (--loss-vocabulary)",
                fix=f"give {MINIMUM_LOGITS} or more, or 0 for all",
            )
        super().check()


@dataclass(frozen=True, kw_only=True)
class BlockTraining(LensTraining):
    """A lens and a small network behind it: Balcony (arXiv 2503.05005, section 3).

    Theirs is a layer with attention; the network alone did as well, and needs no keys and values.
    """

    kind: ClassVar[str] = "block"

    units: Count | None = None
    """Of a block. By default 8/3 of the hidden size."""
    shared: bool = False
    """One network for all exits, each behind its own lens."""

    def check(self) -> None:
        """Refuse networks that cannot be."""
        if self.units is not None and self.units > MOST_UNITS:
            what = f"a network of {self.units:,} units at an exit costs more than the model"
            raise InputError(what, where="units= (--units)", fix=f"give {MOST_UNITS:,} at most")
        super().check()


@dataclass(frozen=True, kw_only=True)
class ExecutedTraining(FromHeads, ResumableTraining):
    """K,V maps of heads, trained by what they do to tokens that stay (`offramp.lab.exits.executed`)."""

    kind: ClassVar[str] = "executed"

    leave: float = LEAVE
    """Share of the tokens that leave while it trains."""

    def check(self) -> None:
        """Refuse a share that cannot leave, and the folder of the heads as the output."""
        if not 0 < self.leave <= MOST_LEAVE:
            raise InputError(
                f"a share of {self.leave:g} of the tokens cannot leave",
                where="leave= (--leave)",
                fix=f"give a number above 0, {MOST_LEAVE:g} at most",
            )
        if self.output is not None and isinstance(self.start, Path | str):
            source = Path(self.start).resolve()
            if Path(self.output).resolve() in (source, source.parent):
                what = "the training would replace the exits that it starts from"
                raise InputError(what, where=str(self.output), fix="choose another folder with -o")
        super().check()


@dataclass(frozen=True, kw_only=True)
class RegularisedTraining(Regularisation, ResumableTraining):
    """The model itself, whose trained form is the output (`offramp.lab.exits.regularised`)."""

    kind: ClassVar[str] = "regularised"

    def __post_init__(self) -> None:  # not that of a `Regularisation` alone
        Request.__post_init__(self)

    def check(self) -> None:
        """Refuse to keep the trained model nowhere."""
        if self.output is None:
            what = "a trained model is not kept without a folder"
            raise InputError(what, where="output= (-o)", fix="name one")
        super().check()

    @property
    def regularisation(self) -> Regularisation:
        """What is asked of the model alone."""
        names = [field.name for field in dataclasses.fields(Regularisation)]
        return Regularisation(**{name: getattr(self, name) for name in names})
