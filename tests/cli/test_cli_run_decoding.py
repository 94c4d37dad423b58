"""`offramp run` decodes for real at its end: what, on which prompts, kept, resumed, survived by the rest."""

from __future__ import annotations

import json
import shutil
import signal
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from command_line import finish, run_arguments, run_offramp, start_offramp
from offramp.cli import decoding_choice, decoding_stage
from offramp.cli.decoding_choice import (
    BUDGET_SECONDS,
    MOST_NEW_TOKENS,
    Choice,
    chosen_policies,
    new_tokens_for,
    seconds_after,
    seconds_for,
)
from offramp.cli.decoding_file import Kept, read_kept, write_kept
from offramp.cli.decoding_measurement import Task
from offramp.decoding.measurement.contenders import SHORT
from offramp.decoding.measurement.turns import FEWEST_VISITS
from offramp.decoding.openings import (
    FEWEST_NEW_TOKENS,
    OPENING_TOKENS,
    PROMPTS,
    Prompts,
    pick_prompts,
)
from offramp.errors import InputError, ModelError, OfframpError
from offramp.report.ranking import HEADLINE_FLOOR
from offramp.report.run_result import WorkloadResult
from offramp.report.summary import summary_schema
from offramp.tracing.loading import load_model
from offramp.tracing.trace import Trace
from offramp.tuning.splits import split_documents
from offramp.workloads.registry import load_workload
from tiny_models import LAYERS

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


class Nesting(HTMLParser):
    """Whether every element of a page is closed where it was opened."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.whole = True
        self.feed(page)
        self.close()
        self.whole = self.whole and not self.open and page.endswith("</html>\n")

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in ("meta", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.whole = self.whole and bool(self.open) and self.open.pop() == tag


def test_predicted_and_measured_stand_side_by_side(finished_run: Path, documents: Path) -> None:
    decoding = summary_of(finished_run)["decoding"]
    assert decoding["not_decoded"] == {}
    text, chat = decoding["workloads"]
    assert (text["workload"], chat["workload"]) == (f"jsonl:{documents}#text", "chat")
    for measurement in (text, chat):
        floors = [policy["floor"] for policy in measurement["policies"]]
        assert floors == sorted(set(floors), key=lambda floor: abs(floor - HEADLINE_FLOOR))
        for policy in measurement["policies"]:
            for name in ("predicted", "measured", "plain"):
                assert policy[f"{name}_seconds_per_token"] > 0
            parts = {part["part"]: part["measured"] for part in policy["error"]["parts"]}
            assert set(parts) == {"layers", "probes", "K,V repair", "heads", "overhead"}
            assert 0 < sum(parts.values()) < 60
        by_name = {contender["name"]: contender for contender in measurement["contenders"]}
        assert {"never exit", "generate()", f"{measurement['plain']} again"} <= set(by_name)
        assert measurement["stopped"] == "rounds"
        count = measurement["prompts"]
        assert FEWEST_VISITS <= count <= PROMPTS
        assert not any("layers" in sentence for sentence in measurement["defects"])
        for contender in by_name.values():
            if contender["role"] != "peer":  # a library's own decoder claims nothing
                assert contender["claimed_layers_per_token"] == contender["layers_per_token"]
        for policy in measurement["policies"]:
            timed = by_name[policy["contender"]]
            assert len(timed["samples"]) == len(timed["clusters"]) == count
            assert policy["answer"] == timed["answer"]
            assert policy["executed_agreement"]["value"] == policy["free_running"]["agreement"]["value"]
            assert policy["counted"]["layers"] > 0
            assert set(policy["gain"]) == {"layers", "head", "probes"}
            saved = 1 - policy["error"]["priced_seconds_per_token"] / policy["plain_seconds_per_token"]
            if measurement["plain"] == "never exit":
                assert sum(policy["gain"].values()) == pytest.approx(saved, abs=1e-6)
        assert by_name["never exit"]["same_output"] == 1.0
        assert by_name["generate(prompt_lookup_num_tokens)"]["same_output"] == 1.0
        assert by_name["never exit"]["layers_per_token"] == LAYERS
    assert text["a_a"] == chat["a_a"], "the plain decoder of both texts is compared to itself together"
    assert all("a static cache was not tried" in " ".join(one["notes"]) for one in (text, chat))
    page = (finished_run / "report.html").read_text()
    assert "Decoded for real" in page
    assert "Still running" not in page
    assert Nesting(page).whole


def test_a_rerun_keeps_what_was_timed(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def timed_again(*_: object) -> None:
        raise AssertionError("timed again")

    monkeypatch.setattr(decoding_stage, "decode_together", timed_again)
    monkeypatch.setattr(decoding_stage, "time_plain_decoding", timed_again)
    monkeypatch.setattr("offramp.cli.pipeline.time_plain_decoding", timed_again)
    before, kept = summary_of(run_folder), (run_folder / "decoding.json").read_bytes()
    run_offramp(*arguments).require(0)
    after = summary_of(run_folder)
    assert (run_folder / "decoding.json").read_bytes() == kept
    for key in ("decoding", "measured", "verdict", "predicted"):
        assert after[key] == before[key]


def kept_in(folder: Path) -> Kept:
    kept = read_kept(folder)
    assert kept is not None
    return kept


def test_overwriting_times_again_and_another_policy_does_too(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = kept_in(run_folder)
    timed: list[list[int]] = []

    def decode(model: object, tasks: Any, prepared: object, new_tokens: int, seconds: float) -> Any:
        timed.append([len(task.choices) for task in tasks])
        return [replace(one, measured_on="2026-02-03T04:05:06+00:00") for one in kept.decoded]

    monkeypatch.setattr(decoding_stage, "decode_together", decode)
    run_offramp(*arguments, "--overwrite").require(0)
    counts = [len(one.policies) for one in kept.decoded]
    assert timed == [counts]
    assert {w["measured_on"] for w in summary_of(run_folder)["decoding"]["workloads"]} == {
        "2026-02-03T04:05:06+00:00"
    }
    assert "2026-02-03 04:05 UTC" in (run_folder / "report.html").read_text()
    another = [Choice("static:exit=1", "propagate", "to try it", 0.95)]
    monkeypatch.setattr(decoding_stage, "chosen_policies", lambda _: another)
    run_offramp(*arguments).require(0)
    assert timed == [counts, [1, 1]]


def test_a_damaged_measurement_is_made_again(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run_folder / "decoding.json"
    kept = kept_in(run_folder)
    path.write_text(path.read_text().replace('"new_tokens": 8', '"new_tokens": 9', 1))
    monkeypatch.setattr(decoding_stage, "decode_together", lambda *_: list(kept.decoded))
    outcome = run_offramp(*arguments).require(0)
    assert "decoded again: decoding.json is damaged" in outcome.err
    assert [d["new_tokens"] for d in summary_of(run_folder)["decoding"]["workloads"]] == [8, 8]


def test_what_was_decoded_reads_back_equal(finished_run: Path, tmp_path: Path) -> None:
    kept = kept_in(finished_run)
    assert len(kept.decoded) == 2
    write_kept(tmp_path, kept)
    assert (tmp_path / "decoding.json").read_bytes() == (finished_run / "decoding.json").read_bytes()
    assert read_kept(tmp_path) == kept


def test_a_family_that_the_engine_refuses_still_gets_its_report(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise ModelError("the model cannot be driven layer by layer: its state lies elsewhere")

    monkeypatch.setattr(decoding_stage, "engine_of", refuses)
    outcome = run_offramp(*arguments).require(0)
    summary = summary_of(run_folder)
    assert summary["decoding"]["workloads"] == []
    assert set(summary["decoding"]["not_decoded"].values()) == {
        "the model cannot be driven layer by layer: its state lies elsewhere"
    }
    assert summary["measured"]["plain_seconds_per_token"]["value"] > 0
    assert "No policy was decoded for real" in " ".join(outcome.out.split())
    assert "its state lies elsewhere" in (run_folder / "report.html").read_text()


def test_one_text_that_fails_leaves_the_others(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = kept_in(run_folder)
    (run_folder / "decoding.json").unlink()
    found = [OfframpError("NaN logits at token 3, layer 2"), kept.decoded[1]]
    monkeypatch.setattr(decoding_stage, "decode_together", lambda *_: found)
    run_offramp(*arguments).require(0)
    decoding = summary_of(run_folder)["decoding"]
    assert [measurement["workload"] for measurement in decoding["workloads"]] == ["chat"]
    assert list(decoding["not_decoded"].values()) == ["NaN logits at token 3, layer 2"]
    monkeypatch.setattr(decoding_stage, "decode_together", None)
    run_offramp(*arguments).require(0)
    assert summary_of(run_folder)["decoding"] == decoding, "a rerun says the same"


def test_without_decoding_the_report_says_so(arguments: list[object], run_folder: Path) -> None:
    run_offramp(*arguments, "--no-decode").require(0)
    decoding = summary_of(run_folder)["decoding"]
    assert decoding["workloads"] == []
    assert set(decoding["not_decoded"].values()) == {"--no-decode was given"}
    assert (run_folder / "decoding.json").exists(), "what was timed before is kept for the next run"


def wait_for_page(process: Any, page: Path, words: str) -> str:
    """The page as soon as it says this; every page seen on the way is whole."""
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, finish(process)
        assert time.monotonic() < deadline
        if page.exists():
            text = page.read_text()
            assert Nesting(text).whole
            if words in text:
                return text
        time.sleep(0.01)


def test_killed_in_the_middle_the_page_opens_and_the_rerun_completes(
    tiny_model: Path,
    documents: Path,
    tmp_path: Path,
    finished_run: Path,  # the machine is timed already
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    command = ["run", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", 480, "-o", folder]
    process = start_offramp(*command)
    page = wait_for_page(process, folder / "report.html", "Still running: decoding for real.")
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert (folder / "report.html").read_text() == page
    assert f"Done: the machine timed and jsonl:{documents}#text traced" in page
    assert "Early exit would" in page or "too close to call" in page
    assert not (folder / "summary.json").exists()
    monkeypatch.setattr(decoding_choice, "MOST_NEW_TOKENS", FEWEST_NEW_TOKENS)
    run_offramp(*command).require(0)
    assert len(summary_of(folder)["decoding"]["workloads"]) == 1
    assert "Still running" not in (folder / "report.html").read_text()


def test_a_finished_page_stays_until_the_new_one_is_whole(
    arguments: list[object], run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    page = (run_folder / "report.html").read_bytes()
    monkeypatch.setattr("offramp.cli.pipeline.decode_workloads", stops)
    run_offramp(*arguments).require(130)
    assert (run_folder / "report.html").read_bytes() == page


def test_sizes_follow_the_budget() -> None:
    # 3 + 3.5 and 1 + 3.5 contenders on four prompts; 10 trials, 6 warm-ups, and 2 x 3 decodings of the pilot.
    visits = 4 * 11
    decodings = visits + 10 + 6 + 6
    # The parts of 4 policies; (4 + 2) x 4 answers are read.
    after = 0.05 * 4 + 0.06 * (4 * (2.5 + 9) + 2.5 * 24)
    assert seconds_after([3, 1], 0.06, 9) == pytest.approx(after)
    tokens = 9 * (visits + 10 + 6) + 6 * SHORT.warm_up_tokens
    timing = 0.05 * decodings + 0.06 * (2.5 * decodings + tokens)
    assert seconds_for([3, 1], 0.06, 9) == pytest.approx(timing + after)
    # Trials and the pilot are never longer than they need be.
    more = seconds_for([3, 1], 0.06, 25) - seconds_for([3, 1], 0.06, 24)
    assert more == pytest.approx(0.06 * (visits + 4))
    assert new_tokens_for([3], 0.001) == MOST_NEW_TOKENS
    assert new_tokens_for([3], 10.0) == 0
    found = new_tokens_for([3, 1, 1], 0.06)
    assert FEWEST_NEW_TOKENS <= found < MOST_NEW_TOKENS
    assert seconds_for([3, 1, 1], 0.06, found) <= BUDGET_SECONDS < seconds_for([3, 1, 1], 0.06, found + 1)


@pytest.mark.parametrize(
    ("plain", "names", "choices", "new_tokens"),
    [
        (0.002, ["a", "b", "c"], [3, 1, 1], MOST_NEW_TOKENS),
        (0.06, ["a", "b", "c"], [3, 1, 1], 8),
        (0.07, ["a", "b", "c"], [1, 1, 1], 8),
        (0.2, ["a"], [1], 8),
        (0.7, ["a"], [1], FEWEST_NEW_TOKENS),
        (3.0, [], [], 0),
    ],
)
def test_a_slow_model_leaves_out_what_would_take_too_long(
    plain: float, names: list[str], choices: list[int], new_tokens: int
) -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    cells = [Choice(f"static:exit={exit}", "propagate", "") for exit in (1, 2, 3)]
    prompts = Prompts(((1, 2, 3),), ("one",), True)
    tasks = [
        Task(Named(name), Named(name), tuple(cells[:count]), prompts, ())  # type: ignore[arg-type]
        for name, count in (("a", 3), ("b", 1), ("c", 1))
    ]
    kept, tokens, missing = decoding_stage.within_budget(tasks, plain)
    assert [task.result.name for task in kept] == names
    assert [len(task.choices) for task in kept] == choices
    assert tokens == new_tokens
    assert set(missing) == {"a", "b", "c"} - set(names)
    assert all("offramp bench" in why for why in missing.values())
    if choices[:1] == [1]:
        assert "static:exit=2, static:exit=3" in kept[0].left_out[0]
        assert not any(task.left_out for task in kept[1:])


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
    prompts = pick_prompts(model, workload, text_result.trace, count=3)
    judging = {text_result.trace.documents[place].id for place in split_documents(text_result.trace, 0)[1]}
    assert prompts.unseen
    assert len(set(prompts.documents)) == 3
    assert set(prompts.documents) <= judging
    texts = {document.id: document.text for document in workload.documents}
    for ids, name in zip(prompts.ids, prompts.documents, strict=True):
        assert list(ids) == model.encode(texts[name])[:OPENING_TOKENS]
    one = text_result.trace.subset(np.array([0]))
    assert not pick_prompts(model, workload, one).unseen


def test_texts_too_short_for_a_prompt_are_refused(tiny_model: Path, text_result: WorkloadResult) -> None:
    model, workload = load_model(str(tiny_model)), load_workload(text_result.name)
    short = replace(workload, documents=tuple(replace(d, text="a b") for d in workload.documents))
    with pytest.raises(InputError, match="gives a prompt to decode from"):
        pick_prompts(model, short, text_result.trace)


def test_who_is_chosen(finished_run: Path) -> None:
    from offramp.scoring.estimate import Estimate
    from offramp.tuning.judging import judge
    from offramp.tuning.ranking import RankedPolicy
    from offramp.tuning.tuned import Tuned
    from offramp.tuning.verdict import Verdict

    one = Estimate(1.0)
    (folder,) = [path for path in (finished_run / "traces").glob("*/*") if path.name != "chat"]
    judged = judge(Trace.load(folder), (0.95,))[0]
    verdict = replace(judged, policy="static:exit=3", kv="recompute")

    def entry(policy: str, speed: float, reachable: bool = True, floor: float = 0.95) -> RankedPolicy:
        return RankedPolicy(policy, policy, reachable, floor, one, one, Estimate(speed), 1.0, 0.0, 0.0)

    class Stub:
        verdicts: tuple[Verdict, ...] = (replace(verdict, floor=0.9, policy="static:exit=1"), verdict)
        tuned: tuple[Tuned, ...] = ()
        league: tuple[RankedPolicy, ...] = ()

    result: Any = Stub()

    def chosen() -> list[tuple[str, str, float | None]]:
        return [(one.policy, one.kv, one.floor) for one in chosen_policies(result)]

    # The main floor's comes first; one of several floors is decoded once.
    assert chosen() == [("static:exit=3", "recompute", 0.95), ("static:exit=1", "recompute", 0.9)]
    result.verdicts = (*result.verdicts, replace(verdict, floor=0.99))
    assert chosen() == [("static:exit=3", "recompute", 0.95), ("static:exit=1", "recompute", 0.9)]
    # A looser floor's policy where the main one has none.
    result.verdicts = (replace(verdict, floor=0.9, policy="static:exit=1"), replace(verdict, policy="never"))
    assert chosen() == [("static:exit=1", "recompute", 0.9)]
    result.verdicts = (replace(verdict, policy="never"),)
    assert chosen() == []
    result.league = (
        entry("never", 1.0),
        entry("static:exit=2", 0.9),
        entry("static:exit=1", 0.8),
        entry("oracle:saturation", 1.4, reachable=False),
        entry("static:exit=3", 1.2, floor=0.9),
    )
    assert chosen() == [("static:exit=2", "propagate", 0.95)]
    assert "never to exit" in chosen_policies(result)[0].why
