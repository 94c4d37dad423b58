"""Instructions made from the text that is trained on: questions in the form of a chat, with their answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import InputError
from offramp.files import parse_json
from offramp.lab.text.folder import LabText, documents_file
from offramp.lab.text.generated import Problem
from offramp.lab.text.work import NaturalKind
from offramp.lab.training.batches import BEGINNING_ID, Batches, generated_starts
from offramp.lab.training.loop import LossOf
from offramp.lab.training.recipe import Reading

USER, ASSISTANT = "User: ", "\nAssistant:"
UNCOUNTED = -100
"""In the place of a token that the loss does not count."""

SHOWN, ANSWERED = 240, 120
"""Characters of a passage of prose, and of its continuation."""

CODE_SHOWN, MOST_NAMES = 400, 4
TRIES = 8
"""Places of a text that are looked at for something to ask."""

DEFINED = re.compile(r"^[ \t]*(?:async def|def|class) (\w+)", re.MULTILINE)
LONG_WORD = re.compile(r"(?<![\w-])[A-Za-z]{5,12}(?![\w-])")


@dataclass(frozen=True)
class Instruction:
    """What is asked, and what is to be answered."""

    question: str
    answer: str

    @property
    def text(self) -> str:
        """As a model reads it; a space in front of the answer, as tokens begin with it."""
        return f"{USER}{self.question}{ASSISTANT} {self.answer}\n"


Maker = Callable[[np.random.Generator], Instruction | None]


def instructions(text: LabText, seed: int) -> Iterator[Instruction]:
    """Without end, of every form in turns, from documents of the part that is trained on.

    The forms: what follows a passage, which word it lacks, what a piece of code defines, and one question of
    a generated problem. Raises InputError for a text that has none of it.
    """
    makers = _makers(text)
    number = made = 0
    while number < TRIES * len(makers) or made:  # text that nothing can be asked about is not asked for ever
        found = makers[number % len(makers)](np.random.default_rng((seed, number)))
        number += 1
        if found is not None:
            made += 1
            yield found
    raise InputError("no instruction can be made from the text", where=str(text.folder), fix="add text")


def _makers(text: LabText) -> list[Maker]:
    prose = [*_documents(text, "prose"), *_documents(text, "manual")]
    code, problems = _documents(text, "code"), text.problems("train")
    found: list[tuple[Sequence[Any], Callable[[Any, np.random.Generator], Instruction | None]]] = [
        (prose, _continuation),
        (prose, _missing_word),
        (code, _definitions),
        (problems, _problem),
    ]

    def maker(sources: Sequence[Any], make: Callable[[Any, np.random.Generator], Any]) -> Maker:
        return lambda generator: make(sources[int(generator.integers(len(sources)))], generator)

    return [maker(sources, make) for sources, make in found if sources]


def _documents(text: LabText, kind: NaturalKind) -> list[str]:
    path = text.folder / documents_file("train", kind)
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
    return [parse_json(line)["text"] for line in lines]


def _passage(document: str, generator: np.random.Generator, characters: int) -> str:
    """Words of a document from a random place on, for so many characters at most."""
    start = int(generator.integers(max(1, len(document) - characters)))
    words = document[start : start + characters].split()
    return " ".join(words[1:-1])  # whole ones


def _continuation(document: str, generator: np.random.Generator) -> Instruction | None:
    passage = _passage(document, generator, SHOWN + ANSWERED)
    cut = passage.find(" ", len(passage) * SHOWN // (SHOWN + ANSWERED))
    if cut < 0:
        return None
    return Instruction(f"Continue this.\n{passage[:cut]}", passage[cut + 1 :])


def _missing_word(document: str, generator: np.random.Generator) -> Instruction | None:
    passage = _passage(document, generator, SHOWN)
    words = list(LONG_WORD.finditer(passage))
    if not words:
        return None
    word = words[generator.integers(len(words))]
    shown = f"{passage[: word.start()]}___{passage[word.end() :]}"
    return Instruction(f"Which word is missing?\n{shown}", word[0])


def _definitions(document: str, generator: np.random.Generator) -> Instruction | None:
    for _ in range(TRIES):
        start = document.rfind("\n", 0, int(generator.integers(len(document)))) + 1
        shown = document[start : start + CODE_SHOWN].rpartition("\n")[0]
        if names := DEFINED.findall(shown)[:MOST_NAMES]:
            return Instruction(f"What is defined here?\n{shown}", ", ".join(names))
    return None


def _problem(problem: Problem, generator: np.random.Generator) -> Instruction:
    text = problem.document.text
    given = text[: text.rfind("\n", 0, problem.answers[0].start)]
    answer = problem.answers[generator.integers(len(problem.answers))]
    question = text[text.rfind("\n", 0, answer.start) + 1 : answer.start]
    return Instruction(f"{given}\n{question}", text[answer.start + 1 : answer.end])


def encoded_instructions(
    tokenizer: Any, made: Sequence[Instruction]
) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """Tokens of all in a row, each begun as a document and the last one ended, and 1 for each that answers.

    What ends a document, the beginning of the next, belongs to its answer. Both uint16 [tokens].
    """
    ids, answers = [np.array([BEGINNING_ID])], [np.array([0])]
    texts = [one.text for one in made]
    for one, instruction in zip(tokenizer.backend_tokenizer.encode_batch(texts), made, strict=True):
        begins = np.array([start for start, _ in one.offsets[1:]])
        start = len(USER) + len(instruction.question) + len(ASSISTANT)
        ids.append(np.array([*one.ids[1:], BEGINNING_ID]))
        answers.append(np.array([*(begins >= start), 1]))
    return np.concatenate(ids).astype(np.uint16), np.concatenate(answers).astype(np.uint16)


def instruction_batches(text: LabText, recipe: Reading) -> tuple[Batches, Batches]:
    """Sequences of instructions for so many tokens as a recipe reads, and of 1 where a token answers.

    Each begins with an instruction. Raises InputError for a text that gives none.
    """
    wanted, count, made = recipe.steps * recipe.batch * recipe.context, 0, []
    for one in instructions(text, recipe.seed):
        made.append(one)
        count += len(one.text) // 4  # a token is 2 to 3 characters: this is enough
        if count > wanted:
            break
    tokens, answers = encoded_instructions(text.tokenizer, made)
    starts = generated_starts(tokens, recipe.context)
    found = Batches(tokens, starts, recipe.context, recipe.batch, recipe.seed)
    return found, Batches(answers, starts, recipe.context, recipe.batch, recipe.seed)


def answers_loss(model: Any, batches: Batches, answers: Batches) -> LossOf:
    """Mean over the tokens of a step's answers, nats; 0 where there is none."""

    def loss_of(step: int) -> Tensor:
        sequences = torch.from_numpy(batches.sequences(step)).to(model.device)
        counted = torch.from_numpy(answers.sequences(step)[:, 1:] == 1).to(model.device)
        logits = model(input_ids=sequences[:, :-1], use_cache=False).logits.float()
        targets = sequences[:, 1:].masked_fill(~counted, UNCOUNTED)
        total = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=UNCOUNTED, reduction="sum"
        )
        return total / max(1, int(counted.sum()))

    return loss_of
