"""Whether a policy can decide on a model: what it reads, and the model and heads that it was tuned for."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.errors import InputError, PolicyError
from offramp.models.model import Model
from offramp.policies.binding import OF_HEADS, check_same_maps, reads_exits
from offramp.policies.grammar import parse_policy
from offramp.policies.kv_cost import MAPPED
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.threshold import PROMPT_ENTROPY
from offramp.tracing.described_heads import describe_heads, reading_of
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.facts import HEAD_FACTS
from offramp.tracing.heads_file import read_heads, require_base
from offramp.tuning.predict import named_policy
from offramp.tuning.tuned import LAYERS, Tuned

if TYPE_CHECKING:
    from offramp.tracing.loading import ModelRequest

PolicySource = ExitPolicy | Tuned | str | Path | None
"""A policy, its text, the path of its file, a tuned policy, or None for the full model."""

HeadsSource = ExitHeads | str | Path | None
"""Exit heads, the path of their file, or None for the logit lens."""


FIT_MAPS = "offramp heads fit MODEL --workload W --kv-maps {} --no-lens --no-classifiers -o FILE"
"""The command that fits maps alone, by their exits."""


def read_policy_source(source: PolicySource) -> tuple[ExitPolicy, Tuned | None]:
    """The policy that is meant, and what the tuner said of it if it is a tuned one.

    Raises InputError for a file that cannot be read or was edited, PolicyError for a text that is no policy.
    """
    if source is None:
        return Never(), None
    if not isinstance(source, (ExitPolicy, Tuned, str, Path)):
        raise PolicyError(
            f"a policy cannot be a {type(source).__name__}",
            where="policy=",
            fix='give a policy, its text such as "static:exit=20", or the path of a policy.json',
        )
    named = named_policy(str(source) if isinstance(source, Path) else source)
    return (parse_policy(named.policy_text), named) if isinstance(named, Tuned) else (named, None)


def warn_of_strategy(kv: str, tuned: Tuned | None) -> None:
    """Warn if a policy decodes with another strategy for K and V than it was tuned with."""
    if tuned is not None and kv != tuned.kv:
        warnings.warn(
            f"the policy was tuned with K and V by {tuned.kv}, and decodes with {kv}: what was said of its "
            "quality and speed does not hold",
            UserWarning,
            stacklevel=5,
        )


def read_heads_source(source: HeadsSource, tuned: Tuned | None = None) -> ExitHeads | None:
    """The exit heads that are meant: those given, else those that a tuned policy names.

    Those of a tuned policy are left out where the file is gone; `check_tuned_heads` says so if they matter.

    Raises InputError or DamagedFileError for a file that is none.
    """
    if source is not None:
        return source if isinstance(source, ExitHeads) else read_heads(source)
    if tuned is None or tuned.heads_file is None or not tuned.heads_file.is_file():
        return None
    return read_heads(tuned.heads_file)


def facts_read(policy: ExitPolicy, layers: int) -> frozenset[str]:
    """Every fact that a policy reads on a model of so many layers, at exit L included.

    Raises PolicyError, with the policy's text, if the policy does not fit.
    """
    try:
        needs = policy.needs(layers)
    except PolicyError as error:
        error.where = error.where or str(policy)
        raise
    return frozenset(fact for facts in needs.values() for fact in facts) | set(policy.final_facts)


def check_reachable(policy: ExitPolicy) -> None:
    """Refuse a policy that no decoder can follow, on whatever model. Raises PolicyError."""
    if not policy.reachable:
        raise PolicyError(
            f"{policy} is an oracle: it knows the full model's answer, which a decoder does not",
            where="policy=",
            fix="replay it on a trace: offramp replay TRACE --policy ...",
        )
    unknown = set(policy.document_facts) - {PROMPT_ENTROPY}
    if unknown:
        raise PolicyError(
            f"{policy} reads {', '.join(sorted(unknown))}, which is not known of a prompt when it is decoded",
            where="policy=",
            fix="choose a policy without it",
        )


def check_policy(policy: ExitPolicy, layers: int, heads: ExitHeads | None) -> None:
    """Refuse a policy that no decoder can follow on a model of so many layers, or not with these heads.

    Raises PolicyError.
    """
    check_reachable(policy)
    missing = facts_read(policy, layers) & {fact.name for fact in HEAD_FACTS}
    if heads is not None:
        missing -= set(heads.classifiers)
    if missing:
        raise PolicyError(
            f"{policy} reads {', '.join(sorted(missing))}, which "
            + ("comes with fitted exit heads" if heads is None else "these exit heads do not give"),
            where="heads=",
            fix="give heads=FILE (--heads FILE) with that classifier; "
            "offramp heads fit MODEL --workload W -o FILE makes one",
        )


def check_model(
    tuned: Tuned | None, policy: ExitPolicy, heads: ExitHeads | None, model: Model, kv: str | None = None
) -> None:
    """Refuse a policy that was tuned for another model or other heads, and heads of another model.

    Heads matter if the policy leaves early at all and either its trace or the decoder reads exits through
    them, or if it reads a fact, or the short list, that comes with heads; their K,V maps if K and V are
    mapped. kv: the strategy for these, None as tuned.

    Raises InputError for heads of another model, PolicyError for the rest.
    """
    identity = {"name": model.name, **model.identity.to_json()}
    if heads is not None:
        require_base(heads, identity, "heads=")
    if tuned is None:
        return
    check_tuned_model(tuned, identity["fingerprint"], model.shown_name)
    check_tuned_heads(tuned, policy, heads, model.layers, kv)


def check_tuned_model(tuned: Tuned, fingerprint: str, name: str) -> None:
    """Refuse a policy that was tuned for another model than the one of this fingerprint and name.

    Raises PolicyError.
    """
    if tuned.model.get("fingerprint") != fingerprint:
        raise PolicyError(
            f"the policy was tuned for another model, {tuned.model.get('name', 'without a name')}",
            where=f"policy= for {name}",
            fix="tune a policy on a trace of this model: offramp trace, then offramp tune",
        )


def check_early(
    asked: ModelRequest,
    policy: ExitPolicy,
    tuned: Tuned | None,
    heads: ExitHeads | None,
    where: str,
    kv: str | None = None,
) -> None:
    """What `check_policy` and `check_model` refuse, of a model that is not loaded, as far as it is known.

    where: the exit heads come from.

    Raises InputError and PolicyError.
    """
    if heads is not None:
        asked.require_heads(heads, where)
        check_policy(policy, int(heads.model["layers"]), heads)
    if tuned is not None and asked.identity is not None:
        check_tuned_model(tuned, asked.identity.fingerprint, asked.name)
    check_tuned_early(tuned, policy, heads, kv)


def check_tuned_early(
    tuned: Tuned | None, policy: ExitPolicy, heads: ExitHeads | None, kv: str | None = None
) -> None:
    """`check_tuned_heads` where no model is needed to compare: of heads of the model that a policy was tuned
    for, or without any.

    Raises PolicyError.
    """
    if tuned is None or (heads is not None and heads.model["fingerprint"] != tuned.model.get("fingerprint")):
        return
    layers = tuned.provenance.get(LAYERS) if heads is None else heads.model["layers"]
    if layers is not None:
        check_tuned_heads(tuned, policy, heads, int(layers), kv)


def check_tuned_heads(
    tuned: Tuned, policy: ExitPolicy, heads: ExitHeads | None, layers: int, kv: str | None = None
) -> None:
    """Refuse other heads than those that a policy was tuned with, where they matter; see `check_model`.

    Raises PolicyError.
    """
    before: Mapping[str, Any] = tuned.model.get("heads") or {}
    if tuned.kv == MAPPED and (kv or tuned.kv) == MAPPED and heads is not None:
        check_same_maps(before, describe_heads(heads), "heads=")
    reading, tuned_reading = None if heads is None else heads.reading_fingerprint, reading_of(before)
    if tuned_reading == reading:
        return
    read_through = reads_exits(before) or (heads is not None and heads.reads_exits)
    of_heads = policy.short_list or bool(facts_read(policy, layers) & OF_HEADS)
    if of_heads or (policy.needs(layers) and read_through):
        given = "without exit heads" if reading is None else f"with the exit heads {reading[:12]}"
        tuned_with = "without any" if tuned_reading is None else f"with the exit heads {tuned_reading[:12]}"
        raise PolicyError(
            f"the policy was tuned {tuned_with}, but is to decode {given}",
            where="heads=",
            fix=f"give heads=FILE (--heads FILE), the file that its trace was made with{_lost(tuned)}"
            if tuned_reading is not None
            else "leave heads= (--heads) out, or tune on a trace that was made with these",
        )


def _lost(tuned: Tuned) -> str:
    """Where the heads of a tuned policy were, if they are there no more."""
    place = tuned.heads_file
    return "" if place is None or place.is_file() else f"; it was {place}, which is gone"


def check_maps(
    policy: ExitPolicy, heads: ExitHeads | None, layers: int | None = None, dtype: str | None = None
) -> None:
    """Refuse to map K and V where the heads have no maps, or not from every exit of a policy.

    layers, dtype: of the model, where it is known, else those that the maps are of.

    Raises InputError for maps that are missing or another model's, PolicyError for exits without.
    """
    if heads is not None:
        layers = int(heads.model["layers"]) if layers is None else layers
    exits = [] if layers is None else sorted(exit for exit in policy.needs(layers) if exit < layers - 1)
    fix = FIT_MAPS.format(",".join(map(str, exits)) or "EXITS")
    if heads is None or heads.kv_maps is None:
        raise InputError(
            "K and V cannot be mapped: there are no K,V maps"
            + ("" if heads is None else " in these exit heads"),
            where='kv "mapped"',
            fix=f"fit them and give the file (--heads FILE): {fix}",
        )
    for what, value in {"layers": layers, "dtype": dtype}.items():
        if value is not None and heads.model[what] != value:
            raise InputError(
                f"the K,V maps are of a model with {what} {heads.model[what]}, this one has {value}",
                where='kv "mapped"',
                fix=f"fit maps of this model: {fix}",
            )
    missing = heads.kv_maps.missing(exits, int(heads.model["layers"]))
    if missing:
        raise PolicyError(
            f"{policy} leaves at exit {missing[0]}, which has no K,V maps; they start at: "
            + ", ".join(map(str, heads.kv_maps.exits)),
            where='kv "mapped"',
            fix=f"choose a policy whose exits are among these, or fit maps of its exits: {fix}",
        )


def check_number(name: str, value: Any, least: int = 1) -> int:
    """A whole number of at least so much. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} cannot be {value!r}", where=f"{name}=", fix=f"give {least} or more")
    return value
