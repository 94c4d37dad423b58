"""Commands and options that offramp had a release ago, and what does the same now."""

from __future__ import annotations

import re

from offramp.commands import LAB_MOVED
from offramp.errors import InputError

LM_EVAL = "offramp-lm-eval --model offramp --model_args pretrained=MODEL,policy=P --tasks"
TASKS = f"{LM_EVAL} offramp-multiple-choice,offramp-reasoning (docs/harness.md)"

SCORES = "run experiments/claims/predict.py of offramp's repository on tables/ of offramp compare"

FORMER = {
    "offramp lab": LAB_MOVED,
    "offramp compare --pair": "run pairs.py DIR... --pair FIRST SECOND, in experiments/claims of offramp's "
    "repository",
    **{f"offramp predict {option}": SCORES for option in ("--from-scores", "--score", "--level", "--floor")},
    "offramp bench --task": f"lm-eval asks the questions now, with the same policies: {TASKS}",
    "offramp bench --questions": f"lm-eval asks the questions now, as many as its --limit says: {TASKS}",
    "offramp bench --allow-code": "use lm-eval's own switch, in a virtual machine: HF_ALLOW_CODE_EVAL=1 "
    f"{LM_EVAL} humaneval --confirm_run_unsafe_code",
}
"""What to do instead, by a command and the option that it had, or by a command that there was."""


def former_error(problem: Exception, command: str) -> InputError | None:
    """The error for a word that was once a command or an option, None for any other.

    problem: the parser's complaint. command: the one that it is about, "offramp bench".
    """
    option = getattr(problem, "option_name", None)
    unknown = re.search(r"No such command '([^']+)'", str(getattr(problem, "message", "")))
    word = option or (unknown[1] if unknown else "")
    instead = FORMER.get(f"{command} {word}")
    if instead is None:
        return None
    kind = "option" if option else "command"
    return InputError(f"{word} is no {kind} any more", where=command, fix=instead)
