from __future__ import annotations

import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tuning_traces import easy_and_hard

from command_line import run_offramp
from offramp.cli.command import Output
from offramp.cli.tune import show_tuned
from offramp.policies.grammar import parse_policy
from offramp.report.sections.tuned import front_table
from offramp.tracing.facts import FACTS
from offramp.tracing.manifest import describe_trace, write_manifest
from offramp.tracing.request import TraceRequest
from offramp.tracing.sealed_parts import Part, PartDocument, block_of, write_part
from offramp.tracing.trace import Trace
from offramp.tuning.certificate import Candidate
from offramp.tuning.tune import tune
from offramp.tuning.tuned import read_tuned
from offramp.workloads.workload import Document, Workload

DOCUMENTS, TOKENS = 60, 25
REPLAYED = ("--floor", "agreement=0.9", "--hardware", "h100", "--model", "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace on disk whose easy tokens may leave at exit 2 and say so."""
    trace = easy_and_hard(DOCUMENTS)
    rows = trace.token_count
    request = TraceRequest(
        model=trace.request["model"],
        workload=trace.request["workload"],
        dtype="float32",
        exits=tuple(trace.exits.tolist()),
        tokens=rows,
        context=TOKENS,
        document_tokens=TOKENS,
        reductions="eager",
        threads=1,
        code="",
        versions={},
    )
    blocks = Counter(block_of(place, DOCUMENTS) for place in range(DOCUMENTS))
    part = Part(
        index=0,
        tokens={name: getattr(trace, name) for name in ("token", "next_token", "document", "generated")}
        | {"position": np.tile(np.arange(TOKENS, dtype=np.int32), DOCUMENTS)},
        facts={fact.name: trace.fact(fact.name) for fact in FACTS},
        marginal={block: np.ones(trace.shape.vocabulary_size) for block in blocks},
        marginal_rows={block: count * TOKENS for block, count in blocks.items()},
        documents=tuple(PartDocument(place, TOKENS) for place in range(DOCUMENTS)),
    )
    path = tmp_path_factory.mktemp("traces") / "texts"
    path.mkdir()
    write_part(path, part, trace.exits, request.fingerprint)
    ids = [f"document {place}" for place in range(DOCUMENTS)]
    write_manifest(path, describe_trace(request, [part], ids, trace.shape, []), 0.0)
    return path


def said_of(folder: Path, tmp_path: Path, *options: object) -> str:
    """What is printed of a policy that is tuned, on one line."""
    outcome = run_offramp("tune", folder, *options, "-o", tmp_path / "policy.json").require(0)
    return " ".join(outcome.out.split())


def test_a_policy_is_tuned_said_and_written(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "policy.json"
    outcome = run_offramp("tune", folder, *REPLAYED, "-o", output, "--json").require(0)
    tuned = read_tuned(output)
    assert outcome.json["policy"] == str(tuned.policy) == str(parse_policy(str(output)))
    assert outcome.json["answer"] == tuned.answer
    assert outcome.json["file"] == str(output)
    assert tuned.certificate.holds
    said = said_of(folder, tmp_path, *REPLAYED)
    assert tuned.answer in said
    for words in (
        "on 12 report documents, replayed: agreement",
        "(no interval: 12 documents; an interval needs 20)",
        "documents: 12 search, 36 certify, 12 report",
        "replay bound (wsr): with probability 0.9 over the documents drawn",
        "0.9^64 = 0.12 % of 64-token answers unchanged",
        f"next: offramp generate tiny --policy {output} --prompt TEXT",
        f"next: offramp bench tiny --policy {output} --workload texts",
    ):
        assert words in said, said
    assert "certified" not in said
    assert "certificate" not in said


def test_what_is_faster_and_lossless_is_named_first_and_is_not_in_the_file(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tune(Trace.load(folder), {"agreement": 0.9}, "h100")
    assert tuned.net_speedup.value is not None
    output = tmp_path / "policy.json"
    for speed, named in ((1.01 * tuned.net_speedup.value, True), (0.99 * tuned.net_speedup.value, False)):
        drafts = Candidate(
            parse_policy("static:exit=2"), "speculate", 1.0, 1.0, None, 0, speed, True, "lossless", 3
        )
        found = show_tuned(Output(False), replace(tuned, candidates=(drafts,)), output, None)
        said = " ".join(capsys.readouterr().out.split())
        command = "offramp generate tiny --policy static:exit=2 --kv speculate --draft-length 3 --prompt TEXT"
        certified = f"offramp generate tiny --policy {output} --prompt TEXT"
        assert found["lossless"] == (command if named else None)
        assert found["generate"] == certified
        first = f"next, the fastest, lossless: {command} next, with the certified policy: {certified}"
        assert (first in said) == named
        assert (f"written: {output}, the certified policy; what is faster" in said) == named
        assert read_tuned(output).policy == tuned.policy


def test_brackets_of_a_policy_are_shown(folder: Path) -> None:
    policy = "votes:need=all,of=[never]+[static:exit=2]"
    tuned = tune(Trace.load(folder), {"agreement": 0.9}, "h100")
    point = replace(tuned.front[-1], policy=policy)
    console = Console(width=200, record=True, file=io.StringIO())
    table = front_table(tuned)
    console.print(table.rich([point]))
    assert "all of: never exit; always exit 2" in console.export_text()
    assert table.codes([point]) == [f"all of: never exit; always exit 2 = {policy}"]


def test_the_full_model_is_an_answer_and_is_written_too(folder: Path, tmp_path: Path) -> None:
    options = ("--floor", "agreement=0.99", "--hardware", "h100", "--model", "none")
    said = said_of(folder, tmp_path, *options)
    assert "not certifiable: 36 documents, 230 needed (left to certify, of 60 traced)" in said
    assert read_tuned(tmp_path / "policy.json").plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--floor", "agreement"), "is no floor"),
        (("--floor", "nll=0.1", "--floor-clip", "0.05"), "clip must be above the 0.1 nats"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    folder: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    output = tmp_path / "policy.json"
    outcome = run_offramp("tune", folder, *REPLAYED, *options, "-o", output, "--json").require(2)
    assert message in outcome.json["error"]["what"]
    assert outcome.json["error"]["fix"]
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_cannot_be_a_policy_file_are_refused(folder: Path, tmp_path: Path) -> None:
    for output, message in (
        (tmp_path / "policy.txt", "does not end in .json"),
        (tmp_path / "nowhere" / "policy.json", "in a folder that does not exist"),
    ):
        outcome = run_offramp("tune", folder, *REPLAYED, "-o", output, "--json").require(2)
        assert message in json.dumps(outcome.json)
    assert list(tmp_path.iterdir()) == []


def test_a_trace_whose_model_or_text_is_gone_says_what_can_still_be_answered(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--floor", "agreement=0.9", "--hardware", "h100", "-o", tmp_path / "policy.json", "--json")
    text = run_offramp("tune", folder, *options).require(2).json["error"]
    assert "texts" in text["what"]
    assert text["fix"].endswith("--model none still answers with a replay bound")
    work = Workload("texts", "text", (Document("one", "a text"),), "none", "nowhere")
    monkeypatch.setattr("offramp.decoding.openings.traced_workload", lambda trace: work)
    model = run_offramp("tune", folder, *options).require(2).json["error"]
    assert model["what"].startswith("the trace's model cannot be had")
    assert model["fix"].endswith("--model none still answers with a replay bound")
    assert list(tmp_path.iterdir()) == []
