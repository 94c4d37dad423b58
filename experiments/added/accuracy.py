"""What agreement costs in right answers: the full model, its cut head and two policies on the same questions.

    python experiments/added/accuracy.py EXITS/exits.safetensors    # goes on where it was stopped

Every token is decoded as it would be for a user, by `offramp.decoding.harness` inside lm-eval. The policies
are those that the study of smollm2 executed: on sums for questions that are answered by writing, on functions
for those that are scored by likelihood, which a cut head cannot do and a policy does with the whole head.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np

import offramp
from offramp.decoding.harness.__main__ import TASKS
from offramp.decoding.harness.model import OfframpLM
from offramp.files import write_text_atomically

KEPT = Path(__file__).parents[2] / "docs" / "results" / "added" / "accuracy"
MODEL, DTYPE = "smollm2", "float32"


@dataclass(frozen=True)
class Decoder:
    """One way to answer."""

    name: str
    policy: str | None
    """None: the full model."""
    kv: str = "recompute"


@dataclass(frozen=True)
class Task:
    """Questions, and who answers them."""

    name: str
    decoders: tuple[Decoder, ...]
    chat: bool
    """Whether a question is put as a message to the model that was tuned for chat."""
    text: str | None
    """A workload that exits were trained on: questions of it are left out."""


FULL = Decoder("full model", None)
REASONING = Task(
    "offramp-reasoning",
    (
        FULL,
        Decoder("cut head", "shortlist:policy=[never],at=all"),
        Decoder(
            "95 %", "shortlist:policy=[threshold:signal=restricted_margin,value=0.45364,exits=20],at=all"
        ),
        Decoder(
            "90 %", "shortlist:policy=[threshold:signal=restricted_margin,value=0.456,exits=14+20],at=all"
        ),
    ),
    chat=True,
    text="math:short",
)
CITIES = Task(
    "offramp-cities",
    (
        FULL,
        Decoder("95 %", "threshold:signal=restricted_margin,value=0.2178,exits=24"),
        Decoder("90 %", "threshold:signal=correctness_network,value=0.6919,exits=14"),
    ),
    chat=False,
    text=None,
)


def answers_of(
    task: Task, decoder: Decoder, model: Any, heads: Path, seen: Sequence[str], limit: int
) -> dict[str, Any]:
    """Every question's answer and whether it is right, by lm-eval."""
    exits = (
        {} if decoder.policy is None else {"policy": decoder.policy, "kv": decoder.kv, "heads": str(heads)}
    )
    language_model = OfframpLM(pretrained=model, **exits)
    results = lm_eval.simple_evaluate(
        language_model,
        tasks=[task.name],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(TASKS)),
        apply_chat_template=task.chat,
        limit=limit,
        log_samples=True,
        bootstrap_iters=0,
    )
    samples = sorted(results["samples"][task.name], key=lambda sample: sample["doc_id"])
    new = [sample for sample in samples if not any(sample["doc"]["text"] in text for text in seen)]
    return {
        "name": decoder.name,
        "policy": decoder.policy,
        "questions": [sample["doc_id"] for sample in new],
        "left_out": len(samples) - len(new),
        "right": [int(sample["acc"]) for sample in new],
        "answers": [answer_of(sample) for sample in new],
        "offramp": results["config"]["offramp"],
    }


def answer_of(sample: Mapping[str, Any]) -> str | int:
    """What was written, or which choice was likeliest."""
    answers = sample["filtered_resps"]
    return str(answers[0]) if len(answers) == 1 else int(np.argmax([loss for loss, _ in answers]))


def main() -> None:
    """Ask every decoder that has not answered yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("heads", type=Path, metavar="EXITS", help="exits.safetensors of the study of smollm2")
    parser.add_argument("--limit", type=int, default=500, help="questions of a task, at most")
    arguments = parser.parse_args()
    model = offramp.load_model(MODEL, dtype=DTYPE)
    for task in (CITIES, REASONING):
        path = KEPT / f"{MODEL}-{task.name.removeprefix('offramp-')}.json"
        kept = json.loads(path.read_text()) if path.exists() else []
        seen = (
            []
            if task.text is None
            else [document.text for document in offramp.load_workload(task.text).documents]
        )
        for decoder in task.decoders:
            if all(
                (answered["name"], answered["policy"]) != (decoder.name, decoder.policy) for answered in kept
            ):
                kept.append(answers_of(task, decoder, model, arguments.heads, seen, arguments.limit))
                KEPT.mkdir(parents=True, exist_ok=True)
                write_text_atomically(path, json.dumps(kept) + "\n")


if __name__ == "__main__":
    main()
