"""Bad input: what is wrong, where and what to do; exit code 2; no folder; if possible no weight loaded."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, run_offramp
from tiny_models import LAYERS, VOCABULARY, write_gguf, write_granite, write_tokenizer

Spoil = Callable[[Path], None]


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def no_weights_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def load(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load)


def refused(folder: Path, *arguments: object) -> Outcome:
    """`run` and `trace` refuse these arguments in three parts, and make no folder."""
    outcome = Outcome(0, "", "")
    for command in ("run", "trace"):
        outcome = run_offramp(command, *arguments, "-o", folder / "out", "--json").require(2)
        error = outcome.json["error"]
        assert error["what"]
        assert error["fix"]
        assert f"offramp: {error['what']}" in outcome.err
        assert not (folder / "out").exists()
    return outcome


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_pickle_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_remote_code(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Model"})


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


def with_a_flipped_header_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[content.index(b'"shape"') + 9] ^= 0x01
    path.write_bytes(content)


def with_another_tokenizer(folder: Path) -> None:
    write_tokenizer(folder, vocabulary=VOCABULARY + 20)


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize(
    ("spoil", "what", "fix"),
    [
        (without_config, "no config.json", "config.json"),
        (with_pickle_weights, "pytorch_model.bin", "save_pretrained"),
        (with_remote_code, "auto_map", "trust_remote_code"),
        (truncated, "damaged or truncated", "download"),
        (with_a_flipped_header_bit, "damaged or truncated", "download"),
        (with_another_tokenizer, f"the model's embedding has {VOCABULARY} rows", "tokenizer"),
    ],
)
def test_a_bad_checkpoint(
    model: Path, documents: Path, tmp_path: Path, spoil: Spoil, what: str, fix: str
) -> None:
    spoil(model)
    error = refused(tmp_path, model, "-w", f"jsonl:{documents}#text").json["error"]
    assert what in error["what"]
    assert fix in error["fix"]
    assert str(model) in error["where"]


def test_a_flipped_bit_in_a_weight_that_makes_it_infinite(
    model: Path, documents: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("inf")
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    error = refused(tmp_path, model, "-w", f"jsonl:{documents}#text").json["error"]
    assert "model.norm.weight holds NaN or infinite values" in error["what"]


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("smolm2", "unknown model", "did you mean smollm2"),
        ("./modle", "unknown model", "did you mean model"),
        ("no/such/folder", "unknown model", "a folder"),
        ("missing.gguf", "unknown model", "a .gguf file"),
        ("", "unknown model", "a folder"),
        ("owner/model", "could not be fetched", "check the name and the network"),
    ],
)
@pytest.mark.usefixtures("no_weights_loaded", "model")
def test_an_unknown_model(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, what: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused(tmp_path, name, "-w", f"jsonl:{documents}#text").json["error"]
    assert what in error["what"]
    assert fix in error["fix"]


@pytest.mark.parametrize("spoil", ["text", "truncated", "empty"])
@pytest.mark.usefixtures("no_weights_loaded")
def test_a_bad_gguf_file(
    documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    write_gguf(path)
    content = {"text": b"<html>", "truncated": path.read_bytes()[:-4096], "empty": b""}
    path.write_bytes(content[spoil])
    error = refused(tmp_path, path, "-w", f"jsonl:{documents}#text").json["error"]
    assert "GGUF" in error["what"]
    assert str(path) in error["where"]
    assert not [
        entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file() and entry.suffix != ".lock"
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b" \n\t\n", "empty"),
        (b"some\x00thing", "not text"),
        ("café".encode("latin-1"), "not UTF-8"),
    ],
)
@pytest.mark.usefixtures("no_weights_loaded")
def test_a_text_that_is_none(tiny_model: Path, tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    error = refused(tmp_path, tiny_model, "-w", f"txt:{path}").json["error"]
    assert what in error["what"]
    assert str(path) in error["where"]


@pytest.mark.parametrize(
    ("workload", "what", "fix"),
    [
        ("proes", "no workload 'proes'", "did you mean prose?"),
        ("", "no workload ''", "prose"),
        ("prose:x", "has no size 'x'", "write prose or prose:short"),
        ("txt", "needs an argument", "txt:PATH"),
        ("txt:", "needs an argument", "txt:PATH"),
        ("txt:no-such-file", "does not exist", "check the path"),
        ("txt:documents", "no text files", ".txt"),
        ("documents", "no workload 'documents'", "txt:documents"),
        ("jsonl:lines.jsonl", "field", "text"),
        ("jsonl:lines.jsonl#txet", "no field 'txet'", "text"),
        ("jsonl:lines.jsonl#number", "not text", "text"),
        ("jsonl:documents#text", "a folder, not a file", "regular text file"),
        ("txt:/dev/zero", "a device, a pipe or a socket", "regular text file"),
        ("txt:pipe", "a device, a pipe or a socket", "regular text file"),
        ("jsonl:pipe#text", "a device, a pipe or a socket", "regular text file"),
    ],
)
@pytest.mark.usefixtures("no_weights_loaded")
def test_a_bad_workload(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workload: str, what: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "documents").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lines.jsonl").write_text('{"text": "one two three", "number": 3}\n')
    error = refused(tmp_path, tiny_model, "-w", workload).json["error"]
    assert what in error["what"]
    assert fix in error["fix"]


def test_documents_of_one_token(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "~"}\n' + '{"text": "~~"}\n' * 24)
    shown = run_offramp("run", tiny_model, "-w", f"jsonl:{path}#text", "-o", tmp_path / "run").require(0)
    assert "1 documents give no row (first: line 1: 1 token" in " ".join(shown.out.split())
    path.write_text('{"text": "~"}\n' * 24)
    error = refused(tmp_path, tiny_model, "-w", f"jsonl:{path}#text").json["error"]
    assert "no document of the workload has a token to trace" in error["what"]


def test_a_second_workload_is_checked_before_the_first_is_traced(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the first workload was traced")

    monkeypatch.setattr("offramp.tracing.tracer.trace", trace)
    (tmp_path / "lines.jsonl").write_text('{"text": "~"}\n' * 24)
    workloads = ["-w", f"jsonl:{documents}#text", "-w", f"jsonl:{tmp_path / 'lines.jsonl'}#text"]
    run_offramp("run", tiny_model, *workloads, "-o", tmp_path / "out").require(2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "what", "fix"),
    [
        (["--tokens", "0"], "tokens must be at least 1", "--tokens"),
        (["--tokens", "-5"], "tokens must be at least 1", "--tokens"),
        (["--document-tokens", "0"], "document tokens must be at least 1", "--document-tokens"),
        (["--context", "0"], "context must be at least 1", "--context"),
        (["--context", "1"], "a context of 1 tokens is filled", "raise --context"),
        (["--context", "129"], "longer than the model's 128", "--context 128"),
        (["--exits", "ten"], "'ten' are not a list of layers", "10,20,30"),
        (["--exits", ""], "not a list of layers", "10,20,30"),
        (["--exits", "1,,2"], "not a list of layers", "10,20,30"),
        (["--exits", "0"], "no exit 0", f"1 to {LAYERS}"),
        (["--exits", "2,5"], "no exit 5", f"1 to {LAYERS}"),
        (["--dtype", "int3"], "unknown dtype 'int3'", "auto, float32, bfloat16"),
        (["--dtype", "bf16"], "unknown dtype 'bf16'", "did you mean 'bfloat16'?"),
    ],
)
def test_a_bad_option(
    tiny_model: Path, documents: Path, tmp_path: Path, options: list[str], what: str, fix: str
) -> None:
    error = refused(tmp_path, tiny_model, "-w", f"jsonl:{documents}#text", *options).json["error"]
    assert what in error["what"]
    assert fix in error["fix"]


def test_prompts_that_fill_the_context(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = run_offramp("run", tiny_model, "-w", "chat", "--context", 5, "-o", out).require(2)
    assert "every prompt fills the context of 5 tokens" in shown.err
    assert not out.exists()


@pytest.mark.parametrize("command", ["run", "trace"])
@pytest.mark.parametrize(
    ("output", "what"),
    [
        ("file", "the output is a file, not a folder"),
        ("file/below", "lies below a file"),
        ("/proc/x", "made"),
    ],
)
@pytest.mark.usefixtures("no_weights_loaded")
def test_an_output_that_cannot_be_a_folder(
    tiny_model: Path,
    documents: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    output: str,
    what: str,
) -> None:
    if output == "/proc/x":
        # The superuser is told by the system only when the folder is made; others before.
        monkeypatch.setattr("offramp.cli.run_folder.os.access", lambda path, mode: False)
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    shown = run_offramp(command, tiny_model, "-w", f"jsonl:{documents}#text", "-o", output).require(2)
    assert what in shown.err
    assert "choose another folder with -o" in shown.err


def test_a_folder_that_the_system_refuses_to_make(tiny_model: Path, documents: Path) -> None:
    for command in ("run", "trace"):
        shown = run_offramp(command, tiny_model, "-w", f"jsonl:{documents}#text", "-o", "/proc/x").require(2)
        assert "may not be made" in shown.err or "cannot be made or written" in shown.err


def test_a_document_with_a_non_finite_logit_is_named_and_left_out(documents: Path, tmp_path: Path) -> None:
    model = write_granite(tmp_path / "granite", poisoned="~")
    lines = documents.read_text().splitlines()[:24]
    lines.insert(3, json.dumps({"id": "the [bad] one", "text": "the cat ~ sat on the mat and looked"}))
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(lines) + "\n")
    arguments = [model, "-w", f"jsonl:{path}#text"]
    reason = "document the [bad] one is left out: a non-finite number at layer"
    traced = run_offramp("trace", *arguments, "-o", tmp_path / "trace").require(0)
    assert reason in traced.out
    assert "of 24 documents" in traced.out
    shown = run_offramp("run", *arguments, "-o", tmp_path / "run").require(0)
    assert reason in " ".join(shown.out.split())
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (left_out,) = summary["provenance"]["workloads"][0]["invalid_documents"]
    assert left_out["id"] == "the [bad] one"
    assert any(reason in caveat for caveat in summary["verdict"]["caveats"])
    assert reason in (tmp_path / "run" / "report.html").read_text()


def test_a_workload_of_non_finite_documents_only(tmp_path: Path) -> None:
    model = write_granite(tmp_path / "granite", poisoned="~")
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "~~~~ ~~~~"}\n' * 24)
    for command in ("run", "trace"):
        shown = run_offramp(command, model, "-w", f"jsonl:{path}#text", "-o", tmp_path / command)
        assert "every document met a non-finite number" in shown.require(2).err
        assert "line 1" in shown.err


@pytest.mark.usefixtures("no_weights_loaded")
def test_too_few_documents_are_refused_before_the_model_is_loaded(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("the cat sat on the mat " * 40)
    arguments = ["run", tiny_model, "-w", f"txt:{tmp_path / 'one.txt'}", "-o", tmp_path / "out", "--json"]
    error = run_offramp(*arguments).require(2).json["error"]
    assert not (tmp_path / "out").exists()
    assert "not enough documents" in error["what"]
    assert "has 1, and" in error["what"]
    assert "24 for 90 %, 47 for 95 %, 232 for 99 %" in error["what"]
