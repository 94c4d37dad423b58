"""What the model writes itself after the first tokens of each text: `continued:N:WORKLOAD`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from offramp.errors import WorkloadError
from offramp.kit.numbers import whole_number
from offramp.workloads.workload import Workload

CONTINUED = "continued"

FEWEST_TOKENS = 4

EXAMPLE = f"{CONTINUED}:32+64:code:short"


def split_continued(spec: str) -> tuple[str, str]:
    """What stands in front of a workload that is continued ("continued:32:", or nothing), and the rest."""
    name, _, argument = spec.partition(":")
    if name != CONTINUED:
        return "", spec
    tokens, colon, text = argument.partition(":")
    return f"{name}:{tokens}{colon}", text


def continued(prefix: str, text: str, load: Callable[[str], Workload]) -> Workload:
    """The documents of a workload, each cut to its first tokens, which the full model continues greedily.

    prefix, text: as `split_continued` gives them. load: loads the latter. Tokens of a document are counted
    with BOS if the model puts it there; a shorter text is continued whole.

    A workload of prompts is answered as it is; of each answer no more than M tokens are read.

    Raises WorkloadError for tokens that are no whole number or too few, or that do not go with the workload's
    mode, and whatever `load` raises.
    """
    prompt_tokens, new_tokens = sizes_of(prefix, text)
    workload = load(text)
    if (workload.mode == "generation") != (prompt_tokens is None):
        prompts = workload.mode == "generation"
        raise WorkloadError(
            "prompts are answered whole" if prompts else "of a text it must be said how much is continued",
            where=f"workload {prefix}{text}",
            fix=f"write {text}, or {CONTINUED}:+64:{text} for 64 tokens of each answer at most"
            if prompts
            else f"write {CONTINUED}:32:{text}, say",
        )
    return replace(
        workload,
        name=f"{prefix}{workload.name}",
        mode="generation",
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        source=workload.source
        if prompt_tokens is None
        else f"the model's own text after the first {prompt_tokens} tokens of {workload.source}",
    )


def sizes_of(prefix: str, text: str) -> tuple[int | None, int | None]:
    """N and M of a prefix, None for one that is not given. Raises WorkloadError for what is unusable."""
    where = f"workload {prefix}{text}"
    first, plus, new = prefix.split(":")[1].partition("+")
    continued = whole_number(first, FEWEST_TOKENS) if first or not plus else None
    read = whole_number(new) if plus else None
    if (continued is None and (first or not plus)) or (read is None and plus):
        raise WorkloadError(
            f"{first + plus + new or 'nothing'} does not say how many tokens of a text are continued",
            where=where,
            fix=f"write {EXAMPLE}, which continues 32 and reads 64 at most, or leave +64 out; "
            f"{FEWEST_TOKENS} are continued at least",
        )
    if not text:
        raise WorkloadError(
            "no workload is named that is continued", where=where, fix=f"write {EXAMPLE}, say"
        )
    if split_continued(text)[0]:
        raise WorkloadError("a text is continued once", where=where, fix=f"write {EXAMPLE}, say")
    return continued, read
