"""The loop in which everything is trained that is trained in steps: deterministic, resumable, ended in time.

What is trained is a `Problem`. A step is its loss, the gradients, and AdamW ("Decoupled Weight Decay
Regularization", arXiv 1711.05101, algorithm 2). Where it stands lies in one file that is whole, or the one
before it: from there another process goes on alike.
"""

from __future__ import annotations

import functools
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from offramp.errors import InputError, ModelError
from offramp.kit.numbers import NotNegative, Whole
from offramp.kit.sealed_tensors import Arrays, SealedTensors
from offramp.models.devices import synchronise
from offramp.models.model import Model
from offramp.models.process import with_threads
from offramp.training.divergence import TrainingHead, usual_precision
from offramp.training.recipe import Recipe
from offramp.training.record import Evaluated, Evaluation, Settings
from offramp.training.request import Effort, Precision

WARM_UP = 20
LAST_RATE = 0.05
"""The learning rate rises over WARM_UP steps and falls to this share of it, along a line."""

CHECKPOINT_SECONDS = 30.0
WRITING_SHARE = 0.05
"""Of the time, that checkpoints may take."""

EVALUATIONS = 20
EVALUATION_SHARE = 0.2
"""Of the minutes of steps, that evaluations may take."""
PATIENCE = 8
"""Evaluations without a better one, at any exit, after which it stops."""

PILOT_STEPS = 6

Parameters = Mapping[str, Tensor]
"""What is trained of a part, float32, by name."""

LossOf = Callable[[int, Parameters], Tensor]
"""Of a part's place and its parameters: its loss, a differentiable scalar."""

OnStep = Callable[[int, str], None]
"""Told the steps done, and how the last evaluation was in words."""


def unheard(progress: Progress) -> OnStep:
    """Tells nobody of the steps of a training."""
    return lambda step, standing: None


@dataclass(frozen=True)
class Descent:
    """How AdamW goes down a loss."""

    rate: Callable[[int, int], float]
    """The learning rate of a step, from 0, of so many."""
    moments: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    undecayed: tuple[str, ...] = ()
    """How the names of parameters begin that are not drawn to 0."""
    clipped_norm: float = 1.0
    """Of the gradient of a part, at most."""
    fused: bool = True
    """Whether one kernel steps all parameters, where the device has one: its last digits are its own."""
    patience: int | None = PATIENCE
    """Evaluations without a better one, at any exit, after which it stops; None: it never does."""


class Problem(Protocol):
    """What is trained. Parts do not touch each other: each has the weights that it would have alone.

    A part is an exit, or several that share a network.
    """

    @property
    def device(self) -> torch.device:
        """Where it is trained."""

    @property
    def descent(self) -> Descent:
        """How its losses are gone down."""

    def initial(self) -> list[dict[str, Tensor]]:
        """The parameters of each part before the first step, float32, by name."""

    @property
    def vocabulary_size(self) -> int:
        """Tokens that a loss may look at; 0 where it looks at none."""
        return 0

    def vocabulary(self, precision: Precision) -> Tensor | None:
        """The tokens of the loss, int64, ascending; None for all."""
        return None

    def losses(self, settings: Settings, vocabulary: Tensor | None) -> Callable[[int], LossOf]:
        """Of each step, from 0, whose data are drawn by seed and step alone. vocabulary: of the loss."""

    def evaluate(self, parts: Sequence[Parameters]) -> list[Evaluation]:
        """What was trained, on held-out text."""

    def judged(self, evaluations: Sequence[Evaluation]) -> list[float]:
        """What each part's best weights are chosen by, of an evaluation: the less, the better."""
        return [evaluation.loss for evaluation in evaluations]

    def in_words(self, evaluations: Sequence[Evaluation]) -> str:
        """An evaluation for a progress bar."""


class HeadProblem(Problem, ABC):
    """A problem whose losses are read through a model's own head, of a recipe's rate."""

    model: Model
    recipe: Recipe

    @property
    def device(self) -> torch.device:
        """That of the head."""
        return self.model.stack.head_device

    @property
    def vocabulary_size(self) -> int:
        """That of the model."""
        return self.model.shape.vocabulary_size

    @property
    def descent(self) -> Descent:
        """At the recipe's rate."""
        return Descent(functools.partial(learning_rate, self.recipe.rate))

    def losses(self, settings: Settings, vocabulary: Tensor | None) -> Callable[[int], LossOf]:
        """Of each step, with the head's products over the vocabulary."""
        head = TrainingHead(self.model, settings.precision, vocabulary)
        return lambda step: self.losses_of(step, settings.steps, head)

    @abstractmethod
    def losses_of(self, step: int, steps: int, head: TrainingHead) -> LossOf:
        """Of a step of so many."""


# --- where a training stands


@dataclass
class Weights:
    """One part's: what is trained, AdamW's moments of it, and the best so far with its held-out loss."""

    now: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    best: dict[str, Tensor]
    best_loss: float

    @classmethod
    def of(cls, initial: Parameters) -> Weights:
        """Before the first step."""
        zeros = [{name: torch.zeros_like(tensor) for name, tensor in initial.items()} for _ in range(2)]
        copies = [{name: tensor.clone() for name, tensor in initial.items()} for _ in range(2)]
        return cls(copies[0], zeros[0], zeros[1], copies[1], float("inf"))

    @property
    def forms(self) -> dict[str, dict[str, tuple[torch.Size, torch.dtype]]]:
        """Shape and type of every tensor, by what it is and its name."""
        return {
            part: {name: (of.shape, of.dtype) for name, of in getattr(self, part).items()} for part in TENSORS
        }


TENSORS = tuple(part.name for part in fields(Weights) if part.name != "best_loss")
"""Of a part, as they are called in a checkpoint."""
VOCABULARY = "vocabulary"


@dataclass(kw_only=True)
class Course:
    """How far a training is."""

    step: Whole = 0
    stale: Whole = 0
    """Evaluations since any exit was at its best."""
    stopped: str = ""
    """Why no further step is taken, "" while there are some."""
    seconds: NotNegative = 0.0
    """Of training so far."""
    history: list[Evaluated] = field(default_factory=list)


@dataclass
class Progress(Course):
    """Where a training stands."""

    settings: Settings
    weights: list[Weights]
    vocabulary: Tensor | None
    """Int64 tokens of the loss, None for all."""


@dataclass
class CheckpointHeader(Course):
    """Of a `Progress`, all that is not a tensor."""

    key: str
    """Of the training."""
    settings: Settings
    best_loss: Sequence[str]
    """In hexadecimal; it may be infinite."""


def _contradictions(header: CheckpointHeader, arrays: Arrays) -> Iterator[str]:
    """What no training could have written."""
    step, steps = header.step, header.settings.steps
    if step > steps or (step == steps and not header.stopped):
        yield f"its step {step} is beyond the {steps} of its training"
    if header.settings.every > steps:
        yield f"it evaluates every {header.settings.every} of {steps} steps"
    if not header.history or not all(
        len(one.exits) == len(header.history[0].exits) > 0 for one in header.history
    ):
        yield "it holds no evaluation, or one of other exits"
    if "nan" in header.best_loss:
        yield "its best loss is not a number"
    for name, array in arrays.items():
        if name.split(".")[1:2] == ["second"] and array.min(initial=0) < 0:
            yield f"{name}, the mean of squares, holds a number below 0"
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"{name} holds a number that is not finite"


CHECKPOINT_FILE = SealedTensors(
    CheckpointHeader,
    "offramp_training",
    "the checkpoint {name} is damaged",
    contradictions=_contradictions,
)


ANEW = "remove it: the same command trains again from the start"
"""What to do about a damaged one."""


def write_checkpoint(path: Path, progress: Progress, key: str) -> None:
    """Write it in one step (see `offramp.files.write_atomically`). key: of the training it belongs to."""
    tensors: dict[str, Tensor] = {}
    for place, weights in enumerate(progress.weights):
        for part in TENSORS:
            tensors |= {f"{place}.{part}.{name}": tensor for name, tensor in getattr(weights, part).items()}
    if progress.vocabulary is not None:
        tensors[VOCABULARY] = progress.vocabulary
    losses = [weights.best_loss.hex() for weights in progress.weights]
    header = CheckpointHeader(key, progress.settings, losses, **_course(progress))
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}
    CHECKPOINT_FILE.write(path, header, arrays)


def read_checkpoint(path: Path, key: str, device: torch.device) -> Progress | None:
    """The progress that was written, its tensors on a device; None if there is none of this training.


    Raises DamagedFileError if its bytes changed.
    """
    if not path.is_file():
        return None
    header, arrays = CHECKPOINT_FILE.read(path, ANEW)
    if header.key != key:
        return None
    # Copied: what is computed with must lie as freshly made tensors do, or last digits may differ.
    tensors = {name: torch.from_numpy(array).clone().to(device) for name, array in sorted(arrays.items())}
    try:
        losses = [float.fromhex(loss) for loss in header.best_loss]
    except (ValueError, OverflowError) as error:  # sealed, but by another program
        raise CHECKPOINT_FILE.foreign(path, error, ANEW) from error

    weights = [
        Weights(**{part: under(f"{place}.{part}.", tensors) for part in TENSORS}, best_loss=loss)
        for place, loss in enumerate(losses)
    ]
    return Progress(header.settings, weights, tensors.get(VOCABULARY), **_course(header))


def under(prefix: str, tensors: Parameters) -> dict[str, Tensor]:
    """Those whose names begin with it, by what follows."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _course(of: Course) -> dict[str, Any]:
    """How far a training is, by name."""
    return {part.name: getattr(of, part.name) for part in fields(Course)}


# --- a step


class Steps:
    """The steps of a training, one part's weights after the other's: loss, gradients, AdamW.

    What a step does follows from its number and the weights and moments before it (of gates, also from the
    evaluations before it), and from nothing else.
    """

    def __init__(self, problem: Problem, progress: Progress) -> None:
        self.progress, self.descent, self.steps = progress, problem.descent, progress.settings.steps
        self.losses = problem.losses(progress.settings, progress.vocabulary)
        for weights in progress.weights:
            weights.now = {name: tensor.detach().requires_grad_() for name, tensor in weights.now.items()}
        groups: dict[bool, list[Tensor]] = {True: [], False: []}
        for weights in progress.weights:
            for name, parameter in weights.now.items():
                groups[name.startswith(self.descent.undecayed)].append(parameter)
        decays = {False: self.descent.weight_decay, True: 0.0}
        self.optimiser = torch.optim.AdamW(
            [{"params": some, "weight_decay": decays[spared]} for spared, some in groups.items() if some],
            betas=self.descent.moments,
            fused=self.descent.fused and problem.device.type in ("cpu", "cuda"),
        )
        for weights in progress.weights:
            for name, parameter in weights.now.items():
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(progress.step), device=parameter.device),
                    "exp_avg": weights.first[name],
                    "exp_avg_sq": weights.second[name],
                }

    def step(self, step: int) -> bool:
        """Take one step; False, and nothing is changed, if a loss is not finite."""
        # 1. What the loss of each part is, of the data of this step.
        loss_of = self.losses(step)
        # 2. Its gradients, each part's clipped by itself.
        self.optimiser.zero_grad()
        finite = True
        for place, weights in enumerate(self.progress.weights):
            with torch.enable_grad():
                loss = loss_of(place, weights.now)
                if loss.requires_grad:  # nothing depends on maps where no token of the step leaves
                    loss.backward()  # type: ignore[no-untyped-call]
            for parameter in weights.now.values():
                if parameter.grad is None:  # AdamW would not count the step for it, and a checkpoint does
                    parameter.grad = torch.zeros_like(parameter)
            norm = torch.nn.utils.clip_grad_norm_(weights.now.values(), self.descent.clipped_norm)
            finite = finite and bool(torch.isfinite(loss.detach() + norm))
        # 3. What AdamW makes of them.
        if finite:
            for group in self.optimiser.param_groups:
                group["lr"] = self.descent.rate(step, self.steps)
            self.optimiser.step()
        return finite

    def keep_moments(self) -> None:
        """Put the optimiser's moments where the checkpoint finds them."""
        for weights in self.progress.weights:
            for name, parameter in weights.now.items():
                state = self.optimiser.state[parameter]
                weights.first[name], weights.second[name] = state["exp_avg"], state["exp_avg_sq"]


def batch_rows(rows: int, batch: int, seed: int, step: int) -> Tensor:
    """The rows of one step, int64 [batch], drawn by a generator of their own."""
    generator = np.random.default_rng((seed, step))
    return torch.from_numpy(generator.choice(rows, size=batch, replace=False, shuffle=False))


def learning_rate(rate: float, step: int, steps: int) -> float:
    """Of a step from 0: up a line over WARM_UP steps, down another to LAST_RATE of it."""
    return rate * min(1.0, (step + 1) / WARM_UP) * max(LAST_RATE, 1.0 - step / steps)


# --- the loop


@dataclass(frozen=True)
class Overhead:
    """What the minutes of a training go to beside its steps and their evaluations."""

    seconds: float
    """Of reading text, before, and of what goes with the exits, afterwards."""
    evaluations: float
    """Afterwards, in the size of those in training."""


@dataclass(frozen=True)
class TrainingLoop:
    """Trains what a problem says."""

    problem: Problem
    effort: Effort
    """How far."""
    name: str
    """Of what is trained, in errors."""
    checkpoint: Path | None = None
    """The file it goes on from; None: it begins anew."""
    key: str = ""
    """Of the training; a checkpoint of another is not read."""
    beside: Overhead = Overhead(0.0, 0.0)
    """What its minutes go to beside steps."""

    def run(self, on_start: Callable[[Progress], OnStep]) -> Progress:
        """Train to the end, or go on to it. on_start: given where it begins, gives what hears of the steps.

        Raises InputError for minutes that do not suffice, ModelError if nothing can be computed at all.
        """
        progress = None
        if self.checkpoint is not None:
            progress = read_checkpoint(self.checkpoint, self.key, self.problem.device)
            for contradiction in () if progress is None else self._contradictions(progress):
                raise CHECKPOINT_FILE.damaged(self.checkpoint, contradiction, ANEW)
        progress = progress or self._begin()
        with with_threads(progress.settings.threads):
            self._train(progress, on_start(progress))
        return progress

    def _contradictions(self, progress: Progress) -> Iterator[str]:
        """What of a checkpoint cannot be of this training."""
        if [part.forms for part in progress.weights] != [part.forms for part in self._initial()]:
            yield "its tensors are of another training"
        settings, tokens = progress.settings, progress.vocabulary
        fixed = {"precision": self._precision, "device": self.problem.device.type}
        if self.effort.steps is not None:
            fixed |= self._of_steps(self.effort.steps)
        for name, value in fixed.items():
            if (found := getattr(settings, name)) != value:
                yield f"its {name} is {found}, and that of this training {value}"
        if tokens is not None and not (
            tokens.dtype == torch.int64
            and tokens.dim() == 1
            and len(tokens)
            and bool((tokens.diff() > 0).all())
            and 0 <= int(tokens[0]) <= int(tokens[-1]) < self.problem.vocabulary_size
        ):
            yield "the tokens of its loss are not those of a vocabulary"

    @property
    def _precision(self) -> Any:
        asked = self.effort.precision
        return usual_precision(self.problem.device.type) if asked == "auto" else asked

    def _of_steps(self, steps: int) -> dict[str, Any]:
        """The settings that follow from the steps that are asked for."""
        return {"steps": steps, "every": -(-steps // EVALUATIONS)}

    def _write(self, progress: Progress) -> None:
        if self.checkpoint is not None:
            write_checkpoint(self.checkpoint, progress, self.key)

    def _initial(self) -> list[Weights]:
        return [
            Weights.of({name: tensor.to(self.problem.device) for name, tensor in sorted(initial.items())})
            for initial in self.problem.initial()
        ]

    def _begin(self) -> Progress:
        """The start, evaluated; minutes become steps now and never again."""
        started, device = time.perf_counter(), self.problem.device
        weights = self._initial()
        precision = self._precision
        vocabulary = self.problem.vocabulary(precision)
        settings = Settings(
            steps=1, every=1, precision=precision, threads=torch.get_num_threads(), device=device.type
        )
        progress = Progress(settings, weights, vocabulary, seconds=time.perf_counter() - started)
        self._evaluate(progress)
        seconds = time.perf_counter() - started - progress.seconds
        if not all(math.isfinite(evaluation.loss) for evaluation in progress.history[0].exits):
            raise ModelError(
                "the exits' logits are not finite before any training",
                where=self.name,
                fix="try --dtype float32",
            )
        progress.settings = self._settings(progress, seconds, started)
        progress.seconds = time.perf_counter() - started
        self._write(progress)
        return progress

    def _settings(self, progress: Progress, evaluation: float, started: float) -> Settings:
        """Steps, and how often to evaluate. evaluation: seconds of one. started: when training began."""
        found = vars(progress.settings)
        if self.effort.steps is not None:
            return Settings(**{**found, **self._of_steps(self.effort.steps)})
        assert self.effort.minutes is not None, "a recipe has steps or minutes"
        step = self._pilot(progress)
        others = self.beside.seconds + self.beside.evaluations * evaluation + time.perf_counter() - started
        budget = max(0.0, 60.0 * self.effort.minutes - others)
        evaluations = max(1, min(EVALUATIONS, int(EVALUATION_SHARE * budget / evaluation)))
        steps = int((budget - evaluations * evaluation) / step)
        if steps < self.effort.fewest_steps:
            enough = others + (evaluation + max(20, self.effort.fewest_steps) * step) / (1 - EVALUATION_SHARE)
            raise InputError(
                f"{self.effort.minutes:g} minutes are too few: reading the text, and what goes with the "
                f"exits, takes {others:.2g} s, a step {step:.2g} s, an evaluation {evaluation:.2g} s",
                where="minutes= (--minutes)",
                fix=f"give {enough / 60 + 0.01:.2f} minutes or more, or fewer exits",
            )
        return Settings(**{**found, "steps": steps, "every": -(-steps // evaluations)})

    def _pilot(self, progress: Progress) -> float:
        """Seconds of one step, on copies of the weights: the median of a few."""
        copies = [Weights.of(weights.now) for weights in progress.weights]
        copied = Progress(progress.settings, copies, progress.vocabulary)
        pilot = Steps(self.problem, copied)
        times = []
        for step in range(PILOT_STEPS):
            started = time.perf_counter()
            pilot.step(step)
            synchronise(self.problem.device)
            times.append(time.perf_counter() - started)
        return float(np.median(times[1:]))

    def _train(self, progress: Progress, on_step: OnStep) -> None:
        loop = Steps(self.problem, progress)
        settings, written, pause = progress.settings, time.monotonic(), CHECKPOINT_SECONDS
        patience = self.problem.descent.patience
        on_step(progress.step, self._in_words(progress))
        while not progress.stopped:
            started = time.perf_counter()
            # 1. A step.
            if loop.step(progress.step):
                progress.step += 1
                # 2. Now and then an evaluation, by which the best weights are kept.
                if progress.step % settings.every == 0 or progress.step == settings.steps:
                    progress.seconds += time.perf_counter() - started
                    started = time.perf_counter()
                    self._evaluate(progress)
                # 3. Whether it ends here.
                if progress.step == settings.steps:
                    progress.stopped = "the steps are done"
                elif patience is not None and progress.stale >= patience:
                    progress.stopped = f"no exit was better on held-out text in {patience} evaluations"
            else:
                progress.stopped = f"the loss was not finite at step {progress.step + 1}"
            progress.seconds += time.perf_counter() - started
            on_step(progress.step, self._in_words(progress))
            # 4. Now and then a checkpoint.
            if progress.stopped or time.monotonic() - written > pause:
                began = time.monotonic()
                loop.keep_moments()
                self._write(progress)
                written = time.monotonic()
                pause = max(CHECKPOINT_SECONDS, (written - began) / WRITING_SHARE)

    def _in_words(self, progress: Progress) -> str:
        return self.problem.in_words(progress.history[-1].exits)

    def _evaluate(self, progress: Progress) -> None:
        """Add an evaluation to the history, and keep the weights of parts that were never better."""
        evaluations = self.problem.evaluate([weights.now for weights in progress.weights])
        better = False
        for weights, loss in zip(progress.weights, self.problem.judged(evaluations), strict=True):
            if loss < weights.best_loss:
                weights.best_loss, better = loss, True
                weights.best = {name: tensor.detach().clone() for name, tensor in weights.now.items()}
        progress.stale = 0 if better else progress.stale + 1
        progress.history.append(Evaluated(progress.step, progress.seconds, tuple(evaluations)))
