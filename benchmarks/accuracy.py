"""Accuracy beside agreement: the full model and exit policies on the same questions of four tasks.

    python benchmarks/accuracy.py --kv recompute -p threshold:signal=max_prob,value=0.9,exits=25 \\
        --heads exits -p p95.json -p p90.json

Each --policy goes with the --heads and --kv before it; a tuned one brings its own. Tasks: those of
`offramp bench --task`, and two of lm-evaluation-harness that `OfframpLM` scores (accuracy_tasks.py). None
needs a network. Questions that share text with what heads were fitted on, or policies tuned on, are left out.

Likelihoods are read off the whole head, whatever list a policy reads when it generates. `agreement`: tokens
of free answers that are the full model's choice on the same prefix; or of given options, at which the exit's
choice is the full model's. Both K and V are as executed. `speed`: of the steps that ran, by the prices of a
machine, over plain decoding of as many tokens. With --json the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np

import offramp
from accuracy_table import Asked, Row, chance_of, row_of, show
from accuracy_tasks import OF_HARNESS, write_task
from offramp.costs.hardware import LOCAL, find_machine, load_local_profile
from offramp.costs.machine import Machine
from offramp.decoding.generation.generate import FULL_MODEL
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.generation.scoring import Scored, Scorer
from offramp.decoding.measurement.forecast import Decoding
from offramp.decoding.options import DecodingOptions
from offramp.decoding.quality.accuracy import answered
from offramp.decoding.quality.judging import full_models_choices, judge
from offramp.decoding.quality.tasks.registry import load_task
from offramp.decoding.quality.tasks.task import Question, Task
from offramp.files import sha256_of_text, write_json_atomically
from offramp.models.model import Model
from offramp.policies.cost_breakdown import Usage, lines_of
from offramp.policies.policy_cost import prices_by_rows
from offramp.policies.rules.short_list import with_whole_head
from offramp.workloads.shared_text import Sketcher, read_sketch, shares_text

COUNTS = "multiple-choice=24,reasoning-gym=24,cities=60,last-word=80"


@dataclass(frozen=True)
class Contender:
    """A way to decode a model. machine: that prices what runs."""

    name: str
    options: DecodingOptions
    model: Model
    machine: Machine

    @property
    def key(self) -> object:
        """All that its answers and their prices depend on, but for the program."""
        options = self.options
        heads = None if options.heads is None else options.heads.fingerprint
        how = (str(options.policy), options.kv, str(options.draft_length), heads)
        return (*how, self.model.identity.fingerprint, self.model.dtype, self.machine)

    def decoded(self, prompt: list[int], run: BatchGeneration, *, given: bool) -> Asked:
        """One answer, or one option that was forced (`given`); whether it is right is not known here."""
        (row,) = run.rows
        judged, fed = judge(self.model, prompt, row.tokens), len(row.tokens) - 1
        same = judged.chosen == row.chosen if given else full_models_choices(judged, 0, self.model.dtype)
        executed = row.layers_executed - row.prompt_layers
        return self._asked(same, row.exits, executed, fed, len(prompt), run.usage)

    def scored(self, context: list[int], continuation: list[int], scored: Scored) -> Asked:
        """One request of lm-eval, as above."""
        same = judge(self.model, context, continuation).chosen == scored.chosen
        fed = len(continuation)
        executed = scored.layers_executed
        return self._asked(same, scored.exits, executed, fed, len(context) - 1, scored.usage)

    def _asked(self, same: Any, exits: Any, executed: int, fed: int, first: int, usage: Usage) -> Asked:
        """first: position of the first token that was fed."""
        model, fitted = self.model, Decoding(self.options).fitted
        at = prices_by_rows(self.machine, model.shape, first + (fed - 1) / 2, fitted)
        return Asked(
            tokens=len(same),
            agreeing=int(np.sum(same)),
            left=int(np.sum(exits < model.layers)),
            executed=executed,
            full=fed * model.layers,
            seconds=sum(line.total for line in lines_of(usage, at)),
            plain_seconds=fed * at(1).plain,
        )


# --- tasks of `offramp bench`


def unseen_questions(task: Task, count: int, seed: int, contenders: Sequence[Contender]) -> list[Question]:
    """Questions that share no text with documents that heads were fitted on, or policies tuned on.

    Raises InputError if there are not so many.
    """
    seen: list[Any] = []
    for options in (one.options for one in contenders):
        seen += () if options.heads is None else options.heads.seen_texts or ()
        roles = {} if options.tuned is None else options.tuned.document_texts
        seen += [read_sketch(text) for texts in roles.values() for text in texts]
    drawn, sketcher = count, Sketcher()
    while True:
        questions = task.questions(drawn, seed)
        texts = [sketcher.sketch(f"{one.prompt} {one.solution}") for one in questions]
        kept = [one for one, out in zip(questions, shares_text(texts, seen), strict=True) if not out]
        if len(kept) >= count:
            return kept[:count]
        drawn += count - len(kept)


def ask(task: Task, questions: Sequence[Question], contender: Contender) -> list[Asked]:
    """Questions one by one, in their order."""
    options = replace(contender.options, new_tokens=task.max_new_tokens)
    found = []
    for question in questions:
        one = answered(contender.model, task, [question], options)
        parts = [contender.decoded(one.prompts[0], run, given=bool(question.options)) for run in one.runs]
        found.append(Asked.of(one.scores[0] == 1.0, parts))
    return found


# --- tasks of lm-evaluation-harness


@dataclass
class Listening:
    """A scorer that remembers what it scored."""

    scorer: Scorer
    heard: list[tuple[list[int], list[int], Scored]] = field(default_factory=list)

    def score(self, context: list[int], continuation: list[int]) -> Scored:
        """As the scorer does."""
        scored = self.scorer.score(context, continuation)
        self.heard.append((context, continuation, scored))
        return scored


def ask_harness(name: str, documents: Sequence[Mapping[str, Any]], contender: Contender) -> list[Asked]:
    """The same by lm-eval's own evaluation, in the documents' order."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from offramp.decoding.harness.model import OfframpLM

    options, model = contender.options, contender.model
    policy = with_whole_head(options.policy)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        write_task(Path(folder), name, documents)
        how: dict[str, Any] = {"kv": options.kv, "heads": options.heads, "draft_length": options.draft_length}
        scores: Any = OfframpLM(model, policy=policy, **how)
        heard: list[tuple[list[int], list[int], Scored]] = []
        if policy.needs(model.layers):  # else lm-eval's own code scores
            scores._scorer = Listening(scores._scorer, heard)
        manager = TaskManager(include_path=folder, include_defaults=False)
        found = simple_evaluate(scores, tasks=[name], task_manager=manager, bootstrap_iters=0)
    rest, asked = iter(heard), []
    for sample in sorted(found["samples"][name], key=lambda sample: int(sample["doc_id"])):
        parts = [contender.scored(*next(rest)) for _ in sample["arguments"] if heard]
        asked.append(Asked.of(sample["acc"] == 1.0, parts))
    assert next(rest, None) is None, "requests come in the order of their documents"
    return asked


# --- the command


class AddPolicy(argparse.Action):
    """A policy with the heads and the strategy named before it."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        """Add it to `policies`."""
        given = {"policy": values, "heads": namespace.heads, "kv": namespace.kv, "name": namespace.name}
        namespace.policies, namespace.name = [*namespace.policies, given], None


def contender_of(
    model: Model, machine: Machine, policy: str, heads: str | None, kv: str | None, name: str | None
) -> Contender:
    """A policy as it was given. Raises what reading policies and heads raises."""
    tuned = Path(policy).is_file()
    options = DecodingOptions.read(policy, heads=heads or None, kv=None if tuned else kv)
    options.check_model(model)
    return Contender(name or (Path(policy).stem if tuned else policy), options, model, machine)


def measure(asked: argparse.Namespace, model: Model, machine: Machine) -> Iterator[list[Row]]:
    """The rows of one task after the other, the full model's first."""
    contenders = [
        Contender("full model", FULL_MODEL, model, machine),
        *(contender_of(model, machine, **policy) for policy in asked.policies),
    ]
    for name, _, count in (one.partition("=") for one in asked.tasks.split(",")):
        questions: Sequence[Any]
        if name in OF_HARNESS:
            questions = OF_HARNESS[name].documents(int(count), asked.seed)
            ask_all, shown = partial(ask_harness, name, questions), repr(questions)
        else:
            task = load_task(name)
            questions = unseen_questions(task, int(count), asked.seed, contenders)
            ask_all = partial(ask, task, questions)
            shown = repr([(one.id, one.prompt, one.solution, one.options) for one in questions])
        answers: list[list[Asked]] = []
        for one in contenders:
            answers.append(kept(asked.keep, (name, shown, one.key), partial(ask_all, one)))
            print(f"{name}: {one.name}, {time.process_time():.0f} CPU seconds so far", file=sys.stderr)
        chance, names = chance_of(questions), [one.name for one in contenders]
        yield [
            row_of(name, decoder, chance, found, answers[0] if place else None)
            for place, (decoder, found) in enumerate(zip(names, answers, strict=True))
        ]


def kept(folder: Path | None, key: object, ask_them: Callable[[], list[Asked]]) -> list[Asked]:
    """What a folder keeps of the very same questions, else what is asked now, kept there."""
    path = None if folder is None else folder / f"{sha256_of_text(repr(key))}.json"
    if path is not None and path.is_file():
        return [Asked(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    found = ask_them()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomically(path, [asdict(one) for one in found])
    return found


def machine_of(name: str, model: Model, threads: int | None) -> Machine:
    """A machine; of `local` the timings with so many threads, this process's if None. Raises InputError."""
    if name != LOCAL:
        return find_machine(name)
    fingerprint = model.identity.fingerprint
    return load_local_profile(
        fingerprint, model.dtype, attention=model.attention, threads=threads, model=model.described
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table for each task as soon as it is there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.set_defaults(policies=[])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--policy", "-p", action=AddPolicy, help="may be given again")
    parser.add_argument("--name", help="of the next policy, for the table")
    parser.add_argument("--heads", help="of the policies after it, '' for none")
    parser.add_argument("--kv", help="of the policies after it that are texts")
    parser.add_argument("--tasks", default=COUNTS, help="names and how many questions; %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hardware", default=LOCAL)
    parser.add_argument("--threads", type=int, help="of the timings of local; this process's by default")
    parser.add_argument("--keep", type=Path, help="folder of answers: what was asked is not asked again")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args(arguments)
    model = offramp.load_model(asked.model, dtype="float32")
    machine = machine_of(asked.hardware, model, asked.threads)
    rows: list[Row] = []
    for of_task in measure(asked, model, machine):
        show(of_task)
        rows += of_task
    if asked.json:
        shown = [{**asdict(row), "near_chance": row.near_chance} for row in rows]
        about = {"policies": asked.policies, "cpu_seconds": time.process_time(), "load": os.getloadavg()}
        print(json.dumps({"rows": shown, **about}))


if __name__ == "__main__":
    main()
