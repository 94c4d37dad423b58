"""Training exits of a tiny model: what it gives, to the bit; killed, gone on with, refused."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting_cases import texts
from tracing_models import llama, tiny_llama, tiny_model, workload_of
from training_cases import answering_takes, arrays, assert_same, regularised

import offramp
from command_line import tree
from offramp.errors import DamagedFileError, InputError
from offramp.heads.file import EXITS_FILE, read_heads
from offramp.kit.code import code_of, reached_from
from offramp.models.model import Model
from offramp.tracing import plan
from offramp.tracing.plan import ANSWERS
from offramp.tracing.request import MODEL_CODE
from offramp.tracing.tracer import trace
from offramp.training import loop
from offramp.training.divergence import TrainingHead
from offramp.training.folder import CHECKPOINT, FIT, STATES
from offramp.training.lens_and_block import TrainedReadings
from offramp.training.loop import Steps, read_checkpoint
from offramp.training.record import RECORD
from offramp.training.states import FILE as STATES_FILE
from offramp.training.train import TrainedExits, train_exits
from offramp.workloads.packing import PlannedAnswer
from offramp.workloads.workload import Workload
from tiny_models import write_llama

QUICK: dict[str, Any] = {
    "steps": 40,
    "tokens": 1500,
    "precision": "float32",
    "classifiers": False,
    "kv_maps": False,
    "progress": False,
}
KINDS = ("lens", "block")
KILLS = 3


def trained(model: Model | None = None, workload: Workload | None = None, **options: Any) -> TrainedExits:
    """A quick training at exits 1 and 2."""
    return train_exits(model or tiny_llama(), workload or texts(120), **{"at": "1,2", **QUICK, **options})


@pytest.fixture(scope="module")
def quick() -> dict[str, TrainedExits]:
    return {kind: trained(kind=kind) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_training_beats_the_ridge_lens_that_it_starts_from(quick: dict[str, TrainedExits], kind: str) -> None:
    record = quick[kind].record
    assert record.steps == 40
    assert record.stopped == "the steps are done"
    for raw, ridge, one in zip(record.logit_lens, record.before, record.trained, strict=True):
        assert one.loss < ridge.loss < raw.loss
    assert [one.step for one in record.history] == list(range(0, 41, 2))
    # It starts as the ridge lens, a block too; here every held-out row is in the history's figures.
    for ridge, start in zip(record.before, record.history[0].exits, strict=True):
        assert start.loss == pytest.approx(ridge.loss, rel=1e-5)


def test_a_block_says_more_than_a_lens(quick: dict[str, TrainedExits]) -> None:
    lens, block = (quick[kind].record.trained for kind in KINDS)
    assert block[0].loss < lens[0].loss
    assert quick["lens"].heads.mlp is None
    assert quick["block"].heads.mlp is not None
    assert quick["block"].heads.mlp.units == 64


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_again_is_the_same(quick: dict[str, TrainedExits], kind: str) -> None:
    assert_same(trained(kind=kind), quick[kind])
    other = trained(kind=kind, seed=1)
    assert not np.array_equal(arrays(other)["lens.weight"], arrays(quick[kind])["lens.weight"])


def test_exits_do_not_touch_each_other(quick: dict[str, TrainedExits]) -> None:
    alone = trained(kind="block", at=[2])
    for name in ("lens.weight", "lens.bias", "mlp.gate", "mlp.down"):
        np.testing.assert_array_equal(arrays(alone)[name][0], arrays(quick["block"])[name][1], err_msg=name)


def test_the_model_is_left_as_it_is() -> None:
    """Logits to the bit, and of a model that others train: what takes gradients, and no gradient."""
    model = tiny_model(llama(), head_scale=3.0)
    model.hf.requires_grad_(True)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model.hf(ids).logits.clone()
    trained(model, kind="block", steps=3)
    with torch.no_grad():
        assert torch.equal(model.hf(ids).logits, before)
    assert all(weight.requires_grad and weight.grad is None for weight in model.hf.parameters())


def test_exits_of_another_training_are_not_believed(tmp_path: Path) -> None:
    for seed in (0, 1):
        trained(seed=seed, steps=2, output=tmp_path / str(seed))
    other, file = tmp_path / "1" / EXITS_FILE, tmp_path / "0" / EXITS_FILE
    file.write_bytes(other.read_bytes())
    for read in (
        lambda: trained(seed=0, steps=2, output=tmp_path / "0"),
        lambda: read_heads(tmp_path / "0"),
        lambda: read_heads(file),
    ):
        with pytest.raises(InputError, match="the exits are not what the training left"):
            read()
    record = file.with_name("training.json")
    record.write_bytes(other.with_name("training.json").read_bytes())
    with pytest.raises(InputError, match="of another training than its folder"):
        trained(seed=0, steps=2, output=tmp_path / "0")
    elsewhere = tmp_path / "elsewhere.safetensors"
    elsewhere.write_bytes(other.read_bytes())
    assert read_heads(elsewhere).fingerprint == read_heads(tmp_path / "1").fingerprint


def test_a_trace_reads_the_exits_and_knows_which_texts_they_saw(tmp_path: Path) -> None:
    model, workload = tiny_llama(), texts(120)
    found = train_exits(
        model, workload, at="1,2", output=tmp_path, **{**QUICK, "classifiers": True, "kv_maps": True}
    )
    heads = read_heads(tmp_path)
    assert heads.fingerprint == found.heads.fingerprint == found.record.heads
    assert set(heads.classifiers) >= {"correctness", "short_correctness", "adainfer"}
    assert heads.kv_maps is not None
    assert heads.kv_maps.exits == (1,)
    assert heads.provenance["trained"]["kind"] == "block"
    seen = set(heads.documents[workload.fingerprint])
    rows = found.record.rows
    assert len(seen) == rows.documents + heads.provenance["classifiers"]["documents"]
    traced = trace(model, workload, tokens=2400, heads=heads, progress=False)
    assert {one.id for one in traced.documents if one.heads_saw} >= seen & {
        one.id for one in traced.documents
    }
    assert not any(one.heads_saw for one in traced.documents[:60]), "the first half is left for tuning"
    fresh = replace(workload, documents=workload.documents[:60])
    through, plain = (
        trace(model, fresh, tokens=1000, heads=one, progress=False).kl_to_final.mean(0)
        for one in (heads, None)
    )
    assert (through[:2] < plain[:2]).all()
    assert through[0] == pytest.approx(found.record.trained[0].loss, rel=0.15)
    assert tree(tmp_path).keys() == {EXITS_FILE, "request.json", "training.json"}


def test_a_loss_over_some_tokens_and_products_in_bfloat16() -> None:
    model = tiny_model(llama(vocabulary=503), head_scale=3.0)
    work = workload_of(lengths=[22] * 120, vocabulary=503)
    found = train_exits(
        model, work, at="1", kind="lens", loss_vocabulary=300, **{**QUICK, "precision": "bfloat16"}
    )
    assert found.record.settings.precision == "bfloat16"
    assert found.record.request.recipe.loss_vocabulary == 300
    assert found.record.trained[0].loss < found.record.before[0].loss


SERVER = """
import os, sys
sys.path[:0] = sys.argv[1].split(os.pathsep)
import test_training_train as cases
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        cases.with_many_checkpoints(*line.split())
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def with_many_checkpoints(folder: str, kind: str) -> None:
    """Train with a checkpoint after every few steps."""
    loop.CHECKPOINT_SECONDS, loop.WRITING_SHARE = 0.03, 1e9
    trained_in(Path(folder), kind)


def trained_in(folder: Path, kind: str) -> TrainedExits:
    """A quick training in a folder; of the kind "regularised" of a model beside it."""
    if kind == "regularised":
        return regularised(folder.with_name("model"), folder)
    return trained(kind=kind, output=folder)


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """A process that has everything imported, and trains in forks of itself: folder and kind, a line each."""
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("kind", ["block", "regularised"])
def test_killed_at_any_moment_it_ends_in_the_same_weights(
    quick: dict[str, TrainedExits], tmp_path: Path, server: subprocess.Popen[str], kind: str
) -> None:
    """Once before there is a checkpoint, then at random moments after one."""
    if kind == "regularised":
        write_llama(tmp_path / "model", tie_word_embeddings=True)
        whole = trained_in(tmp_path / "whole", kind)
    else:
        whole = quick[kind]
    tmp_path = tmp_path / "killed"
    assert server.stdin is not None
    assert server.stdout is not None
    chance, kills, code = random.Random(kind), 0, -9
    checkpoint, steps = tmp_path / CHECKPOINT, set()
    while code:
        before = written_at(checkpoint)
        print(tmp_path, kind, file=server.stdin, flush=True)
        child = int(server.stdout.readline())
        if kills < KILLS:
            if kills:
                wait_until(lambda old=before: written_at(checkpoint) != old)  # type: ignore[misc]
            time.sleep(chance.random() * 0.02)
            with contextlib.suppress(ProcessLookupError):  # a fast machine may have ended by now
                os.kill(child, signal.SIGKILL)
            kills += 1
        code = int(server.stdout.readline())
        assert code in (0, -signal.SIGKILL)
        steps.add(written_at(checkpoint))
    assert len(steps) > 2, "it went on from several places"
    found = trained_in(tmp_path, kind)
    assert_same(found, whole)
    assert [one.exits for one in found.record.history] == [one.exits for one in whole.record.history]


def written_at(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 300  # a machine may be busy
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


class _Ended(BaseException):
    """In the place of a kill, in this process."""


def interrupted(folder: Path, monkeypatch: pytest.MonkeyPatch, after: int = 9, **options: Any) -> None:
    """Train, and end with a checkpoint after some steps."""
    step = Steps.step

    def ending(loop: Any, number: int) -> bool:
        if number == after:
            raise _Ended
        return step(loop, number)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", 1e-9)
        patch.setattr(loop, "WRITING_SHARE", 1e9)
        patch.setattr(Steps, "step", ending)
        with pytest.raises(_Ended):
            trained(output=folder, **options)


def test_what_was_interrupted_goes_on_with_its_states_and_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: dict[str, TrainedExits]
) -> None:
    interrupted(tmp_path, monkeypatch)
    seconds = STATES_FILE.stated(tmp_path / STATES / FIT, "").seconds
    monkeypatch.setattr("offramp.training.lens_and_block.write_states", None)
    taken = []
    step = Steps.step
    monkeypatch.setattr(Steps, "step", lambda loop, at: taken.append(at) or step(loop, at))
    found = trained(output=tmp_path)
    assert_same(found, quick["block"])
    assert taken == list(range(9, 40))
    assert found.record.seconds.states == seconds > 0


def test_what_comes_before_the_first_step_is_time_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    solve = TrainedReadings.initial

    def slow(objective: TrainedReadings) -> Any:
        time.sleep(0.3)
        return solve(objective)

    monkeypatch.setattr(TrainedReadings, "initial", slow)
    record = trained(kind="lens", steps=1).record
    assert 0.3 < record.history[0].seconds < record.history[1].seconds <= record.seconds.training


def test_writing_the_text_is_part_of_what_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    answering_takes(monkeypatch, 2000.0)
    prompts = replace(texts(120), mode="generation")
    taken = [
        train_exits(tiny_llama(), work, **{**QUICK, "at": "2", "steps": 1}).record.seconds.states
        for work in (prompts, texts(120))
    ]
    assert taken[0] > 1000.0 > taken[1]


def test_what_the_model_wrote_is_read_again_and_other_text_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = replace(texts(120), mode="generation", prompt_tokens=5)
    asked: dict[str, Any] = {"workload": written, "classifiers": True, "steps": 10}
    answering_takes(monkeypatch, 2000.0)
    whole = trained(**asked)
    for name in ("kept", "lost"):
        interrupted(tmp_path / name, monkeypatch, **asked)
    (tmp_path / "lost" / ANSWERS).unlink()
    monkeypatch.setattr(plan, "generate_greedily", None)
    found = trained(output=tmp_path / "kept", **asked)
    assert_same(found, whole)
    assert found.record.seconds.states > 2 * 1000.0, "text to train on, and for the classifiers"
    assert not (tmp_path / "kept" / ANSWERS).exists()

    def others(model: Model, batch: Sequence[PlannedAnswer], **options: Any) -> list[tuple[int, ...]]:
        return [tuple(5 + place % 7 for place in range(one.max_new_tokens)) for one in batch]

    monkeypatch.setattr(plan, "generate_greedily", others)
    assert_same(trained(output=tmp_path / "lost", **asked), trained(**asked))


@pytest.mark.parametrize("change", ["removed", "longer", "another part"])
def test_a_checkpoint_with_tensors_of_another_training_is_refused(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, monkeypatch)
    path = tmp_path / CHECKPOINT
    header, arrays = loop.CHECKPOINT_FILE.read(path, "")
    name = next(iter(arrays))
    part, _, rest = name.partition(".")
    changed = {
        "removed": {},
        "longer": {name: np.zeros((3, 3), dtype=np.float32)},
        "another part": {f"{int(part) + 9}.{rest}": arrays[name]},
    }[change]
    others = {other: array for other, array in arrays.items() if other != name}
    loop.CHECKPOINT_FILE.write(path, header, {**others, **changed})
    with pytest.raises(DamagedFileError, match="its tensors are of another training"):
        trained(output=tmp_path)


def of_type(dtype: type) -> Callable[[Any, Any], object]:
    def change(header: Any, arrays: Any) -> None:
        name = next(name for name in arrays if ".now." in name)
        arrays[name] = arrays[name].astype(dtype)

    return change


def negative(header: Any, arrays: Any) -> None:
    for name in arrays:
        if ".second." in name:
            arrays[name] -= 1


NOT_OF_THIS_TRAINING: dict[str, tuple[Callable[[Any, Any], object], str]] = {
    "float64": (of_type(np.float64), "its tensors are of another training"),
    "whole numbers": (of_type(np.int64), "its tensors are of another training"),
    "a loss of nan": (lambda header, _: vars(header).update(best_loss=["nan"] * 9), "best loss"),
    "squares below 0": (negative, "mean of squares"),
    "no exits": (
        lambda header, _: vars(header).update(history=[replace(one, exits=()) for one in header.history]),
        "no evaluation",
    ),
    "other tokens": (lambda _, arrays: arrays.update(vocabulary=np.array([1, 10**9])), "of a vocabulary"),
    **{
        f"{name} {value}": (
            lambda header, _, name=name, value=value: vars(header).update(  # type: ignore[misc]
                settings=replace(header.settings, **{name: value})
            ),
            words,
        )
        for name, value, words in (
            ("steps", 10**15, "its steps is 1000000000000000"),
            ("every", 10**15, "it evaluates every"),
            ("device", "cuda", "its device is cuda"),
            ("threads", 10**9, "settings.threads"),
        )
    },
}


@pytest.mark.parametrize("case", NOT_OF_THIS_TRAINING)
def test_a_checkpoint_that_no_such_training_wrote_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, monkeypatch)
    path, (change, words) = tmp_path / CHECKPOINT, NOT_OF_THIS_TRAINING[case]
    header, arrays = loop.CHECKPOINT_FILE.read(path, "")
    change(header, arrays)
    loop.CHECKPOINT_FILE.write(path, header, arrays)
    with pytest.raises(DamagedFileError, match=words):
        trained(output=tmp_path)


def test_minutes_become_steps_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, monkeypatch, steps=None, minutes=0.2, after=loop.PILOT_STEPS + 1)
    steps = []

    def look(path: Path, key: str, device: torch.device) -> Any:
        found = read_checkpoint(path, key, device)
        assert found is not None
        steps.append(found.settings.steps)
        raise _Ended

    monkeypatch.setattr(loop, "read_checkpoint", look)
    for _ in range(2):
        with pytest.raises(_Ended):
            trained(output=tmp_path, steps=None, minutes=0.2)
    assert steps[0] == steps[1] > 20


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"seed": 1}, r"recipe.seed \(0 there, 1 here"),
        ({"steps": 41}, r"recipe.steps \(40 there, 41 here"),
        ({"kind": "lens"}, r"recipe.kind \(block there, lens here"),
        ({"at": "1"}, "recipe.at"),
        ({"model": True}, "model.fingerprint"),
        ({"kv_maps": True}, r"kv_maps \(False there, True here"),
    ],
)
def test_another_training_in_the_folder_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], named: str
) -> None:
    interrupted(tmp_path, monkeypatch)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    if options.pop("model", False):
        options["model"] = tiny_model(llama(), name="another", head_scale=3.0)
    with pytest.raises(InputError, match=named) as error:
        trained(output=tmp_path, **options)
    assert "--overwrite" in error.value.fix
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}


def test_a_training_that_is_refused_leaves_its_folder_free(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(InputError, match="all of one document"):
            trained(output=tmp_path, tokens=8)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_another_training_is_replaced_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: dict[str, TrainedExits]
) -> None:
    interrupted(tmp_path, monkeypatch, kind="lens")
    assert_same(trained(output=tmp_path, overwrite=True), quick["block"])
    assert_same(trained(output=tmp_path), quick["block"])


def test_overwriting_goes_on_with_the_same_and_replaces_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupted(tmp_path, monkeypatch, after=2, steps=3, kind="lens")
    taken = []
    step = Steps.step
    monkeypatch.setattr(Steps, "step", lambda loop, at: taken.append(at) or step(loop, at))
    for more, expected in (({"overwrite": True}, [2]), ({}, []), ({"overwrite": True}, [0, 1, 2])):
        trained(output=tmp_path, steps=3, kind="lens", **more)
        assert taken == expected
        taken.clear()
    damaged = (tmp_path / "request.json").read_text().replace("lens", "lenz")
    (tmp_path / "request.json").write_text(damaged)
    (tmp_path / "training.json").unlink()
    trained(output=tmp_path, steps=3, kind="lens", overwrite=True)
    assert taken == [0, 1, 2]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(InputError, match=r"holds files that are not a training: mine\.txt"):
            trained(output=tmp_path, overwrite=overwrite)
    with pytest.raises(InputError, match="is a file"):
        trained(output=tmp_path / "mine.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_checkpoint_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, monkeypatch)
    path = tmp_path / CHECKPOINT
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"checkpoint\.safetensors is damaged"):
        trained(output=tmp_path)


def test_a_loss_that_is_not_finite_ends_it_with_the_last_good_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    divergence, calls = TrainingHead.divergence, [0]

    def broken(head: TrainingHead, *given: Any) -> torch.Tensor:
        calls[0] += 1
        return divergence(head, *given) * (float("nan") if calls[0] == 2 * 10 + 1 else 1.0)

    monkeypatch.setattr(TrainingHead, "divergence", broken)
    found = trained(kind="lens")
    assert found.record.stopped == "the loss was not finite at step 11"
    assert found.record.steps == 10
    assert [one.step for one in found.record.history] == [0, 2, 4, 6, 8, 10]
    assert found.record.trained[0].loss == min(one.exits[0].loss for one in found.record.history)
    assert found.record.trained[0].loss < found.record.before[0].loss


def test_it_ends_when_held_out_text_is_read_no_better(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "learning_rate", lambda rate, step, steps: 0.3)
    found = trained(kind="lens", steps=60)
    assert found.record.stopped == "no exit was better on held-out text in 8 evaluations"
    losses = [one.exits[0].loss for one in found.record.history]
    assert len(losses) < 21
    assert found.record.trained[0].loss == pytest.approx(min(losses), rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "1,9"}, "the model has no exit 9"),
        ({"at": "3"}, "no exit below the last layer"),
        ({"kind": "blok"}, "there is no kind 'blok'"),
        ({"minutes": 3}, "--minutes means nothing beside --steps"),
        ({"steps": None, "minutes": 1e-6}, "minutes are too few: a token takes"),
        ({"kind": "lens", "units": 8}, "--units means nothing with --kind lens"),
        ({"rank": 17}, "costs more than a whole one of 32 x 32"),
        ({"loss_vocabulary": 3}, "loss vocabulary must be 256 or more, or 0 for all, not 3"),
        ({"tokens": 120}, "tokens to train on"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        trained(**options)


def test_a_model_at_hand_may_have_a_name_that_no_source_has() -> None:
    model = tiny_model(llama(), name="a model of mine", head_scale=3.0)
    assert trained(model, kind="lens", steps=1, at=[1]).record.steps == 1


def test_it_is_there_in_python() -> None:
    assert inspect.unwrap(offramp.train_exits) is inspect.unwrap(train_exits)
    assert repr(trained(kind="lens", steps=1, at=[1])).startswith("TrainedExits(lens, agreement 1: 0.")


def test_steps_rates_and_rows_follow_from_the_step_alone() -> None:
    rates = [loop.learning_rate(1.0, step, 100) for step in range(100)]
    assert rates[0] == 0.05
    assert max(rates) == rates[19] == 0.81
    assert rates[-1] == loop.LAST_RATE
    first = loop.batch_rows(50, 20, 3, 7)
    assert torch.equal(first, loop.batch_rows(50, 20, 3, 7))
    assert not torch.equal(first, loop.batch_rows(50, 20, 3, 8))
    assert len(set(first.tolist())) == 20


def test_the_record_is_json_that_says_what_it_cost(tmp_path: Path) -> None:
    found = trained(kind="lens", steps=2, output=tmp_path)
    value = json.loads((tmp_path / "training.json").read_text())
    assert value["seconds"].keys() == {"states", "training", "heads"}
    assert value["settings"]["threads"] == torch.get_num_threads()
    # Every document has one context, whose first position is left out.
    rows = value["rows"]
    assert rows["fit"] + rows["held_out"] == rows["tokens"] - rows["documents"]
    assert value["trained"][0]["agreement"] == found.record.trained[0].agreement
    assert len(value["trained"][0]["leaving"]) == len(value["floors"])
    RECORD.write(tmp_path / "training.json", replace(found.record, trained=()))
    with pytest.raises(DamagedFileError, match="0 evaluations trained, of"):
        RECORD.read(tmp_path / "training.json")
    RECORD.write(tmp_path / "training.json", replace(found.record, logit_lens=()))
    with pytest.raises(DamagedFileError, match="0 evaluations without heads, of"):
        RECORD.read(tmp_path / "training.json")
    short = tuple(replace(one, leaving=(0.5,)) for one in found.record.trained)
    RECORD.write(tmp_path / "training.json", replace(found.record, trained=short))
    with pytest.raises(DamagedFileError, match="1 shares that leave, of"):
        RECORD.read(tmp_path / "training.json")


def test_the_code_of_a_training_is_all_that_it_runs() -> None:
    """A change there gives other exits, so that a killed training of before is not gone on with."""
    reached = set(reached_from("offramp.training.train"))
    for name in ("training.loop", "training.executed_maps", "models.stack", "decoding.rerun.parallel"):
        assert f"offramp.{name}" in reached
    assert "offramp.cli.main" not in reached
    assert trained(kind="lens", steps=1, at=[1]).record.request.code == code_of(
        "offramp.training.train", MODEL_CODE
    )
