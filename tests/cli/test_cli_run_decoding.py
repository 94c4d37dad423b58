"""`offramp run` decodes for real at its end: what, on which prompts, kept, resumed, survived by the rest."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch

from command_line import TIMING_SECONDS, finish, run_arguments, run_offramp, start_offramp
from offramp.decoding.openings import (
    PROMPTS,
    pick_prompts,
)
from offramp.defaults import FEWEST_VISITS, OPENING_TOKENS
from offramp.errors import InputError, ModelError, OfframpError
from offramp.models.process import with_threads
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.grammar import parse_policy
from offramp.policies.rules.fixed import StaticExit
from offramp.report.run_result import WorkloadResult
from offramp.report.summary import summary_schema
from offramp.runs import stages
from offramp.studies.folder import StudyFolder
from offramp.studies.journal import RunStart
from offramp.studies.work import decode
from offramp.studies.work.decode import (
    DecodeWork,
    DecodingResult,
    NothingDecoded,
    of_verdicts,
)
from offramp.studies.work.league import Ranking
from offramp.studies.work.work import WorkContext
from offramp.timing.baselines import by_rule
from offramp.tracing.loading import load_model
from offramp.tracing.trace import Trace
from offramp.tuning.splits import split_documents, split_roles
from offramp.tuning.verdict import from_main
from offramp.workloads.registry import load_workload
from page_reader import Page
from tiny_models import LAYERS, write_documents

pytestmark = pytest.mark.usefixtures("remembered_answers", "forgotten_load")


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be changed."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture
def arguments(tiny_model: Path, documents: Path, run_folder: Path) -> list[object]:
    return [*run_arguments(tiny_model, documents), "-o", run_folder]


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    jsonschema.validate(summary, summary_schema())
    return summary


def test_predicted_and_measured_stand_side_by_side(finished_run: Path, documents: Path) -> None:
    decoding = summary_of(finished_run)["decoding"]
    assert decoding["not_decoded"] == {}
    text, chat = decoding["workloads"]
    assert (text["workload"], chat["workload"]) == (f"jsonl:{documents}#text", "chat")
    for measurement in (text, chat):
        floors = [policy["floor"] for policy in measurement["policies"]]
        assert floors == sorted(set(floors), key=from_main)
        for policy in measurement["policies"]:
            forecast = policy["forecast"]
            assert min(forecast["predicted"], forecast["measured"]["value"], forecast["fastest_plain"]) > 0
            parts = {part["part"]: part["measured"] for part in forecast["parts"]}
            assert set(parts) == {"layers", "probes", "K,V repair", "heads", "overhead"}
            assert 0 < sum(parts.values()) < 60
        by_name = {contender["name"]: contender for contender in measurement["contenders"]}
        assert {"never exit", "generate()"} <= set(by_name)
        assert any(name.endswith(" again") for name in by_name)
        assert measurement["stopped"] in ("rounds", "seconds")  # the latter on a busy machine
        count = measurement["prompts"]
        assert FEWEST_VISITS <= count <= PROMPTS
        assert not any("layers" in sentence for sentence in measurement["defects"])
        for contender in by_name.values():
            if contender["role"] != "peer":  # a library's own decoder claims nothing
                assert contender["claimed_layers_per_token"] == contender["layers_per_token"]
        for policy in measurement["policies"]:
            timed = by_name[policy["contender"]]
            assert len(timed["samples"]) == len(timed["clusters"]) == count
            assert timed["executed_agreement"]["value"] == policy["free_running"]["agreement"]["value"]
            assert timed["counted"]["layers"] > 0
            saved = 1 - policy["forecast"]["priced"] / policy["forecast"]["fastest_plain"]
            if measurement["plain"] == "never exit":
                assert sum(timed["gain"].values()) == pytest.approx(saved, abs=1e-6)
        assert by_name["never exit"]["same_output"] == 1.0
        lookup = by_name["generate(prompt_lookup_num_tokens)"]
        assert lookup["same_output"] == 1.0 or lookup["left_out"].startswith("slower than")
        assert by_name["never exit"]["layers_per_token"] == LAYERS
    assert all("a static cache was not tried" in " ".join(one["notes"]) for one in (text, chat))
    page = (finished_run / "report.html").read_text()
    assert "Every way to decode that was timed" in page
    assert "The prompt, as it was given" in page
    assert "Still running" not in page
    assert Page(page).faults == []


def results(folder: Path) -> dict[Path, bytes]:
    """What the decode tasks of a run left, by their folders."""
    return {path.parent: path.read_bytes() for path in folder.glob("tasks/decode/*/result.json")}


@pytest.fixture
def decoded_again(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Decoding gives what it gave before. The folders of the tasks that were asked for it."""
    before, asked = results(run_folder), []

    def run(self: DecodeWork, context: WorkContext) -> DecodingResult:
        asked.append(context.folder)
        return DecodeWork.read(json.loads(before[context.folder]))

    monkeypatch.setattr(DecodeWork, "run", run)
    return asked


def test_a_rerun_keeps_what_was_timed(
    arguments: list[object], run_folder: Path, decoded_again: list[Path]
) -> None:
    before, kept = summary_of(run_folder), results(run_folder)
    run_offramp(*arguments).require(0)
    assert (decoded_again, results(run_folder)) == ([], kept)
    after = summary_of(run_folder)
    for key in ("decoding", "measured", "verdict", "predicted"):
        assert after[key] == before[key]


def test_steps_have_threads_of_their_own_which_are_chosen_once(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, counts = [], {}
    monkeypatch.setattr("offramp.timing.threads.fewest_threads", lambda model: asked.append(model) or 1)
    work = DecodeWork.run

    def counted(self: DecodeWork, context: WorkContext) -> DecodingResult:
        counts[self.kind] = torch.get_num_threads()
        return work(self, context)

    monkeypatch.setattr(DecodeWork, "run", counted)
    folder, words = tmp_path / "run", run_arguments(tiny_model, documents)
    with with_threads(2):
        said = run_offramp(*words, "-o", folder).require(0)
        assert "decoding with 1 of 2 threads" in said.err
        with with_threads(2):
            assert "decoding with" not in run_offramp(*words, "-o", folder).require(0).err
    assert len(asked) == 1
    assert counts == {"decode": 1}
    tasks = StudyFolder(folder).read_plan().tasks.values()
    assert {task.kind: task.recipe["threads"] for task in tasks if "threads" in task.recipe} == {
        **dict.fromkeys(("trace", "heads", "score", "league", "certify"), 2),
        **dict.fromkeys(("profile", "baselines", "decode"), 1),
    }
    machine = RunStart.last(StudyFolder(folder).journal.read().events).machine
    assert (machine["threads"], machine["decode_threads"]) == (2, 1)


def test_a_further_text_is_the_only_new_work(
    arguments: list[object], run_folder: Path, tmp_path: Path
) -> None:
    """But for certificates, which share the chance to be wrong with it."""
    other = write_documents(tmp_path / "other.jsonl", seed=1)
    before = {path.parent.name for path in run_folder.glob("tasks/*/*/manifest.json")}
    run_offramp(*arguments, "-w", f"jsonl:{other}#text", "--no-decode").require(0)
    new = [path for path in run_folder.glob("tasks/*/*/manifest.json") if path.parent.name not in before]
    kinds = Counter(path.parent.parent.name for path in new)
    assert kinds == {"heads": 1, "trace": 1, "score": 1, "league": 1, "tune": 3}
    assert len(summary_of(run_folder)["scores"]) == 3


def test_what_is_named_beside_takes_turns_and_is_the_only_new_work(
    arguments: list[object], run_folder: Path
) -> None:
    before = {path.parent.name for path in run_folder.glob("tasks/*/*/manifest.json")}
    run_offramp(*arguments, "--beside", "prune:drop=2", "--beside", "prune:drop=2 + shortlist").require(0)
    new = [path for path in run_folder.glob("tasks/*/*/manifest.json") if path.parent.name not in before]
    assert Counter(path.parent.parent.name for path in new) == {"decode": 2}
    for measurement in summary_of(run_folder)["decoding"]["workloads"]:
        for name in ("prune", "prune + shortlist"):
            (contender,) = [one for one in measurement["contenders"] if one["name"] == name]
            assert contender["full_depth"]
            assert contender["layers_per_token"] == LAYERS - 1
            assert contender["executed_agreement"]["value"] <= 1.0


def test_a_damaged_measurement_is_made_again(
    arguments: list[object], run_folder: Path, decoded_again: list[Path]
) -> None:
    folder, kept = next(iter(results(run_folder).items()))
    made = re.search(rb'"new_tokens": \d+', kept)
    assert made is not None
    (folder / "result.json").write_bytes(kept.replace(made[0], made[0] + b"0", 1))
    before = [d["new_tokens"] for d in summary_of(run_folder)["decoding"]["workloads"]]
    run_offramp(*arguments).require(0)
    assert decoded_again == [folder]
    assert [d["new_tokens"] for d in summary_of(run_folder)["decoding"]["workloads"]] == before


def test_a_family_that_the_engine_refuses_still_gets_its_report(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise ModelError("the model cannot be driven layer by layer: its state lies elsewhere")

    shutil.rmtree(run_folder / "tasks" / "decode")
    monkeypatch.setattr("offramp.decoding.engine.build.engine_of", refuses)
    outcome = run_offramp(*arguments).require(0)
    summary = summary_of(run_folder)
    assert summary["decoding"]["workloads"] == []
    assert set(summary["decoding"]["not_decoded"].values()) == {
        "the model cannot be driven layer by layer: its state lies elsewhere"
    }
    assert summary["measured"]["plain_seconds_per_token"]["value"] > 0
    assert "was not decoded: the model cannot be driven layer by layer" in " ".join(outcome.out.split())
    assert "its state lies elsewhere" in (run_folder / "report.html").read_text()


def test_one_text_that_fails_leaves_the_others(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OfframpError("NaN logits at token 3, layer 2")

    decoding = summary_of(run_folder)["decoding"]
    folder = next(iter(results(run_folder)))
    shutil.rmtree(folder)
    with monkeypatch.context() as patch:
        patch.setattr(DecodeWork, "run", fails)
        run_offramp(*arguments).require(0)
    found = summary_of(run_folder)["decoding"]
    assert len(found["workloads"]) == 1
    assert list(found["not_decoded"].values()) == ["NaN logits at token 3, layer 2"]
    monkeypatch.setattr(DecodeWork, "run", lambda self, context: NothingDecoded(""))
    run_offramp(*arguments, "--no-decode").require(0)
    assert summary_of(run_folder)["decoding"]["workloads"] == []
    assert decoding["not_decoded"] == {}


def test_without_decoding_and_with_fewer_texts_the_report_says_so(
    arguments: list[object], run_folder: Path
) -> None:
    chat = arguments.index("chat")
    run_offramp(*arguments[: chat - 1], *arguments[chat + 1 :], "--no-decode").require(0)
    decoding = summary_of(run_folder)["decoding"]
    assert decoding["workloads"] == []
    assert set(decoding["not_decoded"].values()) == {"--no-decode was given"}
    assert len(results(run_folder)) == 2, "what was timed before is kept for the next run"
    assert not list(run_folder.glob("traces/*/chat")), "a trace of a text that the run is not of any more"


AS_HERE = """
from offramp.runs import stages
from offramp.studies import plan
stages.DECODE_MINUTES, stages.ROUNDS, plan.PROFILE_SECONDS = {minutes}, {rounds}, {seconds}
"""
"""Lets a process ask for what the finished run was asked for."""


def wait_for_page(process: Any, page: Path, words: str) -> str:
    """The page as soon as it says this; every page seen on the way is whole."""
    deadline, seen = time.monotonic() + 120, ""
    while words not in seen:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        if page.exists() and (text := page.read_text()) != seen:
            assert Page(text).faults == []
            assert text.endswith("</html>\n")
            seen = text
        time.sleep(0.01)
    return seen


def test_killed_in_the_middle_the_page_opens_and_the_rerun_completes(
    arguments: list[object], documents: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that has all but the decoding of one text."""
    for path in (run_folder / "report.html", run_folder / "summary.json"):
        path.unlink()
    folder, _ = results(run_folder)
    shutil.rmtree(folder)
    before = AS_HERE.format(minutes=stages.DECODE_MINUTES, rounds=stages.ROUNDS, seconds=TIMING_SECONDS)
    process = start_offramp(*arguments, before=before)
    page = wait_for_page(process, run_folder / "report.html", "Still running: decoding")
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert (run_folder / "report.html").read_text() == page
    assert f"tracing jsonl:{documents}#text" in page.partition("Done: ")[2]
    assert "Early exit" in page
    assert not (run_folder / "summary.json").exists()
    run_offramp(*arguments).require(0)
    assert len(summary_of(run_folder)["decoding"]["workloads"]) == 2
    assert "Still running" not in (run_folder / "report.html").read_text()


def test_a_finished_page_stays_until_the_new_one_is_whole(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    page = (run_folder / "report.html").read_bytes()
    shutil.rmtree(run_folder / "tasks" / "decode")
    monkeypatch.setattr(DecodeWork, "run", stops)
    run_offramp(*arguments).require(130)
    assert (run_folder / "report.html").read_bytes() == page


def test_a_model_that_would_take_too_long_is_not_timed(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six prompts of six contenders take 6 x 6 x (2.5 + 8) tokens; six times the seconds are the most."""
    budget = json.loads(next(iter(results(run_folder).values())))["bench"]["circumstances"]["budget_seconds"]
    for share, decoded in ((1.01, 0), (0.99, 2)):
        shutil.rmtree(run_folder / "tasks" / "decode")
        seconds = share * 6.0 * budget / (6 * 6 * 10.5)
        monkeypatch.setattr(decode, "_plain_seconds", lambda *_, seconds=seconds: seconds)
        run_offramp(*arguments).require(0)
        decoding = summary_of(run_folder)["decoding"]
        assert len(decoding["workloads"]) == decoded
        why = decoding["not_decoded"].values()
        assert all("timing it would take too long" in text for text in why)
        assert len(why) == 2 - decoded


@pytest.fixture(scope="module")
def text_result(finished_run: Path, documents: Path) -> WorkloadResult:
    """A stand-in with what choosing looks at: the trace, and no answers."""
    (folder,) = [path for path in (finished_run / "traces").glob("*/*") if path.name != "chat"]

    class Stub:
        name = f"jsonl:{documents}#text"
        trace = Trace.load(folder)
        verdicts = tuned = league = ()

    return Stub()  # type: ignore[return-value]


def test_prompts_are_starts_of_documents_that_nothing_was_chosen_on(
    tiny_model: Path, text_result: WorkloadResult
) -> None:
    model, workload = load_model(str(tiny_model)), load_workload(text_result.name)
    prompts = pick_prompts(model, workload, text_result.trace, count=2)
    judging = {text_result.trace.documents[place].id for place in split_documents(text_result.trace, 0)[1]}
    assert prompts.unseen
    assert len(set(prompts.documents)) == 2
    assert set(prompts.documents) <= judging
    texts = {document.id: document.text for document in workload.documents}
    for ids, name in zip(prompts.ids, prompts.documents, strict=True):
        assert list(ids) == model.encode(texts[name])[:OPENING_TOKENS]
    # Then documents that were not traced; those that policies were chosen on, only where there are no others.
    many = pick_prompts(model, workload, text_result.trace)
    traced = {document.id for document in text_result.trace.documents}
    report = {text_result.trace.documents[place].id for place in split_roles(text_result.trace, 0).report}
    assert (
        many.documents[: len(report & judging)]
        == pick_prompts(model, workload, text_result.trace, count=len(report & judging)).documents
    )
    assert not set(many.documents[len(report & judging) :]) & traced
    one = text_result.trace.subset(np.array([0]))
    (only,) = [document for document in workload.documents if document.id == one.documents[0].id]
    assert not pick_prompts(model, replace(workload, documents=(only,)), one).unseen
    short = replace(workload, documents=tuple(replace(d, text="a b") for d in workload.documents))
    with pytest.raises(InputError, match="gives a prompt to decode from"):
        pick_prompts(model, short, text_result.trace)


def test_who_is_chosen(finished_run: Path) -> None:
    from offramp.scoring.estimate import Estimate
    from offramp.tuning.ranking import RankedPolicy
    from offramp.tuning.replayed_verdicts import judge
    from offramp.tuning.verdict import Verdict

    one = Estimate(1.0)
    (folder,) = [path for path in (finished_run / "traces").glob("*/*") if path.name != "chat"]
    judged = judge(Trace.load(folder), (0.95,))[0]
    verdict = replace(judged, policy=StaticExit(3), kv="recompute")

    def entry(policy: str, speed: float, reachable: bool = True, floor: float = 0.95) -> RankedPolicy:
        return RankedPolicy(
            family=policy, policy=parse_policy(policy), kv="propagate", reachable=reachable, floor=floor,
            quality=one, agreement=one, skip_ratio=one, net_speedup=Estimate(speed), seconds_per_token=one,
            plain_seconds_per_token=1.0, probe_share=0.0, probe_seconds=0.0,
        )  # fmt: skip

    looser = replace(verdict, floor=0.9, policy=StaticExit(1))
    league = Ranking("local", "", (0.95,), (), (looser, verdict), None)

    def chosen() -> list[tuple[str, str, float]]:
        return [(str(one.policy), one.kv, one.floor) for one in of_verdicts(league, ())]

    def judged_as(*verdicts: Verdict) -> Ranking:
        return replace(league, verdicts=verdicts)

    # The main floor's comes first; one of several floors is decoded once.
    assert chosen() == [("static:exit=3", "recompute", 0.95), ("static:exit=1", "recompute", 0.9)]
    league = judged_as(*league.verdicts, replace(verdict, floor=0.99))
    assert chosen() == [("static:exit=3", "recompute", 0.95), ("static:exit=1", "recompute", 0.9)]
    # A looser floor's policy where the main one has none.
    never = replace(verdict, policy=PLAIN_DECODING)
    league = judged_as(looser, never)
    assert chosen() == [("static:exit=1", "recompute", 0.9)]
    league = judged_as(never)
    assert chosen() == []
    entries = (
        entry("never", 1.0),
        entry("static:exit=2", 0.9),
        entry("static:exit=1", 0.8),
        entry("oracle:which=saturation", 1.4, reachable=False),
        entry("static:exit=3", 1.2, floor=0.9),
    )
    league = replace(league, entries=entries)
    assert chosen() == [("static:exit=2", "propagate", 0.95)]
    assert "never to exit" in of_verdicts(league, ())[0].why


def test_baselines_by_rule_are_timed_before_anything_is_certified(run_folder: Path) -> None:
    """On a machine with kernels for them; what the run certifies needs their times."""
    rule, plan = set(by_rule(None, (), "llama")), StudyFolder(run_folder).read_plan()
    timed = {task.key: task for task in plan.tasks.values() if task.kind == "baselines"}
    assert len(timed) == (2 if rule else 0)
    assert sum("before" in task.needs for task in timed.values()) == len(timed) // 2
    for task in plan.tasks.values():
        if task.kind in ("certify", "decode"):
            assert ("baselines" in task.needs) == bool(rule)
    for key, task in timed.items():
        result = json.loads((run_folder / "tasks" / "baselines" / key / "result.json").read_text())
        # On the second text what they keep is judged alone.
        assert result["elsewhere"] == (task.needs.get("before") in timed)
        bench = result["bench"]
        found = {one["name"]: one for one in bench["contenders"]}
        assert rule <= found.keys()
        for name in rule:
            assert found[name]["full_depth"]
            assert found[name]["ratio"]["value"] > 0.0
            assert 0.0 <= found[name]["executed_agreement"]["value"] <= 1.0


def test_where_baselines_cannot_be_timed_the_run_goes_on(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them take turns with the policies then."""
    rule = set(by_rule(None, (), "llama"))

    def refuses(*_: object, **__: object) -> None:
        raise ModelError("its state lies elsewhere")

    for kind in ("baselines", "certify", "decode"):
        shutil.rmtree(run_folder / "tasks" / kind, ignore_errors=True)
    with monkeypatch.context() as patch:
        patch.setattr("offramp.studies.work.baselines.BaselinesWork._timed", refuses)
        run_offramp(*arguments).require(0)
    for result in run_folder.glob("tasks/baselines/*/result.json"):
        assert json.loads(result.read_text())["why_none"] == "its state lies elsewhere"
    for measurement in summary_of(run_folder)["decoding"]["workloads"]:
        assert rule <= {one["name"] for one in measurement["contenders"]}
