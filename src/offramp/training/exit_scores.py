"""How the exits of a model in training stand now: flat figures, and in the log of transformers' Trainer."""

from __future__ import annotations

import os
import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import CallbackHandler

from offramp.errors import InputError, ModelError, is_out_of_memory
from offramp.kit.arguments import checked
from offramp.kit.numbers import Count
from offramp.models.model import Model
from offramp.models.wrapping import bare, wrap
from offramp.scoring.documents import bits_per_byte, text_sizes
from offramp.scoring.scoring import score
from offramp.tracing.request import parse_exits
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace
from offramp.workloads.given import read_workload

TOKENS = 2048
PREFIX = "exits/"


def exit_scores(
    model: Any,
    tokenizer: Any = None,
    *,
    workload: Any,
    tokens: Count = TOKENS,
    exits: str | Sequence[int] = "all",
    prefix: str = PREFIX,
) -> dict[str, float]:
    """The score card's main figures, and agreement and bits per byte of every exit, by name.

    model: a model object of transformers, in whatever mode, or an offramp Model; its weights, gradients, mode
    and every random state are left as they are. tokenizer: of an object; None where the workload is of token
    ids, whose text has no bytes: then it is bits per token. workload, tokens, exits: as `offramp.trace`.

    Names: representation, increment, calibration, composite, saturation_skip; agreement/EXIT and
    bits_per_byte/EXIT (bits_per_token/EXIT). What is undefined is left out.

    Raises what `offramp.wrap` and `offramp.trace` raise.

    >>> figures = offramp.exit_scores(hf_model, tokenizer, workload="prose:short", tokens=64)
    >>> sorted(figures)[:2]
    ['exits/agreement/1', 'exits/agreement/2']
    """
    with unchanged_randomness():
        wrapped = model if isinstance(model, Model) else wrap(model, tokenizer)
        traced = trace(wrapped, workload, tokens, exits, progress=False)
    figures = _figures(traced, wrapped)
    return {f"{prefix}{name}": value for name, value in figures.items()}


def _figures(traced: Trace, model: Model) -> dict[str, float]:
    card = score(traced)
    names = ("representation", "increment", "calibration", "composite", "saturation_skip")
    found = {name: getattr(card, name).value for name in names}
    sizes = {} if model.has_no_tokenizer else text_sizes(traced, partial(model.decode, special=False))
    size = sum(text.bytes for text in sizes.values())
    for place, exit in enumerate(traced.exits.tolist()):
        found[f"agreement/{exit}"] = float(card.curves.values["agreement"][place])
        if size:
            found[f"bits_per_byte/{exit}"] = bits_per_byte(traced, size, place)
        else:
            found[f"bits_per_token/{exit}"] = bits_per_byte(traced, traced.token_count, place)
    return {name: float(value) for name, value in found.items() if value is not None}


@contextmanager
def unchanged_randomness() -> Iterator[None]:
    """Run something, and leave the random states of Python, numpy and torch on every device as they were."""
    python, arrays, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    xpu = torch.xpu.get_rng_state_all() if torch.xpu.is_available() else None
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)
        torch.set_rng_state(tensors)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        if xpu is not None:
            torch.xpu.set_rng_state_all(xpu)
        if mps is not None:
            torch.mps.set_rng_state(mps)


SPLIT_BY_LAUNCHER = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
"""What `accelerate launch` sets in the environment where it splits weights over processes."""


class ExitScoreCallback(TrainerCallback):
    """Measures the exits of the model in training now and then: `Trainer(..., callbacks=[this])`.

    every: steps between measurements; the first is before training, the last after it. workload, tokens,
    exits: as `offramp.trace`; the workload is read once, when this is made. prefix: of the names in the log
    (see `offramp.training.exit_scores`). trainer: whose `log` is called; by default the figures go
    into the training state's history and to every callback of the Trainer that calls this one, as its own
    log does. history: every measurement, with its step.

    The model's weights, mode and gradients and all random states are left as they are, so that training goes
    the same way with it and without. Of several processes the first one measures; weights that are split over
    processes are refused when training begins. A measurement that fails later, or for want of memory, is
    left out, with one warning for each reason, and training goes on.

    Raises InputError for no steps, WorkloadError for the workload; ModelError when training begins if the
    exits of the model cannot be measured.
    """

    @checked
    def __init__(
        self,
        every: Count = 500,
        workload: Any = "prose",
        tokens: Count = TOKENS,
        exits: str | Sequence[int] = "all",
        *,
        prefix: str = PREFIX,
        trainer: Any = None,
    ) -> None:
        parse_exits(exits, None)
        self.every, self.tokens, self.exits, self.prefix = every, tokens, exits, prefix
        self.workload = read_workload(workload)
        self.trainer = trainer
        self.history: list[dict[str, float]] = []
        self._model: Model | None = None
        self._failed: set[tuple[type[Exception], str]] = set()

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure before the first step."""
        split = [name for name in ("fsdp", "deepspeed", "deepspeed_plugin") if getattr(args, name, None)]
        split += [name for name in SPLIT_BY_LAUNCHER if os.environ.get(name, "").lower() in ("true", "1")]
        if split:
            raise ModelError(
                f"the weights are split over processes ({split[0]}), and exits are measured on whole ones",
                where="ExitScoreCallback",
                fix="measure checkpoints instead: offramp trace FOLDER, or offramp.wrap on the whole model",
            )
        try:
            self._measure(args, state, control, **kwargs)
        except InputError:  # nothing is lost yet, and what cannot be measured at all is said at once
            raise
        except Exception as error:  # noqa: BLE001 - as `_measure_or_warn`
            self._warn(error, state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure after every so many steps."""
        if state.global_step % self.every == 0:
            self._measure_or_warn(args, state, control, **kwargs)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure what training ended with, unless that was done after its last step."""
        if not self.history or self.history[-1]["step"] != state.global_step:
            self._measure_or_warn(args, state, control, **kwargs)

    def _measure_or_warn(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure, once training goes on: what fails then costs a measurement and not the training."""
        try:
            self._measure(args, state, control, **kwargs)
        except Exception as error:  # noqa: BLE001 - whatever it is, hours of training are worth more
            self._warn(error, state)

    def _warn(self, error: Exception, state: Any) -> None:
        """Say, once for each reason, that a measurement failed."""
        reason = (type(error), "out of memory" if is_out_of_memory(error) else str(error))
        if reason not in self._failed:
            self._failed.add(reason)
            warnings.warn(
                f"exits were not measured at step {state.global_step}, and training goes on: "
                f"{type(error).__name__}: {error} (this is said once)",
                stacklevel=4,
            )

    def _measure(
        self, args: Any, state: Any, control: Any, model: Any = None, processing_class: Any = None, **_: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        with unchanged_randomness():  # finding the exits draws numbers too
            figures = exit_scores(
                self._wrapped(model, processing_class),
                workload=self.workload,
                tokens=self.tokens,
                exits=self.exits,
                prefix=self.prefix,
            )
        self.history.append({**figures, "step": state.global_step})
        _log(figures, self.trainer, args, state, control)

    def _wrapped(self, model: Any, tokenizer: Any) -> Model:
        """The model as offramp takes one; its exits are found once, as long as it is the same object."""
        if tokenizer is None and self.workload.documents[0].tokens is None:
            raise InputError(
                "the Trainer has no tokenizer, and the workload is of texts",
                where="ExitScoreCallback",
                fix="give Trainer(processing_class=tokenizer), or a workload of token ids",
            )
        if self._model is None or self._model.hf is not bare(model):
            self._model = wrap(model, tokenizer)
        return self._model


def _log(figures: dict[str, float], trainer: Any, args: Any, state: Any, control: Any) -> None:
    """What the Trainer's own `log` does; whether it logs its own figures at this step stays as it was."""
    asked = control.should_log
    if trainer is not None:
        trainer.log(dict(figures))
    else:
        logs = {**figures, **({} if state.epoch is None else {"epoch": state.epoch})}
        state.log_history.append({**logs, "step": state.global_step})
        if (handler := _calling_handler()) is not None:
            handler.on_log(args, state, control, logs)
    control.should_log = asked


def _calling_handler() -> CallbackHandler | None:
    """What holds all callbacks of the Trainer that calls this one: transformers does not tell a callback."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if isinstance(found := frame.f_locals.get("self"), CallbackHandler):
            return found
        frame = frame.f_back
    return None
