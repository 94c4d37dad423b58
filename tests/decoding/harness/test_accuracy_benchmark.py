"""The table of accuracy beside agreement: its statistics by hand, its figures against one forward."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_modules import BENCHMARKS, benchmark
from scipy import stats

import offramp
from offramp.costs.hardware import find_machine
from offramp.decoding.generation.generate import FULL_MODEL
from offramp.decoding.options import DecodingOptions
from offramp.decoding.quality.tasks.task import Question, Task
from offramp.policies.policy_cost import exit_costs, prices_by_rows
from offramp.workloads.shared_text import Sketcher, write_sketch
from tiny_models import LAYERS, write_llama

LINE = "the cat sat on the mat and looked at the rain"


@pytest.fixture(scope="module")
def modules() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        names = ("accuracy_table", "accuracy_tasks", "accuracy")
        yield {name: benchmark(name) for name in names}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("accuracy") / "llama"))


@pytest.fixture(scope="module")
def model(folder: str) -> offramp.Model:
    return offramp.load_model(folder, dtype="float32")


def contender(modules: dict[str, ModuleType], model: offramp.Model, policy: str, kv: str) -> Any:
    options = FULL_MODEL if policy == "never" else DecodingOptions.read(policy, kv=kv)
    return modules["accuracy"].Contender(policy, options, model, find_machine("cpu-2core"))


class Words(Task):
    """Given questions; right if the answer is the solution."""

    name, licence, source, max_new_tokens = "words", "MIT", "here", 6

    def __init__(self, *questions: Question) -> None:
        self.asked = questions

    def questions(self, count: int, seed: int) -> list[Question]:
        return [*self.asked[:count]]

    def score(self, question: Question, answer: str) -> float:
        return float(answer == question.solution)


# --- the table


def test_intervals_are_those_that_were_published(modules: dict[str, ModuleType]) -> None:
    table = modules["accuracy_table"]
    # Newcombe (1998), Statistics in Medicine 17, 2635-2650, table II: 36, 12, 2 and 0 of 50 pairs.
    policy = [True] * 48 + [False] * 2
    plain = [True] * 36 + [False] * 12 + [True] * 2
    change = table.paired_interval(policy, plain)
    assert (change.value, change.low, change.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=5e-5)
    other = table.paired_interval(plain, policy)
    assert (other.low, other.high) == pytest.approx((-change.high, -change.low))
    for right, count in ((0, 10), (3, 20), (10, 10)):
        found = table.exact_interval(right, count)
        exact = stats.binomtest(right, count).proportion_ci(0.95, method="exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
    # Equal answers are no proof of equal accuracy: few questions leave room for a difference.
    same = table.paired_interval([True, False] * 5, [True, False] * 5)
    assert same.low < -0.1 < 0 < 0.1 < same.high


def test_near_chance_is_said(modules: dict[str, ModuleType]) -> None:
    table = modules["accuracy_table"]
    asked = [table.Asked(right, tokens=2, agreeing=1) for right in [True] * 9 + [False] * 11]
    row = table.row_of("t", "full model", 0.25, asked, None)
    assert row.above_chance == pytest.approx(stats.binomtest(9, 20, 0.25, "greater").pvalue)
    assert not row.near_chance  # p = 0.041
    assert "near chance" not in row.cells()[1]
    below = table.row_of("t", "policy", 0.25, [table.Asked(tokens=2), *asked[1:]], asked)
    assert below.near_chance  # 8 of 20: p = 0.10
    assert below.cells()[1] == "40 % (19 to 64), near chance"
    assert (below.lost, below.won, below.tokens) == (1, 0, 40)
    assert below.agreement.value == pytest.approx(19 / 40)
    nothing = [table.Asked()] * 5
    assert table.row_of("t", "full model", 0.0, nothing, None).near_chance
    choice = [
        Question("a", "p", "x", options=("x", "y")),
        Question("b", "p", "x", options=("x", "y", "z", "w")),
    ]
    assert table.chance_of(choice) == pytest.approx(0.375)
    free = [Question(str(place), "p", solution) for place, solution in enumerate("aabcd")]
    assert table.chance_of(free) == pytest.approx(0.4)
    assert table.chance_of(free[1:]) == 0.0
    assert table.chance_of([{"answer": 0, "choices": ["a", "b"]}]) == 0.5


# --- what is asked


def test_tasks_of_the_harness_give_nothing_away(modules: dict[str, ModuleType]) -> None:
    tasks = modules["accuracy_tasks"]
    found = tasks.cities(40, 1)
    assert found == tasks.cities(40, 1) != tasks.cities(40, 2)
    assert len({one["text"] for one in found}) == 40
    assert len({one["answer"] for one in found}) == 4
    for one in found:
        right = one["choices"][one["answer"]]
        assert len(set(one["choices"])) == 4
        assert not set(right.split()) & set(one["text"].split())
    passages = tasks.last_words(40, 1)
    assert len({one["text"] for one in passages}) == 40
    assert all(len(one["text"].split()) >= 39 and one["answer"].isalpha() for one in passages)


def test_the_last_word_is_asked_as_it_stands_in_the_passage(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    tasks = pytest.importorskip("lm_eval.tasks")
    documents = modules["accuracy_tasks"].last_words(3, 0)
    modules["accuracy_tasks"].write_task(tmp_path, "last-word", documents)
    manager = tasks.TaskManager(include_path=str(tmp_path), include_defaults=False)
    asked = tasks.get_task_dict(["last-word"], manager)["last-word"]
    asked.build_all_requests(limit=None, rank=0, world_size=1)
    assert [one.args for one in asked.instances] == [(one["text"], f" {one['answer']}") for one in documents]


def test_questions_that_heads_or_tuning_saw_are_left_out(modules: dict[str, ModuleType]) -> None:
    texts = [
        f"number {place} of some words that nobody else says, {place * 7} and {place * 11}"
        for place in range(9)
    ]
    task = Words(*(Question(str(place), text, "yes") for place, text in enumerate(texts)))
    saw = SimpleNamespace(seen_texts=(Sketcher().sketch(f"{texts[0]} yes"),))
    other = write_sketch(Sketcher().sketch(f"{texts[2]} yes"))
    tuned = SimpleNamespace(document_texts={"search": (other,)})
    contenders = [
        SimpleNamespace(options=SimpleNamespace(heads=saw, tuned=None)),
        SimpleNamespace(options=SimpleNamespace(heads=None, tuned=tuned)),
    ]
    found = modules["accuracy"].unseen_questions(task, 4, 0, contenders)
    assert [one.id for one in found] == ["1", "3", "4", "5"]


# --- what is measured


def reference(model: offramp.Model, prompt: list[int], tokens: list[int], exit: int) -> tuple[Any, Any, Any]:
    """One forward: log-probability of given tokens at an exit, what it says, and what the full model says."""
    states: list[torch.Tensor] = []
    model.stack.capture(torch.tensor([[*prompt, *tokens[:-1]]]), lambda *layer: states.append(layer[2]))
    read, full = (model.stack.readout(states[place - 1])[0, len(prompt) - 1 :] for place in (exit, LAYERS))
    logprobs = read.double().log_softmax(-1)[range(len(tokens)), tokens]
    return logprobs.numpy(), read.argmax(-1).numpy(), full.argmax(-1).numpy()


def test_options_are_counted_and_priced_as_they_ran(
    modules: dict[str, ModuleType], model: offramp.Model
) -> None:
    text, options = LINE, (" deep layers", " numbers such as words", " the cat")
    prompt = model.encode(text)
    static = contender(modules, model, "static:exit=2", "propagate")
    (asked,) = modules["accuracy"].ask(
        Words(Question("q", text, options[0], options=options)),
        [Question("q", text, options[0], options=options)],
        static,
    )
    tokens = [model.encode(text + option)[len(prompt) :] for option in options]
    lengths = [len(one) - 1 for one in tokens]
    assert (asked.tokens, asked.left) == (sum(map(len, tokens)), sum(lengths))
    assert (asked.executed, asked.full) == (2 * sum(lengths), LAYERS * sum(lengths))
    seconds = plain = 0.0
    for fed in lengths:
        costs = prices_by_rows(static.machine, model.shape, len(prompt) + (fed - 1) / 2)(1)
        seconds += fed * exit_costs(costs, {2: ()})[1]
        plain += fed * costs.plain
    assert (asked.seconds, asked.plain_seconds) == pytest.approx((seconds, plain))
    # Exact K and V: what the exit says of a text is one forward's, but for the first token, which is L's.
    exact = contender(modules, model, "static:exit=2", "recompute")
    (asked,) = modules["accuracy"].ask(Words(), [Question("q", text, options[0], options=options)], exact)
    agreeing = 0
    for one in tokens:
        _, said, full = reference(model, prompt, one, 2)
        agreeing += 1 + int((said[1:] == full[1:]).sum())
    assert asked.agreeing == agreeing < asked.tokens


def test_free_answers_agree_where_they_are_the_full_models(
    modules: dict[str, ModuleType], model: offramp.Model
) -> None:
    questions = [Question(str(place), LINE[: 9 + place], "?") for place in range(3)]
    for policy, least in (("never", 1.0), ("static:exit=4", 1.0), ("static:exit=1", 0.0)):
        found = modules["accuracy"].ask(Words(), questions, contender(modules, model, policy, "propagate"))
        shares = [one.agreeing / one.tokens for one in found]
        assert min(shares) >= least
        assert (min(shares) < 1.0) == (policy == "static:exit=1")
        if least:
            assert all(one.seconds == pytest.approx(one.plain_seconds) and not one.left for one in found)


def test_the_whole_table(
    modules: dict[str, ModuleType],
    folder: str,
    model: offramp.Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cities by lm-eval, of a policy and of the full model, against one forward for each option."""
    pytest.importorskip("lm_eval")
    arguments = ["--model", folder, "--hardware", "cpu-2core", "--tasks", "cities=3", "--json"]
    arguments += ["--keep", str(tmp_path), "--kv", "recompute", "--name", "early", "-p", "static:exit=2"]
    modules["accuracy"].main(arguments)
    printed = capsys.readouterr().out.strip().splitlines()
    full, early = json.loads(printed[-1])["rows"]
    assert (full["decoder"], early["decoder"]) == ("full model", "early")
    documents = modules["accuracy_tasks"].cities(3, 0)
    right = {2: 0, LAYERS: 0}
    agreeing = tokens = 0
    for one in documents:
        prompt = model.encode(one["text"])
        options = [model.encode(f"{one['text']} {choice}")[len(prompt) :] for choice in one["choices"]]
        for exit in right:
            sums = [reference(model, prompt, option, exit)[0].sum() for option in options]
            right[exit] += int(np.argmax(sums)) == one["answer"]
        for option in options:
            _, said, chosen = reference(model, prompt, option, 2)
            agreeing, tokens = agreeing + int((said == chosen).sum()), tokens + len(option)
    assert full["accuracy"]["value"] == pytest.approx(right[LAYERS] / 3)
    assert early["accuracy"]["value"] == pytest.approx(right[2] / 3)
    assert (early["tokens"], early["left"]) == (tokens, 1.0)
    assert early["agreement"]["value"] == pytest.approx(agreeing / tokens)
    assert any(line.startswith("| early | ") for line in printed)
    # What was asked is not asked again; another strategy is.
    monkeypatch.setattr(
        modules["accuracy"], "ask_harness", lambda name, documents, one: pytest.fail(one.options.kv)
    )
    modules["accuracy"].main(arguments)
    again = capsys.readouterr().out.strip().splitlines()
    assert again[:-1] == printed[:-1]
    with pytest.raises(pytest.fail.Exception, match="propagate"):
        modules["accuracy"].main(["propagate" if one == "recompute" else one for one in arguments])
