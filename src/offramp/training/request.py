"""What a training of exits is asked for: one request for each kind, with what means something for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le

from offramp.defaults import LOCAL, SEED, SHORTLIST, TRAINING_MINUTES
from offramp.errors import InputError
from offramp.files import require_writable
from offramp.kit.arguments import settle_fields
from offramp.kit.numbers import Count, FittingSeed, Minutes, NotNegative, Positive, Share, Whole
from offramp.kit.request import Kinds, Options, Request, Writes, flags, one_word, python_only
from offramp.kit.rules import Beside, Must, only_if
from offramp.policies.names import StrategyName
from offramp.tracing.asked import InContext, OnModel
from offramp.tracing.request import FITTING_TOKENS, LOSS_VOCABULARY, TRAINING_TOKENS, parse_exits
from offramp.training.exit_loss_weights import Curriculum, dropout_probabilities, enabled_exits, exit_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from offramp.costs.machine import Machine
    from offramp.heads.exit_heads import ExitHeads
    from offramp.tuning.floor import Floor
    from offramp.workloads.workload import Workload

Targets = Literal["model", "text"]

MOST_DROPPED, MOST_AHEAD = 0.5, 8


@dataclass(frozen=True)
class Regularisation(Options):
    """A training of the model's own weights so that its exits say early what it says at the end.

    The loss of a step is

        sum over exits l of e(l) (H(target, p_l) + AHEAD_SHARE * mean over k of H(token k ahead, head_lk))
        + keep * KL(original model || p_L)

    Raises InputError for what cannot be.
    """

    lora: Whole = 16
    """Rank of what is added to the layers' matrices, merged when saved; 0: all weights are trained."""
    keep: NotNegative = 1.0
    """Weight of KL(original || trained) at full depth, which keeps the output where it was; 0: LayerSkip
    alone."""
    layer_dropout: Annotated[float, Ge(0), Le(MOST_DROPPED)] = 0.1
    """Chance of the last layer to be left out at the last step, p_max; 0: none."""
    curriculum: Curriculum = "rotational"
    """Exits that a step looks at: rotational, one exit a step; gradual, deepest first; or all."""
    exit_scale: Annotated[Positive, python_only] = 1.0
    """e_scale, of the exits below L against L."""
    targets: Targets = "model"
    """What exits learn: model, the original's distribution; or text, its tokens."""
    ahead: Annotated[Count, Le(MOST_AHEAD)] = 1
    """Tokens that exits learn to predict: 1, the next; n > 1: the n - 1 behind it, too, through linear layers
    of their own that are thrown away afterwards."""

    def __post_init__(self) -> None:
        settle_fields(self, where=_option)

    def dropout(self, layers: int, step: int, steps: int) -> NDArray[np.float64]:
        """Chance of each layer to be left out at a step of so many, float64 [layers]."""
        return dropout_probabilities(layers, step, steps, self.layer_dropout)

    def weights(self, exits: Sequence[int], layers: int, step: int, steps: int) -> dict[int, float]:
        """e(l) at a step of so many: of those of the exits below L that it looks at, and of L."""
        enabled = enabled_exits(exits, layers, step, steps, self.curriculum)
        return exit_weights(enabled, layers, self.exit_scale)


def _option(name: str) -> str:
    """A field, and the option of the command that gives it."""
    return f"{name}= (--{name.replace('_', '-')})"


MOST_STEPS, MOST_UNITS = 100_000_000, 65_536
"""Years of training, and more than the networks of models of 70 billion parameters have."""

LEAVE, MOST_LEAVE = 0.3, 0.9
"""Share of the tokens that leave while K,V maps are trained, and the largest."""

MINIMUM_LOGITS = 256
"""Fewest tokens of a vocabulary of the loss."""

Precision = Literal["float32", "bfloat16"]
"""Of products while exits are trained."""
AUTO: Literal["auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How far exits are trained."""

    steps: Count | None = None
    """None where minutes are counted."""
    minutes: Minutes | None = None
    """Of all of it, which become tokens and steps by pilots."""
    loss_vocabulary: Whole = LOSS_VOCABULARY
    """Tokens that the loss looks at, 0 for all."""
    precision: Precision | Literal["auto"] = AUTO
    """Of the products with the output head, "auto" for the usual of the device."""

    @property
    def fewest_steps(self) -> int:
        """Steps in which each exit is looked at once."""
        return 1


@dataclass(frozen=True, kw_only=True)
class ExitsTraining(OnModel, InContext):
    """What is asked of a training of every kind. In Python the model is at hand, and its name only shown."""

    kind: ClassVar[str]

    workloads: Annotated[str | Workload | Sequence[str | Workload], flags("--workload", "-w")]
    """What to train on; may be repeated: prose, code, chat, math, txt:PATH, jsonl:PATH#field."""
    output: Annotated[Path | str | None, Writes(ExitsTraining.require_own)]
    """A folder. What was killed goes on there; gates, which take minutes, begin anew."""
    at: Annotated[
        str | Sequence[Count] | None,
        one_word,
        Beside(
            lambda at, asked: at is not None or isinstance(asked, FromHeads),
            "given, as in 12,20 or all",
            "name the exits to train: --at 12,20, or --at all",
        ),
    ] = None
    """Exits to train: 12,20, or all; gates, executed: all of --from."""
    steps: Annotated[Count, Le(MOST_STEPS)] | None = None
    """Steps in the place of minutes: the same command then gives the same exits. Of gates by default some 40
    passes over their rows."""
    tokens: Count = TRAINING_TOKENS
    """Over all workloads, if there are so many."""
    seed: FittingSeed = SEED
    """Deals documents and rows out, and starts blocks."""
    overwrite: bool = False
    """Replace what is in the folder, finished or another; what was killed of the same goes on."""

    def check(self) -> None:
        """Refuse what are no exits."""
        super(OnModel, self).check()  # in Python the model is at hand: its name may be that of none
        if self.at is not None:
            parse_exits(self.at, None, "at= (--at)")

    def require_own(self, output: Path) -> None:
        """Refuse a folder of something else, and gates that are there unless they are overwritten."""
        require_writable(output)
        if output.is_dir():
            from offramp.training.folder import GATES_FOLDER, TRAINING_FOLDER  # torch comes with it

            gates = isinstance(self, GateTraining)
            (GATES_FOLDER if gates else TRAINING_FOLDER).require(
                output, overwrite=not gates or self.overwrite
            )

    def texts(self) -> tuple[Workload, ...]:
        """The workloads, each once. Raises WorkloadError."""
        from offramp.workloads.registry import distinct_workloads

        return distinct_workloads(self.workloads)


@dataclass(frozen=True, kw_only=True)
class FromHeads(ExitsTraining):
    """A training that begins from exit heads."""

    start: Annotated[
        Path | str | ExitHeads | None,
        flags("--from"),
        Must(
            lambda start: not isinstance(start, Path | str) or Path(start).exists(),
            "a file or a folder of heads that is there",
        ),
    ] = None
    """Heads whose K,V maps are trained; exits that get gates, by default those of the model."""


@dataclass(frozen=True, kw_only=True)
class ResumableTraining(ExitsTraining, Request):
    """A training that can be killed, and goes on in its folder."""

    minutes: Annotated[Minutes | None, only_if(lambda asked: asked.steps is None, "beside --steps")] = None
    """Of all of it on this machine, by default {TRAINING_MINUTES:g}: reading the text, steps, and what goes
    with the exits. What there is no time for is left out: tokens, then steps."""
    precision: Annotated[Literal["auto", "float32", "bfloat16"], python_only] = AUTO
    """Of products while it trains, with the output head or, of the model itself, of all: float32, bfloat16,
    or auto for the usual of the device."""

    @property
    def resumes(self) -> bool:
        """With its last checkpoint, in a folder."""
        return self.output is not None

    @property
    def allowed_minutes(self) -> float | None:
        """Of all of it; None where steps are counted."""
        return TRAINING_MINUTES if self.steps is None and self.minutes is None else self.minutes


@dataclass(frozen=True, kw_only=True)
class LensTraining(ResumableTraining):
    """An affine map in front of the output head: the tuned lens (arXiv 2303.08112, section 3)."""

    kind: ClassVar[str] = "lens"

    rank: Count | None = None
    """Of each exit's lens: two thin products in the place of a square one. By default whole."""
    loss_vocabulary: Annotated[
        Whole,
        Must(
            lambda tokens: tokens == 0 or tokens >= MINIMUM_LOGITS, f"{MINIMUM_LOGITS} or more, or 0 for all"
        ),
    ] = LOSS_VOCABULARY
    """Tokens that the loss looks at: those that the model thinks likely most often; 0: all."""
    classifiers: Annotated[bool, flags("--classifiers/--no-classifiers")] = True
    """Fit classifiers that predict agreement, on other documents."""
    kv_maps: Annotated[bool, flags("--kv-maps/--no-kv-maps")] = True
    """Fit K,V maps for the exits, for --kv mapped."""
    short_list: Count = SHORTLIST
    """Tokens of the restricted vocabulary: fewer are cheaper to read, more keep more answers."""


@dataclass(frozen=True, kw_only=True)
class BlockTraining(LensTraining):
    """A lens and a small network behind it: Balcony (arXiv 2503.05005, section 3).

    Theirs is a layer with attention; the network alone did as well, and needs no keys and values.
    """

    kind: ClassVar[str] = "block"

    units: Annotated[Count, Le(MOST_UNITS)] | None = None
    """Of a block. By default 8/3 of the hidden size."""
    shared: bool = False
    """One network for all exits, each behind its own lens."""


@dataclass(frozen=True, kw_only=True)
class ExecutedTraining(FromHeads, ResumableTraining):
    """K,V maps of heads, trained by what they do to tokens that stay (`offramp.training.executed_maps`)."""

    kind: ClassVar[str] = "executed"

    leave: Annotated[float, Gt(0), Le(MOST_LEAVE)] = LEAVE
    """Share of the tokens that leave while it trains."""

    def check(self) -> None:
        """Refuse the folder of the heads as the output."""
        if self.output is not None and isinstance(self.start, Path | str):
            source = Path(self.start).resolve()
            if Path(self.output).resolve() in (source, source.parent):
                what = "the training would replace the exits that it starts from"
                raise InputError(what, where=str(self.output), fix="choose another folder with -o")
        super().check()


@dataclass(frozen=True, kw_only=True)
class RegularisedTraining(Regularisation, ResumableTraining):
    """The model itself, whose trained form is the output (`offramp.training.regularised`)."""

    kind: ClassVar[str] = "regularised"

    output: Annotated[
        Path | str | None,
        Writes(ExitsTraining.require_own),
        Must(lambda output: output is not None, "a folder, without which a trained model is not kept"),
    ]

    def __post_init__(self) -> None:  # not that of a `Regularisation` alone
        Request.__post_init__(self)

    @property
    def regularisation(self) -> Regularisation:
        """What is asked of the model alone."""
        names = [field.name for field in dataclasses.fields(Regularisation)]
        return Regularisation(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class GateTraining(FromHeads, Request):
    """Networks that decide who leaves, for one machine and one floor (`offramp.training.gate`)."""

    kind: ClassVar[str] = "gate"

    at: Annotated[
        str | Sequence[Count] | None,
        one_word,
        Beside(
            lambda at, asked: at is not None or asked.start is not None,
            "given, as in 12,20",
            "name some, or exits that are trained, with --from DIR",
        ),
    ] = None
    tokens: Count = FITTING_TOKENS
    floor: Annotated[
        Share | None,
        Must(lambda floor: floor is not None, "given, as in 0.95", "say what to keep: --floor 0.95"),
    ] = None
    """The agreement to keep, as in 0.95."""
    hardware: str | Machine = LOCAL
    """The machine whose seconds are saved: local, a name of offramp list hardware, or a .toml profile."""
    kv: Annotated[StrategyName, python_only] = "propagate"
    """The K,V strategy whose prices are charged."""

    def check(self) -> None:
        """Refuse an unknown machine."""
        super().check()
        if isinstance(self.hardware, str) and self.hardware != LOCAL:  # that of a model is looked up later
            from offramp.costs.machine_registry import find_machine

            find_machine(self.hardware)

    @property
    def wanted(self) -> Floor:
        """The floor on agreement."""
        from offramp.tuning.floor import make_floor

        assert self.floor is not None  # by its annotation
        return make_floor({"agreement": self.floor})


TRAININGS = Kinds(
    "lens: an affine map. block: a small network behind one. executed: the K,V maps of --from, by what they "
    "do to tokens that stay. gate: what decides who leaves. regularised: the model itself, whose trained "
    "form is the output.",
    {
        request.kind: request
        for request in (BlockTraining, LensTraining, ExecutedTraining, RegularisedTraining, GateTraining)
    },
)
