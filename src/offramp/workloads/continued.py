"""What the model writes itself after the first tokens of each text: `continued:N:WORKLOAD`."""

from __future__ import annotations

from dataclasses import replace

from offramp.errors import WorkloadError
from offramp.workloads.workload import Workload, WorkloadDescription

CONTINUED = "continued"

FEWEST_TOKENS = 4

DESCRIBED = WorkloadDescription(
    name=f"{CONTINUED}:N+M:WORKLOAD",
    mode="generation",
    documents="those of WORKLOAD",
    licence="of WORKLOAD",
    description="what the model writes itself after the first N tokens of each text, with +M no more than M "
    "tokens, as in continued:32+64:code:short",
)


def split_continued(spec: str) -> tuple[str, str]:
    """What stands in front of a workload that is continued ("continued:32:", or nothing), and the rest."""
    name, colon, argument = spec.partition(":")
    if name != CONTINUED:
        return "", spec
    tokens, second_colon, workload = argument.partition(":")
    return f"{name}{colon}{tokens}{second_colon}", workload


def continued(workload: Workload, prefix: str) -> Workload:
    """The same documents, each cut to its first tokens, which the full model continues greedily.

    prefix: as `split_continued` gives it. Tokens of a document are counted with BOS if the model puts it
    there. A shorter text is continued whole.

    Raises WorkloadError for tokens that are no whole number or too few, and for a workload of prompts, which
    the model answers as it is.
    """
    prompt_tokens, new_tokens = sizes_of(prefix, workload.name)
    if workload.mode == "generation":
        raise WorkloadError(
            "prompts are answered, there is no text to continue",
            where=f"workload {prefix}{workload.name}",
            fix=f"write {workload.name}",
        )
    return replace(
        workload,
        name=f"{prefix}{workload.name}",
        mode="generation",
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        source=f"the model's own text after the first {prompt_tokens} tokens of {workload.source}",
    )


def sizes_of(prefix: str, text: str) -> tuple[int, int | None]:
    """N and M of a prefix; None for an M that is not given. text: that stands behind it, for the error.

    Raises WorkloadError for what is no whole number or too small.
    """
    tokens, plus, new = prefix.split(":")[1].partition("+")
    given = [tokens, new] if plus else [tokens]
    fine = all(one.isascii() and one.isdigit() for one in given)
    if not fine or int(tokens) < FEWEST_TOKENS or (plus and int(new) < 1):
        raise WorkloadError(
            f"{tokens + plus + new or 'nothing'} does not say how many tokens of a text are continued",
            where=f"workload {prefix}{text}",
            fix=f"write {CONTINUED}:32:{text or 'prose'}, or {CONTINUED}:32+64:{text or 'prose'} for 64 new "
            f"tokens at most; {FEWEST_TOKENS} are continued at least",
        )
    return int(tokens), int(new) if plus else None
