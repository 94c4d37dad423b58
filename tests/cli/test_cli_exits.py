"""`offramp exits train`: what it says and writes, what reads it, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command_line import Outcome, run_offramp, tree
from offramp.files import TEMPORARY_PREFIX
from offramp.heads.file import read_heads
from offramp.studies.work.heads import TRAINING_COST, keep_cost
from offramp.tracing.trace import Trace
from offramp.training.record import GATE_RECORD, RECORD
from tiny_models import write_llama

STEPS = ["--steps", 12, "--tokens", 3000]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Path:
    """Exits of the tiny model, trained through the command line."""
    folder = tmp_path_factory.mktemp("exits") / "new folder" / "exits"
    outcome = command(tiny_model, documents, folder, "--json").require(0)
    value = outcome.json
    assert value["folder"] == str(folder)
    assert value["fingerprint"] == read_heads(folder).fingerprint
    assert value["steps"] == 12
    assert value["places"] == ["1", "2"]
    for before, after in zip(value["before"], value["trained"], strict=True):
        assert after["loss"] <= before["loss"]
    assert value["floors"] == [0.99, 0.97, 0.95, 0.9]
    assert len(value["trained"][1]["leaving"]) == 4
    return folder


def command(model: Path, documents: Path, folder: Path, *more: object) -> Outcome:
    """Train at exits 1 and 2."""
    arguments = ["exits", "train", model, "-w", f"jsonl:{documents}#text", "--at", "1,2", *STEPS]
    return run_offramp(*arguments, "-o", folder, *more)


def test_a_finished_training_is_read_and_said_again(trained: Path, tiny_model: Path, documents: Path) -> None:
    before = tree(trained)
    outcome = command(tiny_model, documents, trained).require(0)
    assert tree(trained) == before
    assert "agreement if all leave" in outcome.out
    assert "the steps are done" in outcome.out
    assert "were asked for" in outcome.out, "the text has fewer tokens"
    assert "which share no text with it, can never certify 90 % (25 needed), 95 % (48)" in outcome.out
    assert "(0.70)" not in outcome.out, "of a table that is not shown here"
    assert f"written: {trained}" in outcome.out


def test_a_trace_takes_the_folder(trained: Path, tiny_model: Path, documents: Path, tmp_path: Path) -> None:
    arguments = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 200, "--exits", "1,2"]
    run_offramp(*arguments, "--heads", trained, "-o", tmp_path / "trace").require(0)
    request = Trace.load(tmp_path / "trace").provenance["request"]
    assert request["heads"]["fingerprint"] == read_heads(trained).fingerprint


def test_key_value_maps_are_trained_as_they_are_executed(
    trained: Path, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    arguments = ["exits", "train", tiny_model, "-w", f"jsonl:{documents}#text", *STEPS, "--kind", "executed"]
    folder = tmp_path / "executed"
    outcome = run_offramp(*arguments, "--from", trained, "--leave", 0.4, "-o", folder, "--json").require(0)
    before, after = read_heads(trained), read_heads(folder)
    assert after.reading_fingerprint == before.reading_fingerprint
    assert after.fingerprint == outcome.json["fingerprint"] != before.fingerprint
    assert outcome.json["request"]["recipe"]["at"] == [1, 2]
    assert outcome.json["request"]["recipe"]["leave"] == 0.4
    assert outcome.json["places"] == ["staying"]
    assert outcome.json["trained"][0]["loss"] <= outcome.json["before"][0]["loss"]
    assert "of tokens that stay" in outcome.err
    for more, why in (
        ([], "no heads whose K,V maps are to be trained"),
        (["--from", trained, "--floor", 0.9], "--floor means nothing with --kind executed"),
    ):
        assert why in run_offramp(*arguments, *more, "-o", tmp_path / "none").require(2).err


def test_it_says_what_it_does_and_how_much_it_takes(
    tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    outcome = command(
        tiny_model, documents, tmp_path / "exits", "--kind", "lens", "--no-classifiers", "--no-kv-maps"
    ).require(0)
    assert "hidden states take" in outcome.out
    assert "tiny: lens at 1,2: the steps are done; loss" in outcome.err
    assert "leave at 95 %" in outcome.err
    heads = read_heads(tmp_path / "exits")
    assert heads.mlp is None
    assert heads.kv_maps is None
    assert heads.classifiers == {}


def test_another_base_is_refused_by_name(trained: Path, documents: Path, tmp_path: Path) -> None:
    other = write_llama(tmp_path / "other", hidden_size=16)
    outcome = command(other, documents, trained).require(2)
    assert "model.name (tiny there, other here)" in outcome.err
    arguments = ["trace", other, "-w", f"jsonl:{documents}#text", "--heads", trained]
    outcome = run_offramp(*arguments, "-o", tmp_path / "trace").require(2)
    assert "not on other (" in outcome.err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--kind", "regularised", "--targets", "stars"], "give 'model' or 'text'"),
        (["--kind", "regularised", "--from", "heads"], "--from means nothing with --kind regularised"),
        (["--kind", "lens", "--lora", "4"], "--lora means nothing with --kind lens"),
        (["--at", "twelve"], "'twelve' are not a list of layers"),
        (["--kind", "bloc"], "did you mean 'block'? choose one of: block, lens, executed, regularised, gate"),
        (["--at", "0"], "choose among 1 to the number of its layers"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--minutes", "-1"], "minutes must be above 0, not -1"),
        (["--minutes", "1", "--steps", "1"], "--minutes means nothing beside --steps"),
        (["--kind", "gate", "--floor", "0.9", "--seed", "-1"], "seed must be at least 0"),
        (["--kind", "gate", "--floor", "1.5"], "floor must be below 1"),
        (["--kind", "gate", "--floor", "0.9", "--hardware", "h10"], "unknown hardware 'h10'"),
        (["--kind", "lens", "--hardware", "h100"], "--hardware means nothing with --kind lens"),
        (["--kind", "executed", "--leave", "2"], "leave must be 0.9 at most, not 2"),
        (
            ["--kind", "executed", "--from", "nosuch"],
            "a file or a folder of heads that is there",
        ),
        (["--loss-vocabulary", "3"], "loss vocabulary must be 256 or more"),
        (["--kind", "lens", "--units", "8"], "--units means nothing with --kind lens"),
        (["--tokens", "0"], "tokens must be at least 1"),
        (["--device", "abacus"], "unknown device"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(
    tmp_path: Path, options: list[str], why: str
) -> None:
    arguments = ["exits", "train", "no such model", "-w", "prose", "--at", "1", "-o", tmp_path / "exits"]
    outcome = run_offramp(*arguments, *options).require(2)
    assert why in outcome.err
    assert not (tmp_path / "exits").exists()


def test_a_folder_of_something_else_is_refused_before_the_model_is_loaded(
    trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    shutil.copytree(trained, tmp_path / "unknown")
    (tmp_path / "unknown" / "request.json").unlink()
    for name, why in (
        ("mine", "notes.txt"),
        ("file", "is a file"),
        ("unknown", "files that are not a training"),
    ):
        arguments = ["exits", "train", "no such model", "-w", "prose", "--at", "1", "--overwrite"]
        outcome = run_offramp(*arguments, "-o", tmp_path / name).require(2)
        assert why in outcome.err


def test_a_damaged_record_says_what_to_do(
    trained: Path, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "exits"))
    record = json.loads((folder / "training.json").read_text())
    (folder / "training.json").write_text(json.dumps({**record, "steps": 31}))
    outcome = command(tiny_model, documents, folder).require(1)
    assert "the record training.json of a training is damaged" in outcome.err
    assert "--overwrite" in outcome.err


def gates(model: Path, documents: Path, folder: Path, *more: object) -> Outcome:
    """Train gates for one machine and one floor."""
    arguments = ["exits", "train", model, "-w", f"jsonl:{documents}#text", "--kind", "gate", "--steps", 20]
    return run_offramp(*arguments, "--hardware", "h100", "-o", folder, *more)


def test_gates_join_trained_exits_and_are_held_against_thresholds(
    trained: Path, tiny_model: Path, documents: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "gated"
    folder.mkdir()
    (folder / f"{TEMPORARY_PREFIX}17-exits.safetensors").write_text("half")  # of one that was killed
    outcome = gates(tiny_model, documents, folder, "--from", trained, "--floor", 0.4, "--json").require(0)
    heads, before = read_heads(folder), read_heads(trained)
    assert outcome.json["fingerprint"] == heads.fingerprint
    assert heads.classifiers.keys() == {*before.classifiers, "gate"}
    assert outcome.json["gate"]["policy"] == "threshold:signal=gate,value=0.5,exits=1+2"
    assert {"agreement", "saved"} <= outcome.json["thresholds"].keys()
    record = folder / "training.json"
    assert tree(folder).keys() == {"training.json", "exits.safetensors"}
    assert GATE_RECORD.is_of(record)
    assert not RECORD.is_of(record)
    assert not GATE_RECORD.is_of(trained / "training.json")
    assert not GATE_RECORD.is_of(folder / "exits.safetensors")
    assert GATE_RECORD.read(record).heads == heads.fingerprint
    # A run tells what all of it took: the gates, and the exits that got them.
    keep_cost(folder, heads.fingerprint, tmp_path)
    cost, first = TRAINING_COST.read(tmp_path / "training.json"), RECORD.read(trained / "training.json")
    seconds = first.seconds.states + first.seconds.training + first.seconds.heads
    assert cost.seconds == pytest.approx(seconds + sum(GATE_RECORD.read(record).took))
    assert (cost.seconds_before, cost.tokens_before) == (pytest.approx(seconds), first.rows.tokens)
    assert (cost.kind, cost.exits, cost.steps) == ("gate", (1, 2), 20)
    assert f"began from took {seconds:,.0f} s and {first.rows.tokens:,} tokens" in outcome.err
    for part in ("exits by", "gates", "best thresholds of correctness_network", "judged on"):
        assert part in outcome.out + outcome.err
    again = gates(tiny_model, documents, folder, "--from", trained, "--floor", 0.4).require(2)
    assert "there already" in again.err


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--kind", "gate", "--at", "1"], "floor must be given"),
        (["--kind", "gate", "--floor", "0.9"], "at must be given"),
        (["--kind", "gate", "--floor", "0.9", "--at", "1", "--minutes", "3"], "--minutes means nothing"),
        (["--kind", "lens", "--at", "1", "--floor", "0.9"], "--floor means nothing"),
        (["--kind", "lens"], "at must be given"),
        (["--kind", "executed", "--no-kv-maps"], "--no-kv-maps means nothing with --kind executed"),
        (["--kind", "executed", "--no-classifiers"], "--no-classifiers means nothing"),
        (["--kind", "executed", "--short-list", "300"], "--short-list means nothing"),
        (["--kind", "executed", "--loss-vocabulary", "0"], "--loss-vocabulary means nothing"),
        (["--kind", "gate", "--floor", "0.9", "--at", "1", "--no-kv-maps"], "--no-kv-maps means nothing"),
    ],
)
def test_options_of_gates_and_of_other_kinds_are_told_apart(
    tmp_path: Path, options: list[str], why: str
) -> None:
    arguments = ["exits", "train", "no such model", "-w", "prose", "-o", tmp_path / "exits"]
    outcome = run_offramp(*arguments, *options).require(2)
    assert why in outcome.err
    assert not (tmp_path / "exits").exists()


def test_a_model_is_trained_itself_and_is_a_model(tiny_model: Path, documents: Path, tmp_path: Path) -> None:
    folder = tmp_path / "regularised"
    options = ["--kind", "regularised", "--at", "2,3", "--lora", 4, "--keep", 2, "--steps", 3]
    value = command(tiny_model, documents, folder, *options, "--json").require(0).json
    assert value["places"] == ["2", "3", "full depth"]
    assert len(value["trained"]) == len(value["before"]) == 3
    assert value["before"][-1]["reference_agreement"] == 1.0
    assert len(value["trained"][0]["leaving"]) == len(value["floors"]) == 4
    assert value["request"]["recipe"]["regularisation"]["keep"] == 2.0
    assert value["documents"] == {}
    assert value["texts"] == []
    again = command(tiny_model, documents, folder, *options).require(0)  # it is finished, and said again
    for part in (
        "agreement if all leave",
        "floors of agreement with the original model",
        f"--reference {tiny_model} ",
        "written:",
    ):
        assert part in again.out
    arguments = ["--prompt", "the cat", "--max-new-tokens", 2, "--policy", "static:exit=2"]
    assert run_offramp("generate", folder, *arguments).require(0).out
