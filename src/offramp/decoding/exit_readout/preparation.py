"""What a policy's facts take to be read, made ready once, or why this model or these heads lack it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from offramp.decoding.engine.engine import Engine
from offramp.decoding.exit_readout.facts import READERS
from offramp.decoding.exit_readout.head import OutputHead, PreparedClassifier, PreparedLens, rows_of
from offramp.decoding.exit_readout.reading import Shortlist, Tools
from offramp.errors import InputError, PolicyError
from offramp.models.calls import first_tensor
from offramp.policies.signals import looks_back, probe_of, suggest
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.facts import HEAD_FACTS
from offramp.tracing.fitted_heads import FittedHeads, exit_stack, require_readable
from offramp.tracing.restricted_vocabulary import restricted_tokens

FULL_HEAD = "full head"
OF_SOME_COLUMNS = frozenset({"restricted head", "candidates"})
OF_HEADS = frozenset(fact.name for fact in HEAD_FACTS)

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

    Raises InputError for facts that only fitted heads give, heads that lack an exit or are of another size, a
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
    short_list = short_list or any(probe_of(name) == "restricted head" for name in names)
    _require_columns(head, names, short_list)
    _require_comparisons(needs)
    fitted = None if heads is None else _fitted(engine, head, heads, needs)
    if fitted is None:
        _require_no_heads(wanted)
    else:
        _require_given(fitted.heads, wanted, needs)
    device = next(engine.hf.parameters()).device
    lens = None if fitted is None else fitted.heads.lens
    own_heads = {} if fitted is None else _own_heads(engine, fitted.heads, needs)
    return Tools(
        head=head,
        lenses={}
        if fitted is None or lens is None
        else {exit: PreparedLens.of(lens, fitted.heads.exits.index(exit), device) for exit in needs},
        classifiers={}
        if fitted is None
        else {
            (fact, exit): PreparedClassifier.of(
                fitted.heads.classifiers[fact], fitted.heads.exits.index(exit), device
            )
            for fact, exit in wanted
            if fact in OF_HEADS
        },
        shortlist=_shortlist(head, own_heads, fitted, device) if short_list else None,
        own_heads=own_heads,
    )


def _fitted(engine: Engine, head: OutputHead, heads: ExitHeads, needs: Needs) -> FittedHeads:
    """The heads, of the right sizes."""
    stack = engine.stack
    fitted = FittedHeads(heads, tuple(range(len(heads.exits))), None)
    features = rows_of(first_tensor(stack.layer_outputs[-1]), stack.position_axis).shape[-1]
    fitted.require_sizes(features, head.vocabulary_size())
    missing = [exit for exit in needs if exit not in heads.exits]
    if missing and heads.reads_exits:
        raise _not_fitted_at(heads, missing[0])
    return fitted


def _own_heads(engine: Engine, heads: ExitHeads, needs: Needs) -> dict[int, OutputHead]:
    """The output heads of the checked exits, by exit; none where exits share the model's."""
    output = heads.output
    if output is None:
        return {}
    return {
        exit: OutputHead(exit_stack(engine.stack, output, heads.exits.index(exit)), engine.transposed)
        for exit in needs
    }


def _not_fitted_at(heads: ExitHeads, exit: int) -> InputError:
    return InputError(
        f"the heads were not fitted at exit {exit}; they have: "
        + ", ".join(str(other) for other in heads.exits),
        where="--heads",
        fix="choose a policy whose exits are among these, or fit heads of all exits",
    )


def _require_no_heads(wanted: set[tuple[str, int]]) -> None:
    for fact, _ in sorted(wanted):
        if fact in OF_HEADS:
            raise InputError(
                f"the policy reads {fact!r}, which only fitted exit heads give",
                where="the policy",
                fix="give the heads that the policy was tuned with: --heads FILE",
            )


def _require_given(heads: ExitHeads, wanted: set[tuple[str, int]], needs: Needs) -> None:
    """The heads give every fact that the policy reads, at every exit where it does."""
    for fact, exit in sorted(wanted):
        if fact not in OF_HEADS:
            continue
        if fact not in heads.classifiers:
            known = ", ".join(sorted(heads.classifiers)) or "none"
            raise InputError(
                f"the policy reads {fact!r}, which these exit heads do not give; they give: {known}",
                where="--heads",
                fix="give the heads that the policy was tuned with",
            )
        if exit not in heads.exits:
            raise _not_fitted_at(heads, exit)
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
    head: OutputHead, own_heads: Mapping[int, OutputHead], fitted: FittedHeads | None, device: torch.device
) -> Shortlist:
    """The restricted vocabulary: the heads' own, else the first ids."""
    tokens = restricted_tokens(None if fitted is None else fitted.heads, head.vocabulary_size()).to(device)
    own = {exit: own_head.columns(tokens) for exit, own_head in own_heads.items()}
    return Shortlist(tokens, head.columns(tokens), own)
