"""Reads exits in decoding: what a policy's facts take, made ready once, then facts and logits as asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.costs.probes import FULL_HEAD, RESTRICTED_HEAD
from offramp.decoding.engine.engine import Engine
from offramp.decoding.exit_readout.exit_facts import (
    PADDING,
    READERS,
    Block,
    ChosenTokens,
    EarlierCheck,
    ExitNow,
    OutputHead,
    Shortlist,
    Tools,
    rows_of,
)
from offramp.errors import InputError, PolicyError
from offramp.heads.at_work import (
    HeadsAtWork,
    not_fitted_at,
    require_readable,
    require_sizes,
    restricted_tokens,
)
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.rules import suggest
from offramp.models.calls import first_tensor
from offramp.policies.signals import looks_back, probe_of
from offramp.tracing.facts import FACT_BY_NAME, HEAD_FACTS

OF_SOME_COLUMNS = frozenset({RESTRICTED_HEAD, "candidates"})
OF_HEADS = frozenset(fact.name for fact in HEAD_FACTS)

OTHER_EXITS = "choose a policy whose exits are among these, or fit heads of all exits"

Needs = Mapping[int, tuple[str, ...]]


def full_head_exits(needs: Needs) -> tuple[int, ...]:
    """The exits, ascending, whose check computes the full head: what later checks compare with."""
    return tuple(sorted(exit for exit, facts in needs.items() if FULL_HEAD in map(probe_of, facts)))


def make_tools(
    engine: Engine, heads: ExitHeads | None, needs: Needs, final_facts: tuple[str, ...], *, short_list: bool
) -> Tools:
    """What the exits of a policy are read with.

    needs: its facts by exit below L. final_facts: those that it reads at L. short_list: whether outputs are
    read off the short list.

    Raises InputError for heads that lack an exit or are of another size, a
    short list on a model whose head is not one linear layer, and PolicyError for a fact that no decoder could
    compute or that compares with a check that is not made.
    """
    head = OutputHead(engine.stack, engine.transposed)
    if heads is not None:
        require_readable(heads, engine.stack)
    wanted = {(fact, exit) for exit, facts in needs.items() for fact in facts}
    names = {fact for fact, _ in wanted} | set(final_facts)
    for name in sorted(names):
        if name not in READERS:
            raise PolicyError(f"no decoder reads the fact {name!r}", fix=suggest(name, READERS))
    short_list = short_list or any(probe_of(name) == RESTRICTED_HEAD for name in names)
    _require_columns(head, names, short_list)
    _require_comparisons(needs)
    work = None if heads is None else _at_work(engine, head, heads, needs, wanted)
    own_heads = (
        {}
        if work is None
        else {exit: OutputHead(stack, engine.transposed) for exit, stack in work.stacks.items()}
    )
    return Tools(
        head=head,
        heads=work,
        shortlist=_shortlist(head, own_heads, heads, _device_of(engine.hf)) if short_list else None,
        own_heads=own_heads,
    )


def _at_work(
    engine: Engine, head: OutputHead, heads: ExitHeads, needs: Needs, wanted: set[tuple[str, int]]
) -> HeadsAtWork:
    """The heads at the checked exits, of the right sizes, with the facts that the policy reads there."""
    stack = engine.stack
    features = rows_of(first_tensor(stack.layer_outputs[-1]), stack.position_axis).shape[-1]
    require_sizes(heads, features, head.vocabulary_size())
    missing = [exit for exit in needs if exit not in heads.exits]
    if missing and heads.reads_exits:
        raise not_fitted_at(missing[0], heads, OTHER_EXITS)
    _require_given(heads, wanted, needs)
    facts = [(fact, exit) for fact, exit in wanted if fact in OF_HEADS]
    return HeadsAtWork.of(heads, list(needs), stack, _device_of(engine.hf), facts)


def _require_given(heads: ExitHeads, wanted: set[tuple[str, int]], needs: Needs) -> None:
    """The heads give the facts that the policy reads where it does (`check_policy` asked for them)."""
    for fact, exit in sorted(wanted):
        if fact in OF_HEADS and exit not in heads.exits:
            raise not_fitted_at(exit, heads, OTHER_EXITS)
    exits = full_head_exits(needs)
    scored = sorted(exit for fact, exit in wanted if fact == "candidate_score")
    if scored and (not exits or exits[0] >= scored[0] or exits[0] != heads.candidate_exit):
        raise PolicyError(
            f"candidate_score needs the candidates of exit {heads.candidate_exit}, but the policy's first "
            f"check with a full head is at {f'exit {exits[0]}' if exits else 'no exit'}",
            where="the policy",
            fix=f"start its exits with {heads.candidate_exit}",
        )


def _require_comparisons(needs: Needs) -> None:
    exits = full_head_exits(needs)
    for exit, facts in sorted(needs.items()):
        for fact in filter(looks_back, facts):
            if exit == exits[0]:
                raise PolicyError(
                    f"{fact} at exit {exit} compares with the check before it, and there is none",
                    where="the policy",
                    fix="let an earlier exit be checked with a full head",
                )


def _require_columns(head: OutputHead, names: set[str], short_list: bool) -> None:
    if head.linear:
        return
    if short_list or any(probe_of(name) in OF_SOME_COLUMNS for name in names):
        raise InputError(
            "the policy reads the logits of some tokens alone, which this model's output head cannot give",
            where="the policy",
            fix="choose a signal that reads the full head, such as margin",
        )


def _shortlist(
    head: OutputHead, own_heads: Mapping[int, OutputHead], heads: ExitHeads | None, device: torch.device
) -> Shortlist:
    """The restricted vocabulary: the heads' own, else the first ids."""
    tokens = restricted_tokens(heads, head.vocabulary_size()).to(device)
    block, own_blocks = head.columns(tokens), dict[int, Block]()
    known = {id(head.stack.head): block}  # exits may share a head, also the model's
    for exit, own_head in own_heads.items():
        place = id(own_head.stack.head)
        own_blocks[exit] = known.setdefault(place, known.get(place) or own_head.columns(tokens))
    return Shortlist(tokens, block, own_blocks)


FactValues = Mapping[str, NDArray[Any]]


class Reader(Protocol):
    """Reads exits of the tokens that are decoded now, with the arithmetic of the tracer.

    hidden, before: the layer's output and its input [rows, 1, hidden]; rows may be fewer than sequences.
    """

    def begin(self) -> None:
        """A new token: forget what was read of the one before."""

    def wants_before(self, exit: int) -> bool:
        """Whether a fact read at this exit compares with the state before its layer."""

    def read(self, exit: int, facts: tuple[str, ...], hidden: Tensor, before: Tensor | None) -> FactValues:
        """Some facts of an exit below L: by name, [rows]."""

    def logits(self, exit: int, hidden: Tensor) -> Tensor:
        """The exit's logits, float32 [rows, vocabulary], through its lens or its own head if it has one.

        Off the short list if that is what it reads, at exit L as well; else L is the full model's to read.

        Kept from `read` if that has computed them for the same hidden states.
        """

    def final(
        self, facts: tuple[str, ...], logits: Tensor, hidden: Tensor, before: Tensor | None
    ) -> FactValues:
        """Facts at exit L, from the full model's logits [rows, vocabulary]."""

    def keep_rows(self, rows: NDArray[np.int64]) -> None:
        """Only these of the current rows go on (others left); what was read before shrinks with them."""


class ExitReader:
    """Reads the exits of the tokens that are decoded now (see `Reader`), with the arithmetic of the tracer.

    heads: exit heads of this model; every exit is then read through their linear lens or its own output head,
    if they have any. needs: facts that are read at each exit below L, ascending (`ExitPolicy.needs`).
    final_facts: at L. short_list: whether outputs are read off the short list (`ExitPolicy.short_list`).

    A fact that compares with the check before compares with the last check with a full head that was made of
    the same token. With bfloat16 weights facts come from logits whose best are taken again in float32, as in
    a trace; `logits` are the model's own.

    Raises InputError if the heads, the model or the policy do not fit (see `make_tools`).
    """

    def __init__(
        self,
        engine: Engine,
        heads: ExitHeads | None,
        needs: Mapping[int, tuple[str, ...]],
        final_facts: tuple[str, ...] = (),
        *,
        short_list: bool = False,
    ) -> None:
        self._layers = engine.layers
        self._short_list = short_list
        with torch.no_grad():
            self._tools = make_tools(engine, heads, needs, final_facts, short_list=short_list)
        self._wants = {**needs, engine.layers: final_facts}
        self._asked_next = _asked_next(self._wants)
        full = full_head_exits(needs)
        scored = any("candidate_score" in facts for facts in needs.values())
        self._chooses = full[0] if full and scored else None
        self.begin()

    def begin(self) -> None:
        """A new token: forget what was read of the one before."""
        self._reading: ExitNow | None = None
        self._previous: EarlierCheck | None = None
        self._chosen: ChosenTokens | None = None

    def wants_before(self, exit: int) -> bool:
        """Whether a fact read at this exit compares with the state before its layer."""
        return "hidden_cosine_to_previous" in self._wants.get(exit, ())

    @torch.no_grad()
    def read(self, exit: int, facts: tuple[str, ...], hidden: Tensor, before: Tensor | None) -> FactValues:
        """Some facts of an exit below L: by name, [rows], int32 or float32 as in a trace.

        hidden, before: output and input of layer `exit` [rows, 1, hidden].
        """
        reading = ExitNow(self._tools, exit, hidden, before, self._previous, self._chosen)
        self._reading = reading
        values = self._values(reading, facts)
        if exit in self._asked_next:
            self._previous = EarlierCheck.of(reading, self._asked_next[exit])
        if exit == self._chooses:
            self._chosen = ChosenTokens.of(reading)
        return values

    @torch.no_grad()
    def logits(self, exit: int, hidden: Tensor) -> Tensor:
        """The exit's logits as the model gives them, float32 [rows, vocabulary], through the lens if any.

        Read off the short list, its tokens have theirs and all others a finite one far below. What `read` has
        computed of the same tensor serves again; of some of its rows only, ask for all and select.
        """
        reading = self._reading
        if reading is None or reading.exit != exit or not _is_same(reading.hidden, hidden):
            self._reading = reading = ExitNow(self._tools, exit, hidden, None)
        if not self._short_list:
            return reading.output.float()
        short, tokens = reading.short_logits, reading.shortlist.tokens
        spread = short.new_full((len(short), self._tools.head.vocabulary_size()), PADDING)
        return spread.index_copy_(1, tokens, short)

    @torch.no_grad()
    def final(
        self, facts: tuple[str, ...], logits: Tensor, hidden: Tensor, before: Tensor | None
    ) -> FactValues:
        """Facts at exit L, from the full model's logits [rows, vocabulary]; those of fitted heads are 1."""
        reading = ExitNow(
            self._tools, self._layers, hidden, before, self._previous, self._chosen, output=logits
        )
        computed = tuple(fact for fact in facts if fact not in OF_HEADS)
        of_heads = {fact: np.ones(len(logits), np.float32) for fact in facts if fact in OF_HEADS}
        return {**self._values(reading, computed), **of_heads}

    @torch.no_grad()
    def keep_rows(self, rows: NDArray[np.int64]) -> None:
        """Only these of the current rows go on (others left); what was read before shrinks with them."""
        index = torch.from_numpy(np.asarray(rows, dtype=np.int64)).to(_device_of(self._tools.head.stack.hf))
        self._reading = None
        self._previous = None if self._previous is None else self._previous.rows(index)
        self._chosen = None if self._chosen is None else self._chosen.rows(index)

    def _values(self, reading: ExitNow, facts: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Facts of one reading, all brought to numpy at once."""
        if not facts:
            return {}
        # Token ids are exact in float32 too, since no vocabulary has 2^24.
        values = torch.stack([READERS[fact](reading).float() for fact in facts]).cpu().numpy()
        return {
            fact: value.astype(FACT_BY_NAME[fact].dtype) for fact, value in zip(facts, values, strict=True)
        }


def _asked_next(wants: Mapping[int, tuple[str, ...]]) -> dict[int, frozenset[str]]:
    """By exit with a full head: what the checks after it will compare with it."""
    exits = full_head_exits(wants)
    looking = {exit: frozenset(wants[exit]) for exit in exits}
    later: dict[int, frozenset[str]] = {}
    for exit in exits:
        # A policy may skip the next check, so the ones behind it count as well.
        compared = frozenset().union(*(facts for deeper, facts in looking.items() if deeper > exit))
        if compared & {"kl_to_previous", "js_to_previous", "top_k_overlap"}:
            later[exit] = compared
    return later


def _is_same(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors are the same numbers in the same memory."""
    return left is right or (
        left.data_ptr() == right.data_ptr() and left.shape == right.shape and left.stride() == right.stride()
    )


def _device_of(hf: Any) -> torch.device:
    device: torch.device = next(hf.parameters()).device
    return device
