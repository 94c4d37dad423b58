"""One policy per class of workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from offramp.policies.policy import Decider, ExitPolicy, Parameter, ParameterError
from offramp.policies.reading import (
    read_nested,
    read_nested_list,
    require_reachable,
    split_outside_brackets,
)

RESERVED = set("+,=[]")


def read_names(text: str) -> tuple[str, ...]:
    """Names of workload classes joined by "+", each once."""
    names: list[str] = []
    for offset, name in split_outside_brackets(text, "+"):
        if not name.strip() or RESERVED & set(name):
            raise ParameterError(
                f"{name!r} is not a workload class",
                fix='write names joined by "+", as in code+chat',
                offset=offset,
            )
        if name in names:
            raise ParameterError(f"{name} is named twice", fix="name it once", offset=offset)
        names.append(name)
    return tuple(names)


@dataclass(frozen=True)
class Tasks(ExitPolicy):
    """One policy per class of workload, and a fallback for all others.

    Task-dependent strategies, as the study "The Diminishing Returns of Early-Exit Decoding in Modern LLMs"
    (arXiv 2603.23701) calls for. A name is a workload's own (code) or its class, the part before ":" (txt for
    txt:notes.txt). Where the workload is unknown, the fallback decides.
    """

    names: tuple[str, ...]
    policies: tuple[ExitPolicy, ...]
    fallback: ExitPolicy

    kind: ClassVar[str] = "tasks"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("names", read_names, 'workload classes joined by "+", as in code+chat'),
        Parameter("policies", read_nested_list, 'their policies, each in brackets, joined by "+"'),
        Parameter("fallback", read_nested, "the policy for any other workload, in brackets", "[never]"),
    )

    def __post_init__(self) -> None:
        """Refuse names without a policy, policies without a name, and oracles."""
        read_names("+".join(self.names))
        require_reachable(self.policies, "policies")
        require_reachable((self.fallback,), "fallback")
        if len(self.names) != len(self.policies):
            raise ParameterError(
                f"{len(self.policies)} policies do not fit {len(self.names)} names",
                fix="give one policy for each name",
                parameter="policies",
            )

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names."""
        return self.names

    def for_task(self, task: str | None) -> ExitPolicy:
        """The policy of that name, of its class, or the fallback."""
        own = dict(zip(self.names, self.policies, strict=True))
        name = "" if task is None else task
        policy = own.get(name) or own.get(name.partition(":")[0]) or self.fallback
        return policy.for_task(task)

    @property
    def remembers(self) -> bool:
        """As the fallback, which decides as long as no task is chosen."""
        return self._unknown.remembers

    @property
    def short_list(self) -> bool:
        """As the fallback."""
        return self._unknown.short_list

    @property
    def short_head(self) -> bool:
        """As the fallback."""
        return self._unknown.short_head

    @property
    def final_facts(self) -> tuple[str, ...]:
        """As the fallback."""
        return self._unknown.final_facts

    @property
    def document_facts(self) -> tuple[str, ...]:
        """As the fallback."""
        return self._unknown.document_facts

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """As the fallback. Raises PolicyError if one of the policies does not fit the model."""
        for policy in self.policies:
            policy.needs(layers)
        return self._unknown.needs(layers)

    def decider(self, layers: int, streams: int) -> Decider:
        """As the fallback."""
        return self._unknown.decider(layers, streams)

    @property
    def _unknown(self) -> ExitPolicy:
        return self.fallback.for_task(None)
