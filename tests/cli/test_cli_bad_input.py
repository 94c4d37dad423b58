"""Bad input: what is wrong, where and what to do; exit code 2; nothing written; no weight loaded."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome, run_offramp
from offramp.errors import InputError
from tiny_models import LAYERS, write_documents, write_gguf, write_granite

Spoil = Callable[[Path], None]

COMMANDS = {
    "run": "run {model} -w {texts} -o out",
    "trace": "trace {model} -w {texts} -o out",
    "bench": "bench {model} -w {texts} -p static:exit=2 --new-tokens 8 --prompt-tokens 10 --prompts 2",
    "combine": "bench {model} -w {texts} --new-tokens 8 --combine",
    "generate": "generate {model} --prompt 'the cat sat'",
    "heads fit": "heads fit {model} -w {texts} --tokens 400 -o folder/heads",
    "hardware": "hardware measure {model}",
    "replay": "replay {trace} -p threshold:signal=max_prob,value=0.06,exits=1+2+3",
    "predict": "predict --trace {trace}",
    "tune": "tune {trace} --floor agreement=0.6 --hardware h100 --new-tokens 6 --prompt-tokens 8 -o x.json",
}
IDLE = ("--prompt-tokens 9", "--new-tokens 9", "--documents 9", "--seconds 9", "--executions kept")
"""What only decoding reads."""
BEFORE_LOADING = [
    ("run|trace", "--tokens 0", "tokens must be at least 1", "--tokens"),
    ("run|trace", "--document-tokens 0", "document tokens must be at least 1", "--document-tokens"),
    ("run|trace", "--context 0", "context must be at least 1", "--context"),
    ("run|trace", "--exits ''", "'' are not a list of layers", "10,20,30"),
    ("run|trace", "--exits ten", "'ten' are not a list of layers", "10,20,30"),
    ("run|trace", "--exits 1,,2", "not a list of layers", "10,20,30"),
    ("run|trace", "--dtype bf16", "unknown dtype 'bf16'", "did you mean 'bfloat16'?"),
    ("trace", "-w prose", "workload must be one, as a trace is of one text", ""),
    ("trace", "--reference /nope", "/nope", ""),
    ("run|trace", "-o ''", "the output has no name", "the current folder"),
    ("generate", "--image ''", "the file has no name", "name one"),
    ("generate", "--audio=", "the file has no name", "name one"),
    ("replay|generate", "--heads ''", "the file has no name", "name one"),
    ("replay", "--execute --model ''", "the value is empty", "leave --model out"),
    ("trace", "--signals restrictd", "unknown signal 'restrictd'", "did you mean 'restricted'"),
    ("trace", "--signals prompt_entropy", "a workload of given texts has none", "chat or math"),
    ("trace", "--memory lots", "'lots' is not an amount of memory", ""),
    ("trace", f"--memory {'9' * 400}", "is not an amount of memory", "4GB"),
    ("run", f"-w continued:{'9' * 5000}:prose", "how many tokens", "continued:32"),
    ("run", f"-w continued:8+{'9' * 5000}:prose", "how many tokens", "continued:32"),
    ("trace", f"--device cuda:{'9' * 5000}", "unknown device", "cpu"),
    ("trace", "--memory 4GB --no-stream", "--no-stream", "leave out one of them"),
    ("trace", "--stream --transform prune:drop=2", "pruned as a whole", ""),
    ("trace", "--memory 4GB --transform prune:drop=2", "pruned as a whole", ""),
    ("bench", "-p statik:exit=2", "unknown policy 'statik'", "static"),
    ("bench", "-p oracle:which=first_match", "a decoder does not", "offramp replay"),
    ("bench", "--kv propagat", "unknown strategy for K and V 'propagat'", "propagate"),
    ("bench", "--batch 2 --batching lokstep", "unknown batching 'lokstep'", "lockstep"),
    ("bench", "--batching rebatch", "means nothing at batch 1", "--batch 2"),
    ("bench", "--draft-length 3", "means nothing with --kv propagate", "--kv speculate"),
    ("bench", "--kv speculate --draft-length long", "draft length cannot be 'long'", "auto"),
    ("bench|generate", "--kv speculate --draft-length 1.5", "cannot be '1.5'", "auto or a whole number"),
    ("generate", f"--max-new-tokens {10**18}", "must be 1,000,000,000,000,000 at most", "--max-new-tokens"),
    (
        "bench|generate",
        "--kv recompute --lookup 5000",
        "lookup must be 1,024 at most, not 5000",
        "1,024 at most",
    ),
    ("bench", "--batch 0", "batch must be at least 1", "at least 1"),
    ("bench", "--rounds 0", "rounds must be at least 1", "at least 1"),
    ("bench", "--worth 0", "worth must be a share above 0", "0.05"),
    ("run|bench", "--worth 5", "worth must be a share", "0.05 for 5 %"),
    ("run", "--worth -0.1", "worth must be a share, 0 or more", "0.05 for 5 %"),
    ("bench", "--processes 0", "processes must be at least 1", "at least 1"),
    ("bench", "--processes 1000000", "processes must be 100 at most, not 1000000", "100 at most"),
    ("bench", "--prompts 0", "prompts must be at least 1", "at least 1"),
    ("bench", "--prompt-tokens 0", "prompt tokens must be at least 1", "at least 1"),
    ("bench", "--new-tokens 1", "new tokens must be at least 4", "at least 4"),
    ("bench", "--dtype float17", "unknown dtype 'float17'", "float32"),
    ("bench", "-w pros", "pros", "prose"),
    ("bench", "--heads nowhere.safetensors", "nowhere.safetensors", ""),
    ("bench", "--heads a --heads b", "2 files of exit heads are given", ""),
    ("bench", "--trace nowhere", "nowhere", ""),
    ("bench", "--hardware h1000", "unknown hardware 'h1000'", "h100"),
    ("bench", "--task human-eval", "--task is no option any more", "offramp-lm-eval --model offramp"),
    ("bench", "--allow-code", "--allow-code is no option any more", "--confirm_run_unsafe_code"),
    ("bench", "--questions 3", "--questions is no option any more", "--limit"),
    ("bench", "--floor 0.9", "--floor means nothing without --combine", ""),
    ("bench", "-o bench.txt", "does not end in .json", "bench.json"),
    ("bench", "-o nowhere/bench.json", "in a folder that does not exist", "-o"),
    ("combine", "int9", "unknown acceleration 'int9'", ""),
    ("combine", "prune:by=luck,layers=1", "unknown measure 'luck'", ""),
    ("combine", "exits", "exits needs a policy", ""),
    ("combine", "exits -p oracle:which=saturation", "is an oracle", ""),
    ("combine", "prompt_lookup --draft-length 2", "--draft-length means nothing", ""),
    ("combine", "exits -p static:exit=40", "beyond the model, which has 4 layers", "1 to 4"),
    ("combine", "prompt_lookup --batch 2", "--batch means nothing with --combine", ""),
    ("combine", "prompt_lookup --task human-eval", "--task is no option any more", "offramp-lm-eval"),
    ("combine", "prompt_lookup --floor 2", "floor must be 1 at most, not 2", ""),
    ("combine", "prompt_lookup -o combined.txt", "does not end in .json", ""),
    ("combine", "prompt_lookup -o .", "not that of a run", ""),
    ("generate", "-p statik:exit=2", "unknown policy", "static"),
    ("generate", "-p oracle:which=first_match", "which a decoder does not", "offramp replay"),
    ("generate", "-p missing.json", "missing.json", ""),
    ("generate", "--heads missing.heads", "missing.heads does not exist", "offramp heads fit"),
    ("generate", "--kv propagat", "unknown strategy for K and V 'propagat'", "'propagate'"),
    ("generate", "--prompt b --batching rebach", "unknown batching 'rebach'", "'rebatch'"),
    ("generate", "--max-new-tokens 0", "new tokens must be at least 1, not 0", "at least 1"),
    ("generate", "--temperature nan", "below 1e6, not nan", "0 (greedy)"),
    ("generate", "--temperature 0 --top-k 2 --seed 1", "--seed means nothing with greedy decoding", ""),
    ("generate", "--temperature 1e-40", "temperature", ""),
    ("generate", "--temperature 1e30", "below 1e6, not 1e+30", "from 0.0001 to below 1e6"),
    ("generate", "--temperature 0 --top-k 2", "--top-k means nothing at --temperature 0", ""),
    ("generate", "--temperature 0 --top-p 0.5", "--top-p means nothing at --temperature 0", ""),
    ("generate", "--kv speculate", "--kv means nothing with the full model", "add --policy"),
    ("generate", "--top-k 0", "top k must be at least 1, not 0", "at least 1"),
    ("generate", "--top-p 1.5", "top p must be 1 at most, not 1.5", "1 at most"),
    ("generate", "--temperature 1 --seed -1", "seed must be at least 0, not -1", "at least 0"),
    ("generate", "--seed 1", "--seed means nothing with greedy decoding", "--temperature"),
    (
        "generate",
        "--temperature 1 --check",
        "--check means nothing where text is sampled",
        "leave --check out",
    ),
    ("generate", "--draft-length 2", "means nothing with --kv propagate", "--kv speculate"),
    ("generate", "--kv speculate --draft-length 0", "draft length must be at least 1, not 0", "1"),
    ("generate", "--batching rebatch", "means nothing with one prompt", "another --prompt"),
    ("generate", "--dtype float12", "unknown dtype 'float12'", "float32"),
    ("generate", "--prompt ' '", "the prompt is empty", "write some text"),
    (
        "generate",
        "--prompt-file missing.txt",
        "the prompt's file cannot be read: No such file",
        "check the path",
    ),
    ("generate", "--prompt-file .", "is a folder", ""),
    ("generate", "--prompt - --prompt-file -", "can be read once", "one - only"),
    ("heads fit", "--tokens 0", "tokens must be at least 1", ""),
    ("heads fit", "--no-lens --no-classifiers", "lens must be on where neither classifiers nor K,V maps", ""),
    ("heads fit", "--dtype float12", "unknown dtype 'float12'", ""),
    ("heads fit", "-w pros", "no workload 'pros'", ""),
    ("heads fit", "--kv-maps eight", "eight", "--kv-maps"),
    ("heads fit", f"--kv-maps {'9' * 5000}", "is not a list of exits", "--kv-maps"),
    ("heads fit", "--kv-maps 1 --kv-rank half", "kv rank cannot be 'half'", "auto, full or a whole"),
    ("heads fit", f"--kv-maps 1 --kv-rank {'9' * 5000}", "kv rank cannot be '999", "--kv-rank"),
    ("heads fit", "--add-to heads", "--add-to means nothing without --kv-maps", "--add-to"),
    ("heads fit", "--no-classifiers --candidate-exit 2", "--candidate-exit means nothing", ""),
    ("heads fit", "--kv-maps 1 --no-lens --no-classifiers --short-list 9", "--short-list means nothing", ""),
    ("heads fit", "--kv-rank 4", "--kv-rank means nothing without K,V maps", "add --kv-maps"),
    ("hardware", "--dtype float8", "unknown dtype 'float8'", ""),
    ("hardware", "--batches 4,1", "batches must be rising, each given once, not (4, 1)", "as in 1,2,4,8"),
    ("hardware", "--batches 1,99999", "batches must be 9,999 at most, not 99999", ""),
    ("hardware", "--batches one", "batches cannot be list ['one']", ""),
    ("hardware", "--threads 100000", "threads must be no more than this machine's cores", ""),
    ("replay", "--hardware h1000", "unknown hardware", "did you mean 'h100'"),
    ("replay", "--hardware absent.toml", "cannot be read", ""),
    ("replay", "--kv propogate", "unknown strategy", "did you mean 'propagate'"),
    ("replay", "--kv monotone", "lets tokens go deeper", ""),
    ("replay", "--kv speculate --batch 2", "one sequence at a time", ""),
    ("replay", "--batch 0", "batch must be at least 1", "at least 1"),
    ("replay", "--batch 5000", "needs as many documents", ""),
    ("replay", "--batching rebatch", "means nothing at batch 1", ""),
    ("replay", "--draft-length 3", "means nothing with --kv propagate", ""),
    ("replay", "--model smollm2", "--model means nothing without --execute", ""),
    ("replay", "--heads heads.safetensors", "--heads means nothing without --execute", ""),
    ("replay", "--execute --batch 2", "batch must be 1 with --execute, not 2", ""),
    ("replay", "--execute --model smollm2", "another model than the one that", "a replay still answers"),
    ("replay", "--execute --model no/such", "the trace's model cannot be had", "a replay still answers"),
    ("generate|bench", "-p static:exit=40", "beyond the model, which has 4 layers", "1 to 4"),
    ("generate|bench", "-p static:exit=3 --transform prune:drop=2+3", "which has 2 layers", "1 to 2"),
    ("predict", "", "Missing argument", ""),
    ("predict", "static:exit=9", "exit 9", ""),
    ("predict", "absent.json", "absent.json", ""),
    ("predict", "static:exit=2 --hardware h10", "unknown hardware", "h100"),
    ("predict", "static:exit=2 --batch 0", "batch must be at least 1", ""),
    ("predict", "static:exit=2 --batch 4", "bytes moved are counted at batch 1", "--hardware"),
    ("predict", "static:exit=2 --seed -1", "seed must be at least 0", ""),
    ("predict", "static:exit=2 --hardware h100 --kv copy", "unknown strategy for K and V 'copy'", ""),
    ("predict", "static:exit=2 --unseen", "--unseen means nothing with a policy that was not tuned", ""),
    ("predict", "--from-scores cells.jsonl", "--from-scores is no option any more", "experiments/claims"),
    ("predict", "threshold:signal=restricted_margin,value=0.9,exits=2", "restricted", "--signals"),
    ("tune", "--new-tokens 0", "new tokens must be at least 1", ""),
    ("tune", "--documents 0", "documents must be at least 1", ""),
    ("tune", "--documents 4", "4 documents to decode cannot certify the floor: 5 are needed", ""),
    ("tune", "--seconds 0", "seconds must be above 0", ""),
    ("tune", "--batch 2", "not a batch of 2", ""),
    *(("tune", f"--model none {option}", "means nothing where nothing is decoded", "") for option in IDLE),
    ("tune", "--kv speculate", "speculate is lossless", ""),
    ("tune", "--kv copy", "unknown strategy", ""),
    ("tune", "--hardware h1000", "unknown hardware", ""),
    ("tune", "--model smollm2", "another model than the one that was traced", ""),
    ("tune", "--model no/such-folder", "the trace's model cannot be had", ""),
    ("tune", "--heads nowhere.safetensors", "nowhere.safetensors", ""),
    ("tune", "--floor agreement=0.99", "not enough documents: 18 to certify on, 230 needed", "--model none"),
]
"""What is refused before a weight is read: a command, further options, what is said, what is advised."""
AFTER_LOADING = [
    ("run|trace", "--context 1", "a context of 1 tokens is filled", "raise context= (--context)"),
    ("run|trace", "--context 129", "longer than the model's 128", "--context 128"),
    ("run|trace", "--exits 0", "no exit 0", f"1 to {LAYERS}"),
    ("run|trace", "--exits 2,5", "no exit 5", f"1 to {LAYERS}"),
    ("bench", "--prompts 49", "has 48 prompts", ""),
    ("bench", "--new-tokens 200", "leave room for 200 new tokens", ""),
    ("bench", "-p threshold:signal=correctness,value=0.9,exits=1", "exit heads", ""),
    ("generate", "-p threshold:signal=correctness,value=0.5,exits=2", "correctness", "--heads"),
    ("generate", "--max-new-tokens 500", "exceed the context of 128 positions", "max_new_tokens"),
    ("heads fit", "--tokens 8", "all of one document", ""),
    ("heads fit", "--exits 4", "no exit below the last layer", ""),
    ("heads fit", "--exits 9", "no exit 9", ""),
    ("heads fit", "--candidate-exit 4", "candidate exit 4 is not among", ""),
    ("heads fit", "--seed -1", "seed must be at least 0", ""),
    ("heads fit", "--kv-maps 3", "3", "--kv-maps"),
    ("tune", "--prompt-tokens 1000", "do not leave room", ""),
]
"""What only the model tells."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> dict[str, str]:
    """What the commands are given: a model, texts, and a trace."""
    folder = tmp_path_factory.mktemp("places")
    few = write_documents(folder / "few.jsonl", documents=24)
    command = ["trace", tiny_model, "-w", f"jsonl:{few}#text", "--tokens", 480, "-o", folder / "trace"]
    run_offramp(*command).require(0)
    return {"model": str(tiny_model), "texts": f"jsonl:{documents}#text", "trace": str(folder / "trace")}


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


def require_refused(places: dict[str, str], command: str, options: str, what: str, fix: str) -> None:
    """The command refuses these options in three parts, and writes nothing."""
    for name in command.split("|"):
        words = shlex.split(COMMANDS[name].format(**places)) + shlex.split(options)
        outcome = run_offramp(*words, "--json").require(2)
        error = outcome.json["error"]
        assert "line 1, " not in error["where"]  # a run is a study, but has no file
        assert what in error["what"] + error["where"]
        assert error["fix"]
        assert fix in error["fix"] + error["where"]
        assert f"offramp: {error['what']}" in outcome.err
        assert len(outcome.out.splitlines()) == 1
        assert list(Path.cwd().iterdir()) == []


def named(rows: list[tuple[str, str, str, str]]) -> list[str]:
    """Names of the rows of a table."""
    return [f"{command} {options[:60]}" for command, options, *_ in rows]


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize(("command", "options", "what", "fix"), BEFORE_LOADING, ids=named(BEFORE_LOADING))
def test_bad_options_are_refused_before_a_weight_is_loaded(
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: str,
    what: str,
    fix: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    if command == "hardware":
        monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path / "cache"))
    require_refused(places, command, options, what, fix)


@pytest.mark.parametrize(("command", "options", "what", "fix"), AFTER_LOADING, ids=named(AFTER_LOADING))
def test_what_only_the_model_tells_is_refused_before_anything_is_timed_or_written(
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: str,
    what: str,
    fix: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("offramp.cli.bench_stage.run", lambda *_, **__: pytest.fail("timed"))
    require_refused(places, command, options, what, fix)


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


def with_pickle_weights(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def with_remote_code(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "modeling.Model"}}
    path.write_text(json.dumps(config))


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-64])


@pytest.mark.usefixtures("no_weights_loaded")
def test_a_trace_is_not_made_in_the_folder_of_something_else(tiny_model: Path, documents: Path) -> None:
    command = ("trace", tiny_model, "-w", f"jsonl:{documents}#text", "-o", tiny_model)
    assert "holds files that are not a trace" in run_offramp(*command).require(2).err


@pytest.mark.usefixtures("no_weights_loaded")
@pytest.mark.parametrize(
    ("spoil", "what", "fix"),
    [
        (with_pickle_weights, "pytorch_model.bin", "save_pretrained"),
        (with_remote_code, "auto_map", "trust_remote_code"),
        (truncated, "damaged or truncated", "download"),
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
        ("./modle", "there is no file or folder ./modle", "did you mean model"),
        ("missing.gguf", "there is no file or folder missing.gguf", "a .gguf file"),
        ("", "unknown model", "a folder"),
        ("owner/model", "there is no folder owner/model here", "check the name and the network"),
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


@pytest.mark.usefixtures("no_weights_loaded")
def test_a_bad_gguf_file(documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    write_gguf(path)
    path.write_bytes(path.read_bytes()[:-4096])
    error = refused(tmp_path, path, "-w", f"jsonl:{documents}#text").json["error"]
    assert "GGUF" in error["what"]
    assert str(path) in error["where"]
    left = [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file() and entry.suffix != ".lock"]
    assert left == []


@pytest.mark.parametrize(
    ("workload", "what", "fix"),
    [
        ("proes", "no workload 'proes'", "did you mean prose or pairs?"),
        ("txt:no-such-file", "does not exist", "check the path"),
        ("txt:latin.txt", "not UTF-8", ""),
        ("documents", "no workload 'documents'", "txt:documents"),
        ("jsonl:lines.jsonl#txet", "no field 'txet'", "text"),
        ("jsonl:documents#text", "not a file", "check the path"),
        ("txt:/dev/zero", "not a file", "check the path"),
        ("txt:pipe", "not a file", "check the path"),
        ("jsonl:pipe#text", "not a file", "check the path"),
        ("txt:loop", "a link that leads nowhere", ""),
    ],
)
@pytest.mark.usefixtures("no_weights_loaded")
def test_a_bad_workload(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workload: str, what: str, fix: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "documents").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "latin.txt").write_bytes("café".encode("latin-1"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "lines.jsonl").write_text('{"text": "one two three", "number": 3}\n')
    error = refused(tmp_path, tiny_model, "-w", workload).json["error"]
    assert what in error["what"]
    assert fix in error["fix"]


def test_documents_of_one_token(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"text": "~"}\n' + '{"text": "~~"}\n' * 24)
    command = ["run", tiny_model, "-w", f"jsonl:{path}#text", "--no-decode", "-o", tmp_path / "run"]
    run_offramp(*command).require(0)
    note = "1 documents give no row (first: line 1: 1 token"
    caveats = json.loads((tmp_path / "run" / "summary.json").read_text())["verdict"]["caveats"]
    assert any(note in caveat for caveat in caveats)
    assert note in (tmp_path / "run" / "report.html").read_text()
    path.write_text('{"text": "~"}\n' * 25)
    error = refused(tmp_path, tiny_model, "-w", f"jsonl:{path}#text").json["error"]
    assert "no document of the workload has a token to trace" in error["what"]


def test_a_second_workload_is_checked_before_the_first_is_traced(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trace(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the first workload was traced")

    monkeypatch.setattr("offramp.tracing.tracer.trace", trace)
    (tmp_path / "lines.jsonl").write_text('{"text": "~"}\n' * 25)
    workloads = ["-w", f"jsonl:{documents}#text", "-w", f"jsonl:{tmp_path / 'lines.jsonl'}#text"]
    shown = run_offramp("run", tiny_model, *workloads, "-o", tmp_path / "out").require(2)
    assert "no document of the workload has a token to trace" in shown.err
    assert not (tmp_path / "out").exists()


def test_prompts_that_fill_the_context(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shown = run_offramp("run", tiny_model, "-w", "chat", "--context", 5, "-o", out).require(2)
    assert "every prompt fills the context of 5 tokens" in shown.err
    assert not out.exists()


@pytest.mark.parametrize("command", ["run", "trace"])
@pytest.mark.usefixtures("no_weights_loaded")
def test_an_output_that_cannot_be_a_folder(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    arguments = [command, tiny_model, "-w", f"jsonl:{documents}#text", "-o"]
    for output, what in (("file", "the output is a file, not a folder"), ("file/below", "lies below a file")):
        shown = run_offramp(*arguments, output).require(2)
        assert what in shown.err
        assert "choose another folder with -o" in shown.err
    # The superuser is told by the system only when the folder is made; others before.
    monkeypatch.setattr("offramp.files.os.access", lambda path, mode: False)
    assert "made" in run_offramp(*arguments, "/proc/x").require(2).err


def test_a_folder_that_the_system_refuses_to_make(tiny_model: Path, documents: Path) -> None:
    for command in ("run", "trace"):
        shown = run_offramp(command, tiny_model, "-w", f"jsonl:{documents}#text", "-o", "/proc/x").require(2)
        assert "may not be made" in shown.err or "cannot be made or written" in shown.err


def test_documents_with_a_non_finite_logit_are_named_and_left_out(documents: Path, tmp_path: Path) -> None:
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
    run_offramp("run", *arguments, "--no-decode", "-o", tmp_path / "run").require(0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    (left_out,) = summary["provenance"]["workloads"][0]["invalid_documents"]
    assert left_out["id"] == "the [bad] one"
    assert any(reason in caveat for caveat in summary["verdict"]["caveats"])
    assert reason in (tmp_path / "run" / "report.html").read_text()
    path.write_text('{"text": "~~~~ ~~~~"}\n' * 25)
    for command in ("run", "trace"):
        shown = run_offramp(command, *arguments, "-o", tmp_path / f"none of {command}")
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
    assert "25 for 90 %, 48 for 95 %, 234 for 99 %" in error["what"]


def test_what_lacks_documents_for_a_certificate_is_said_before_the_model_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three floors share the chance of 0.1: (1 - risk)^n <= 1/30, and two documents beside."""
    texts = "\n\n".join(f"text {number}: " + "the cat sat on the mat " * 40 for number in range(60))
    (tmp_path / "some.txt").write_text(texts)

    def stop(*arguments: object, **options: object) -> None:
        raise InputError("loaded")

    monkeypatch.setattr("offramp.studies.work.trace.TraceWork.traced_model", stop)
    said = run_offramp("run", tiny_model, "-w", f"txt:{tmp_path / 'some.txt'}", "-o", tmp_path / "out").err
    before, loading = said.split("- loading")[:2]
    assert "has 60 documents, and a certificate needs more: " in before
    assert "69 for 95 %, " in before
    assert " for 90 %" not in before
    assert "loaded" in loading
