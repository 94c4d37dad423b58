"""What the tests of the lm-eval model share: three tasks over local JSON files, and requests of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generation_cases import POLICY, counted_layers, reference_logits

from offramp.decoding.engine.build import engine_of
from offramp.models.calls import first_tensor

__all__ = ["POLICY", "counted_layers"]

TASKS = ("own_sums", "own_choices", "own_texts")

SUMS = [
    {"question": "numbers such as 12 and", "answer": " 345"},
    {"question": "the cat sat on the", "answer": " mat"},
    {"question": "deep layers change the guess", "answer": " less"},
]
CHOICES = [
    {"start": "the cat sat on", "choices": ["the mat", "a model", "words too"], "answer": 0},
    {"start": "a model reads one", "choices": ["rain", "token after another", "the"], "answer": 1},
    {"start": "numbers are", "choices": ["words", "words too", "cats"], "answer": 1},
]
TEXTS = [
    {"text": "the cat sat on the mat and looked at the rain, and a model reads one token after another"},
    {"text": "deep layers change the guess"},
]

SUMS_YAML = """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["\\n", "e"]
  max_gen_toks: 12
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
CHOICES_YAML = """
output_type: multiple_choice
doc_to_text: "{{start}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
"""
TEXTS_YAML = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
  - metric: byte_perplexity
    aggregation: weighted_perplexity
    higher_is_better: false
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
"""


def write_tasks(folder: Path) -> Path:
    """The three tasks' files: questions, YAML, and room for what the datasets library keeps."""
    folder.mkdir(exist_ok=True)
    for name, documents, settings in zip(
        TASKS, (SUMS, CHOICES, TEXTS), (SUMS_YAML, CHOICES_YAML, TEXTS_YAML), strict=True
    ):
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
        head = (
            f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
            f"  cache_dir: {folder / 'cache'}\ntest_split: test"
        )
        (folder / f"{name}.yaml").write_text(head + settings, encoding="utf-8")
    return folder


def evaluate(tasks: Path, model: Any, model_args: dict[str, Any] | None = None, **options: Any) -> Any:
    """The results of the three tasks."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    results = simple_evaluate(
        model=model,
        model_args=model_args,
        tasks=list(TASKS),
        task_manager=manager,
        bootstrap_iters=0,
        **options,
    )
    assert results is not None
    return results


def answers(results: Any) -> dict[str, list[Any]]:
    """What the model answered, task by task, in order."""
    return {name: [sample["resps"] for sample in results["samples"][name]] for name in TASKS}


def request(kind: str, *arguments: Any, task: str = "mine") -> Any:
    """One request to a model, as tasks make them."""
    from lm_eval.api.instance import Instance

    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0, metadata=(task, 0, 1))


def logprobs_of(logits: torch.Tensor, tokens: list[int]) -> np.ndarray:
    """Log-probability of each token under its row: float64 [tokens]."""
    rows = logits.double().log_softmax(-1)
    return rows.gather(-1, torch.tensor(tokens)[:, None])[:, 0].numpy()


def propagated(model: Any, context: list[int], continuation: list[int], exits: list[int]) -> np.ndarray:
    """Log-probabilities by one forward in which a position stops changing after its exit (CALM's rule)."""
    layers = engine_of(model).stack.layers
    fed = [*context, *continuation[:-1]]
    depths = [len(layers)] * (len(context) - 1) + exits
    logits = reference_logits(model.hf, layers, fed, depths)
    return logprobs_of(logits[len(context) - 1 :], continuation)


@torch.no_grad()
def lensed(model: Any, context: list[int], continuation: list[int], exits: list[int]) -> np.ndarray:
    """Log-probabilities by the full model's states at each exit, through its own norm and head."""
    stack, states = engine_of(model).stack, []
    handles = [
        layer.register_forward_hook(lambda module, given, output: states.append(first_tensor(output)))
        for layer in stack.layers
    ]
    model.hf(input_ids=torch.tensor([[*context, *continuation[:-1]]]), use_cache=False)
    for handle in handles:
        handle.remove()
    first = len(context) - 1
    rows = [
        model.hf.lm_head(model.hf.model.norm(states[exit - 1][0, first + place]))
        for place, exit in enumerate(exits)
    ]
    return logprobs_of(torch.stack(rows), continuation)
