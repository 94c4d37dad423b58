"""What a trace records beyond the facts of every trace: signals by name, and what fitted heads give."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.errors import InputError
from offramp.tracing.facts import DOCUMENT_FACTS, FACTS, HEAD_FACTS, SIGNAL_FACTS, Fact

ALL = "all"


@dataclass(frozen=True)
class Recording:
    """Names of what is recorded: signals (of SIGNAL_FACTS and DOCUMENT_FACTS) and facts of fitted heads."""

    signals: tuple[str, ...] = ()
    head_facts: tuple[str, ...] = ()

    @classmethod
    def of_request(cls, request: Mapping[str, Any]) -> Recording:
        """What the JSON form of a request asks for; a request of schema version 1 asks for nothing more."""
        heads = request.get("heads")
        return cls(tuple(request.get("signals", ())), tuple(heads["facts"]) if heads else ())

    @property
    def facts(self) -> tuple[Fact, ...]:
        """The columns per (token, exit), those of every trace first."""
        of_signals = [fact for name in self.signals for fact in SIGNAL_FACTS.get(name, ())]
        of_heads = [fact for fact in HEAD_FACTS if fact.name in self.head_facts]
        return (*FACTS, *of_signals, *of_heads)

    @property
    def document_facts(self) -> tuple[Fact, ...]:
        """The columns per token that say something about its whole document."""
        return tuple(DOCUMENT_FACTS[name] for name in self.signals if name in DOCUMENT_FACTS)


def parse_signals(signals: str | Sequence[str], mode: str) -> tuple[str, ...]:
    """Names of the signals to record, each once and sorted.

    signals: names, or one text "restricted,logit_gap" (also joined by "+"), or "all" for everything that the
    workload's mode allows. mode: "text" or "generation".

    Raises InputError for an unknown name, with near ones, and for a signal of prompts in text mode.
    """
    words = signals.replace("+", ",").split(",") if isinstance(signals, str) else signals
    names = {word.strip() for word in words} - {""}
    known = (*SIGNAL_FACTS, *DOCUMENT_FACTS)
    of_prompts = set(DOCUMENT_FACTS)
    if ALL in names:
        names = (names - {ALL}) | (set(known) if mode == "generation" else set(known) - of_prompts)
    for name in sorted(names):
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(
                f"unknown signal {name!r}", where="--signals", fix=f"{hint}choose among: {', '.join(known)}"
            )
    needs_prompts = sorted(names & of_prompts)
    if needs_prompts and mode != "generation":
        raise InputError(
            f"{needs_prompts[0]} describes a prompt, and a workload of given texts has none",
            where="--signals",
            fix=f"leave {needs_prompts[0]} out, or trace a workload of prompts such as chat or math",
        )
    return tuple(sorted(names))
