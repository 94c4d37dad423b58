"""Accuracy on a task with a real scorer: the full model beside a policy, on the same questions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.generation.generate import FULL_MODEL, generate_batch
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.generation.result import BatchGeneration
from offramp.decoding.measurement.results import Interval, TaskScore
from offramp.decoding.options import DecodingOptions, PolicySource
from offramp.decoding.quality.judging import judge, mean_of
from offramp.decoding.quality.tasks.registry import load_task
from offramp.decoding.quality.tasks.task import Question, Task
from offramp.errors import InputError, OfframpError
from offramp.models.model import Model
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.short_list import with_whole_head
from offramp.scoring.estimate import document_bootstrap


class _Listener:
    """A logits processor that changes nothing and notes the log-probability of each forced token.

    Where a position is predicted twice, as a draft and when it is verified, the later one holds.
    """

    def __init__(self, prompt: int, forced: list[int]) -> None:
        self.prompt = prompt
        self.forced = forced
        self.heard: dict[int, float] = {}

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        place = ids.shape[1] - self.prompt
        if place < len(self.forced):
            self.heard[place] = float(scores[0].float().log_softmax(-1)[self.forced[place]])
        return scores


def full_likelihood(model: Model, prompt: list[int], continuation: list[int]) -> float:
    """Mean log-probability per token in nats under the full model: one forward."""
    return float(judge(model, prompt, continuation).logprob.mean())


def policy_likelihood(
    model: Model, prompt: list[int], continuation: list[int], options: DecodingOptions
) -> tuple[float, BatchGeneration]:
    """Mean log-probability per token in nats, each read from the exit the token left by, and the generation.

    The continuation is forced. Penalties of the model's own generation config are off: what is asked for is
    the exits' own probability. A short list gives other tokens none, so that exits of a policy that reads one
    are read off the whole head.

    Raises OfframpError if the generation stopped before the end of the continuation.
    """
    from transformers import LogitsProcessorList

    listener = _Listener(len(prompt), continuation)
    batch = prompt_batch(model, prompt, chat=False)
    generation = generate_batch(
        model,
        batch.ids,
        batch.mask,
        replace(options, policy=with_whole_head(options.policy), new_tokens=len(continuation)),
        force_tokens=torch.tensor([continuation], device=batch.ids.device),
        logits_processor=LogitsProcessorList([listener]),
        repetition_penalty=1.0,
    )
    missing = [place for place in range(len(continuation)) if place not in listener.heard]
    problem = generation.rows[0].problem
    if missing or problem is not None:
        raise OfframpError(
            "the likelihood of a continuation is not known: " + (problem or "it was cut short"),
            where=f"its token {missing[0] + 1}" if missing else "its end",
            fix="load the model in float32, or shorten the prompt",
        )
    return sum(listener.heard[place] for place in range(len(continuation))) / len(continuation), generation


def option_tokens(model: Model, text: str, prompt: list[int], option: str) -> list[int]:
    """Token ids of an option as they follow a prompt.

    text: the prompt's. prompt: its ids. The two are encoded together where that leaves the prompt's ids as
    they are, else apart.
    """
    together = model.encode(text + option)
    if together[: len(prompt)] == prompt and len(together) > len(prompt):
        return together[len(prompt) :]
    ids = model.tokenizer(option, add_special_tokens=False, verbose=False)["input_ids"]
    return [int(token) for token in ids]


DRAWS = 2000

Progress = Callable[[int, int], None]
"""Called with the questions answered so far and all of them."""

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Answered:
    """Questions that one decoder answered together.

    scores: float64 [questions], from 0 to 1. prompts: their token ids. runs: what was decoded: free answers
    in one batch, or each option of one question by itself; nothing where the full model read the options.
    """

    scores: Values
    prompts: tuple[list[int], ...]
    runs: tuple[BatchGeneration, ...]

    @property
    def layers(self) -> tuple[int, int]:
        """Layers of the fed new tokens: executed, and at full depth. The last new token is never fed."""
        rows = [row for run in self.runs for row in run.rows]
        executed = sum(row.layers_executed - row.prompt_layers for row in rows)
        return executed, sum((len(row.tokens) - 1) * row.layers for row in rows)


Pair = tuple[Answered, Answered]
"""The full model's answers and the policy's, to the same questions."""


def task_score(
    model: Model,
    policy: PolicySource | DecodingOptions,
    task: Task | str,
    *,
    questions: int = 50,
    max_new_tokens: int | None = None,
    seed: int = 0,
    batch: int = 1,
    allow_code: bool = False,
    progress: Progress | None = None,
) -> TaskScore:
    """Ask the full model and the policy the same questions.

    policy: with how to decode, if that is not the default. task: one, or the text of one
    (`offramp.decoding.quality.tasks.registry.load_task`). questions, seed: how many and which.
    max_new_tokens: room for a free answer, the task's own by default. batch: free answers decoded together.
    Both models answer greedily, in the same loop. allow_code: refused; code that a model wrote is not run.

    A question with options is answered with the option of the largest mean log-probability per token. The
    policy's is its own: every option is forced through the decoding loop, alone, and each token's
    log-probability is read from the exit that it left by; an option's first token comes out of the prompt and
    so from exit L. A chosen letter would be such a first token, and measure nothing. With "speculate" the
    drafts that an option's text rejects are run all the same, and count in the skip ratio.

    Intervals: 95 % bootstrap over questions, both models' scores of a question drawn together; absent under
    20 questions. Questions that were decoded in one batch leave when the others do, so batches are drawn.

    Raises InputError for an unknown task, for one that runs code, and for what
    `offramp.decoding.generation.generate.generate` refuses.
    """
    loaded = load_task(task, allow_code=allow_code) if isinstance(task, str) else task
    if batch < 1:
        raise InputError(f"a batch of {batch} is not possible", where="batch=", fix="give 1 or more")
    asked = loaded.questions(questions, seed)
    options = policy if isinstance(policy, DecodingOptions) else DecodingOptions.read(policy)
    room = loaded.max_new_tokens if max_new_tokens is None else max_new_tokens
    options = replace(options, new_tokens=room)
    plain = replace(FULL_MODEL, new_tokens=room)
    pairs = [
        (answered(model, loaded, group, plain), answered(model, loaded, group, options))
        for group in _groups(asked, batch, progress)
    ]
    return _summary(loaded.name, pairs, seed)


def _groups(asked: list[Question], batch: int, progress: Progress | None) -> Iterable[list[Question]]:
    """Questions that are decoded together; those with options one by one."""
    place = 0
    while place < len(asked):
        group = [asked[place]]
        while not group[0].options and len(group) < batch and place + len(group) < len(asked):
            if asked[place + len(group)].options:
                break
            group.append(asked[place + len(group)])
        yield group
        place += len(group)
        if progress is not None:
            progress(place, len(asked))


def answered(model: Model, task: Task, group: Sequence[Question], options: DecodingOptions) -> Answered:
    """Questions answered by one decoder: free answers in one batch, or one question with options.

    The full model (the policy "never") reads each option in one forward instead of decoding it.
    """
    if group[0].options:
        return _choose(model, task, group[0], options)
    prompts = tuple(_encode(model, task, question) for question in group)
    batch = prompt_batch(model, prompts, chat=False)
    stops: dict[str, Any] = {"stop_strings": list(task.stops)} if task.stops else {}
    run = generate_batch(model, batch.ids, batch.mask, options, **stops)
    texts = [answer_text(model, prompt, row.tokens) for prompt, row in zip(prompts, run.rows, strict=True)]
    scores = [task.score(question, text) for question, text in zip(group, texts, strict=True)]
    return Answered(np.array(scores), prompts, (run,))


def answer_text(model: Model, prompt: list[int], tokens: list[int]) -> str:
    """The text that new tokens add to a prompt, without special tokens.

    Decoded behind the prompt: some tokenizers drop a text's first space, which a line of code needs.
    """

    def text(ids: list[int]) -> str:
        decode = model.tokenizer.decode
        return str(decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    whole, start = text(prompt + tokens), text(prompt)
    return whole[len(start) :] if whole.startswith(start) else text(tokens)


def _choose(model: Model, task: Task, question: Question, options: DecodingOptions) -> Answered:
    """One question with options."""
    prompt = _encode(model, task, question)
    tokens = [option_tokens(model, question.prompt, prompt, option) for option in question.options]
    runs: list[BatchGeneration] = []
    if isinstance(options.policy, Never):
        likelihoods = [full_likelihood(model, prompt, option) for option in tokens]
    else:
        found = [policy_likelihood(model, prompt, option, options) for option in tokens]
        likelihoods, runs = [likelihood for likelihood, _ in found], [run for _, run in found]
    chosen = question.options[int(np.argmax(likelihoods))]
    return Answered(np.array([task.score(question, chosen)]), (prompt,), tuple(runs))


def _encode(model: Model, task: Task, question: Question) -> list[int]:
    return model.encode_chat(question.prompt) if task.chat else model.encode(question.prompt)


def _summary(name: str, pairs: Sequence[Pair], seed: int) -> TaskScore:
    """pairs: of the questions that were decoded together."""
    resampled = document_bootstrap(len(pairs), draws=DRAWS, seed=seed)
    questions = np.array([len(plain.scores) for plain, _ in pairs], dtype=np.float64)

    def mean(scores: Callable[[Values, Values], Values]) -> Interval:
        sums = [scores(plain.scores, policy.scores).sum() for plain, policy in pairs]
        return mean_of(resampled, np.array(sums), questions)

    executed, full = np.sum([policy.layers for _, policy in pairs], axis=0).tolist()
    return TaskScore(
        task=name,
        questions=int(questions.sum()),
        accuracy=mean(lambda plain, policy: policy),
        plain_accuracy=mean(lambda plain, policy: plain),
        loss=mean(lambda plain, policy: plain - policy),
        skip_ratio=1.0 - executed / full if full else 0.0,
    )
