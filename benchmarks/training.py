"""What measuring exits costs a training, and what wrapping a model object costs, in seconds.

    python benchmarks/training.py            a model of 15 million parameters, steps of 2,048 tokens
    python benchmarks/training.py --wrap     and `offramp.wrap` of the bundled model beside its readout check

`overhead`: seconds of one measurement (2,048 tokens, all exits, readout check left to the first one) over
those of the steps between two, at `every` steps. `same`: whether losses and weights are the same to the last
bit with the callback and without. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import offramp
from offramp.models.discovery import find_stack

VOCABULARY, LAYERS, TOKENS, ROWS = 8192, 8, 256, 8


class Timed(TrainerCallback):
    """Seconds of every step, the callbacks after it included or not."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step begins."""
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """It ends; exits are measured by a callback that comes later."""
        self.steps.append(time.perf_counter() - self._began)


class Measuring(offramp.ExitScoreCallback):
    """The callback with the seconds of each measurement."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.seconds: list[float] = []

    def _measure(self, *arguments: Any, **options: Any) -> None:
        began = time.perf_counter()
        super()._measure(*arguments, **options)
        self.seconds.append(time.perf_counter() - began)


def train(steps: int, *callbacks: TrainerCallback) -> tuple[list[float], torch.Tensor]:
    """Losses and weights of a short training that is the same every time."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=384,
            num_hidden_layers=LAYERS,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=1024,
            max_position_embeddings=TOKENS,
            attention_dropout=0.1,
        )
    )
    rows = torch.randint(0, VOCABULARY, (steps * ROWS, TOKENS))
    data: Any = [{"input_ids": row, "labels": row} for row in rows]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=ROWS,
            logging_steps=1,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return losses, torch.cat([weight.detach().cpu().flatten() for weight in model.parameters()])


def callback_cost(steps: int, every: int) -> dict[str, Any]:
    """What the callback costs at an interval, and whether the training notices."""
    texts = torch.randint(0, VOCABULARY, (16, 160), generator=torch.Generator().manual_seed(1))
    timed, measuring = Timed(), Measuring(every=max(1, steps // 2), workload=texts, tokens=2048)
    plain = train(steps)
    measured = train(steps, timed, measuring)
    step = statistics.median(timed.steps)
    one = statistics.median(measuring.seconds[1:])
    return {
        "seconds_per_step": step,
        "seconds_per_measurement": one,
        "first_measurement_seconds": measuring.seconds[0],
        "every": every,
        "overhead": one / (every * step),
        "same": plain[0] == measured[0] and torch.equal(plain[1], measured[1]),
    }


def wrap_cost(repeats: int = 3) -> dict[str, float]:
    """`wrap` of the bundled model, its readout check alone, and a fingerprint of its weights."""
    loaded = offramp.load_model("smollm2", dtype="float32")
    found: dict[str, list[float]] = {"wrap": [], "readout_check": [], "fingerprint": []}
    for _ in range(repeats):
        began = time.perf_counter()
        model = offramp.wrap(loaded.hf, loaded.tokenizer)
        wrapped = time.perf_counter()
        find_stack(loaded.hf)
        checked = time.perf_counter()
        assert model.identity.weights
        ended = time.perf_counter()
        for name, seconds in zip(found, (wrapped - began, checked - wrapped, ended - checked), strict=True):
            found[name].append(seconds)
    medians = {f"{name}_seconds": statistics.median(seconds) for name, seconds in found.items()}
    return {**medians, "beyond_check_seconds": medians["wrap_seconds"] - medians["readout_check_seconds"]}


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--wrap", action="store_true")
    asked = parser.parse_args()
    found = callback_cost(asked.steps, asked.every)
    if asked.wrap:
        found |= wrap_cost()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
