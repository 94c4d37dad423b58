"""Exit scores while a model trains: in the Trainer's log, and without a trace in the training itself."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import offramp
from offramp.errors import InputError, ModelError

IDS = torch.randint(0, 61, (6, 20), generator=torch.Generator().manual_seed(1))


def llama(vocabulary: int = 61, **config: Any) -> Any:
    """A random Llama of 3 layers."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=32,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            **config,
        )
    )


class Reporter(TrainerCallback):
    """What TensorBoard, W&B and the like are told."""

    def __init__(self) -> None:
        self.told: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Keep the figures."""
        self.told.append(dict(logs))


def train(folder: Path, *callbacks: TrainerCallback, **options: Any) -> tuple[Trainer, torch.Tensor]:
    """A short training with dropout, and its weights."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    model = llama(attention_dropout=0.2)
    ids = torch.randint(0, 61, (24, 12))
    arguments = TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=4,
        logging_steps=2,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    data: Any = [{"input_ids": row, "labels": row} for row in ids]
    trainer = Trainer(model, arguments, train_dataset=data, callbacks=list(callbacks))
    trainer.train()
    return trainer, torch.cat([weight.detach().flatten() for weight in model.parameters()])


def llama_at_start() -> Any:
    """The model that `train` begins with."""
    torch.manual_seed(0)
    return llama(attention_dropout=0.2)


def losses(trainer: Trainer) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    "options", [{}, {"gradient_checkpointing": True}, {"bf16": True}], ids=["plain", "checkpointing", "bf16"]
)
def test_training_goes_the_same_way_with_it_and_without(tmp_path: Path, options: dict[str, Any]) -> None:
    plain, weights = train(tmp_path, **options)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    reporter = Reporter()
    callback = offramp.ExitScoreCallback(every=4, workload=IDS, tokens=60)
    measured, same = train(tmp_path, reporter, callback, **options)
    assert torch.equal(weights, same)
    assert losses(plain) == losses(measured)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()  # type: ignore[union-attr]
    assert [line["step"] for line in callback.history] == [0, 4, 6]
    logged = [line for line in measured.state.log_history if "exits/agreement/1" in line]
    assert [line["step"] for line in logged] == [0, 4, 6]
    assert sum("exits/agreement/1" in told for told in reporter.told) == 3
    assert len(losses(measured)) == 3
    # Weights are measured as they are kept, whatever precision a training runs in.
    start = llama_at_start()
    assert callback.history[0] == {**offramp.exit_scores(start, workload=IDS, tokens=60), "step": 0}


def test_the_figures_are_those_of_a_trace(tmp_path: Path) -> None:
    trainer, _ = train(tmp_path)
    model = offramp.wrap(trainer.model)
    found = offramp.exit_scores(trainer.model, workload=IDS, tokens=60, exits="1,3", prefix="")
    trace = offramp.trace(model, IDS, tokens=60, exits="1,3")
    card = offramp.score(trace)
    assert found["representation"] == card.representation.value
    assert found["agreement/1"] == pytest.approx(float((trace.top1[:, 0] == trace.top1[:, 1]).mean()))
    assert found["agreement/3"] == 1.0
    assert found["bits_per_token/3"] == pytest.approx(float(trace.nll[:, -1].mean()) / math.log(2), rel=1e-6)


def test_bits_are_per_byte_of_the_text_where_there_is_one(tiny_model: Path) -> None:
    model = offramp.load_model(str(tiny_model))
    text = "the cat sat on the mat and looked at the rain"
    found = offramp.exit_scores(model, workload=[text], tokens=100)
    trace = offramp.trace(model, [text], tokens=100)
    observed = model.tokenizer.decode(trace.next_token.tolist())
    bits = float(trace.nll[:, 1].astype(np.float64).sum()) / math.log(2)
    assert found["exits/bits_per_byte/2"] == pytest.approx(bits / len(observed.encode()))


def test_what_makes_no_sense_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError):
        offramp.ExitScoreCallback(every=0, workload=IDS)
    callback = offramp.ExitScoreCallback(workload=IDS)
    split = type("Arguments", (), {"fsdp": ["full_shard"]})()
    with pytest.raises(ModelError, match="split over processes"):
        callback.on_train_begin(split, None, None)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ModelError, match="ACCELERATE_USE_FSDP"):
        callback.on_train_begin(type("Arguments", (), {})(), None, None)


def test_a_measurement_that_fails_later_does_not_end_the_training(tmp_path: Path) -> None:
    class Spoiling(TrainerCallback):
        """Leaves the callback nothing to measure after the first time."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            """The workload no longer fits the model."""
            callback.workload = offramp.workload_of([[60_000, 1, 2]])

    callback = offramp.ExitScoreCallback(every=3, workload=IDS, tokens=40)
    with pytest.warns(UserWarning, match="exits were not measured at step 3"):
        trainer, _ = train(tmp_path, Spoiling(), callback)
    assert trainer.state.global_step == 6
    assert [line["step"] for line in callback.history] == [0]


@pytest.mark.parametrize(
    "error",
    [RuntimeError("DefaultCPUAllocator: not enough memory"), LookupError("a layer")],
)
def test_measuring_that_fails_is_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*given: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr("offramp.training.exit_scores.exit_scores", fail)
    callback = offramp.ExitScoreCallback(every=2, workload=IDS, tokens=40)
    with pytest.warns(UserWarning, match="training goes on") as said:
        trainer, _ = train(tmp_path, callback)
    assert trainer.state.global_step == 6
    assert len([one for one in said if "training goes on" in str(one.message)]) == 1
    assert callback.history == []


def test_a_trainer_without_a_tokenizer_is_told_to_have_one() -> None:
    callback = offramp.ExitScoreCallback(workload=["the cat sat on the mat"], tokens=40)
    state = type("State", (), {"is_world_process_zero": True, "global_step": 0})()
    with pytest.raises(InputError, match="processing_class=tokenizer"):
        callback.on_train_begin(None, state, None, model=llama(320))


def test_another_trainer_can_be_told(tmp_path: Path, tiny_model: Path) -> None:
    told: list[dict[str, float]] = []
    trainer = type("Trainer", (), {"log": lambda self, figures: told.append(figures)})()
    callback = offramp.ExitScoreCallback(workload=IDS, tokens=40, trainer=trainer)
    state = type("State", (), {"is_world_process_zero": True, "global_step": 0})()
    control = type("Control", (), {"should_log": True})()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    callback.on_train_begin(None, state, control, model=llama(320), processing_class=tokenizer)
    assert told
    assert "step" not in told[0]
    assert control.should_log
