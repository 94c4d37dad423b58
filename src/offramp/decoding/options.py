"""How a model decodes: policy, K and V, batching, drafts, heads; read once, and checked against the model."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp.defaults import DRAFT_LENGTH, NEW_TOKENS
from offramp.errors import InputError, PolicyError
from offramp.heads.described import describe_heads, reading_of
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import read_heads, require_base, require_layers
from offramp.kit.arguments import settle_fields
from offramp.kit.numbers import Copied, Count
from offramp.kit.rules import Beside
from offramp.models.devices import AUTO
from offramp.models.model import Model
from offramp.policies.binding import check_same_maps, facts_read, heads_matter, require_model
from offramp.policies.kv import MAPPED, PROPAGATE, RECOMPUTE
from offramp.policies.names import BatchingName, DraftLength, StrategyName
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.threshold import PROMPT_ENTROPY
from offramp.tracing.facts import HEAD_FACTS
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
    return (named.policy, named) if isinstance(named, Tuned) else (named, None)


def read_heads_source(source: HeadsSource, tuned: Tuned | None = None) -> ExitHeads | None:
    """The exit heads that are meant: those given, else those that a tuned policy names.

    Those of a tuned policy are left out where the file is gone (see `DecodingOptions.check_tuned_heads`).

    Raises InputError or DamagedFileError for a file that is none.
    """
    if source is not None:
        return source if isinstance(source, ExitHeads) else read_heads(source)
    if tuned is None or tuned.heads_file is None or not tuned.heads_file.is_file():
        return None
    return read_heads(tuned.heads_file)


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


def check_exits(policy: ExitPolicy, asked: ModelRequest) -> None:
    """Refuse a policy with exits beyond the layers that a model's config states, before the model is loaded.

    Raises PolicyError.
    """
    if asked.layers is not None:
        facts_read(policy, asked.layers)


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
            fix="give heads=FILE (--heads FILE) with that classifier; to make one: "
            "offramp heads fit MODEL --workload W -o FILE",
        )


def check_maps(
    policy: ExitPolicy, heads: ExitHeads | None, layers: int | None = None, dtype: str | None = None
) -> None:
    """Refuse to map K and V where the heads have no maps, or not from every exit of a policy.

    layers, dtype: of the model, where it is known, else those that the maps are of.

    Raises InputError for maps that are missing or another model's, PolicyError for exits without.
    """
    if heads is not None:
        layers = int(heads.model["layers"]) if layers is None else layers
    exits = [] if layers is None else [exit for exit in policy.leaves_at(layers) if exit < layers - 1]
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
    MAPPED.admits(policy, int(heads.model["layers"]), tuple(heads.kv_maps.ranks.items()))


Rows = Callable[[int], float]
"""Cost of running one layer, or the head, for so many rows at once; for one row it is 1."""


def each_costs(share: float) -> Rows:
    """Every row beyond the first costs this share of it."""
    return lambda rows: 1.0 + share * (rows - 1)


@dataclass(frozen=True)
class Auto:
    """Settings of an adaptive draft length."""

    rows: Rows = field(default_factory=lambda: each_costs(0.6))
    """See `Rows`; by default each further row costs 0.6 of the first, as in float32 on a small processor."""
    head: float | None = None
    exit_head: float | None = None
    """What the full model's head and that of an exit cost, in layers; None: by their parameters."""
    longest: int = 8
    """Never more drafts."""


LOCKSTEP = "lockstep"


def _option(name: str) -> str:
    return f"{name}= (--{name.replace('_', '-')})"


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode; what each means is said at `offramp.generate`.

    Names and numbers are checked when it is made; whether they fit each other, a model and what is to be
    decoded is checked as early as that is known: `check_files` before the model is loaded, `check_model`
    then, and `offramp.decoding.generation.loop.check_decodable` before anything runs.

    Raises PolicyError for an unknown strategy or batching, or an impossible draft length; InputError for no
    new tokens.
    """

    policy: ExitPolicy
    """One that holds a policy per workload class decides as for an unknown class; see `for_task`."""
    kv: StrategyName = PROPAGATE.name
    heads: ExitHeads | None = None
    draft_length: DraftLength | Auto = DRAFT_LENGTH
    """A whole number, "auto", or settings of that."""
    batching: BatchingName = LOCKSTEP
    new_tokens: Count = NEW_TOKENS
    """Of each answer, at most."""
    tuned: Tuned | None = None
    """What the tuner said of the policy, None unless it was tuned."""
    lookup: Annotated[
        Copied,
        Beside(
            lambda lookup, given: not lookup or given.kv == RECOMPUTE.name or given.policy.full_depth,
            f"0 with kv {{kv}}: all layers verify what is copied, with K and V by {RECOMPUTE.name}",
            f"give kv {RECOMPUTE.name} (--kv {RECOMPUTE.name}), or leave it out",
        ),
    ] = 0
    """Tokens at most that are copied from the text so far where it repeats itself, and verified by all layers
    at once, before the policy is asked; 0 for none."""

    def __post_init__(self) -> None:
        settle_fields(self, PolicyError, where=_option)

    @classmethod
    def read(
        cls,
        policy: PolicySource,
        *,
        kv: str | None = None,
        heads: HeadsSource = None,
        draft_length: DraftLength | Auto | None = None,
        lookup: int = 0,
        batching: str | None = None,
        new_tokens: int = NEW_TOKENS,
    ) -> DecodingOptions:
        """The options that a caller means.

        kv: None as a tuned policy was tuned, "propagate" for any other. Warns where a tuned policy gets
        another one.

        Raises PolicyError and InputError for what no model could decode with, DamagedFileError for a file
        that was changed.
        """
        decides, tuned = read_policy_source(policy)
        check_reachable(decides)
        options = cls(
            policy=decides,
            kv=kv or (PROPAGATE.name if tuned is None else tuned.kv),
            heads=read_heads_source(heads, tuned),
            draft_length=DRAFT_LENGTH if draft_length is None else draft_length,
            lookup=lookup,
            batching=batching or LOCKSTEP,
            new_tokens=new_tokens,
            tuned=tuned,
        )
        if tuned is not None and options.kv != tuned.kv:
            warnings.warn(
                f"the policy was tuned with K and V by {tuned.kv}, and decodes with {options.kv}: what was "
                "said of its quality and speed does not hold",
                UserWarning,
                stacklevel=5,
            )
        return options

    @property
    def name(self) -> str:
        """Policy and strategy, as shown."""
        return f"{self.policy} ({self.kv}{', lookup' if self.lookup else ''})"

    def for_task(self, task: str | None) -> DecodingOptions:
        """The same with the policy of a workload class, None if that is not known."""
        return replace(self, policy=self.policy.for_task(task))

    @property
    def full_model(self) -> DecodingOptions:
        """The same without exits, and without drafts."""
        return replace(self, policy=Never(), kv=PROPAGATE.name, tuned=None, lookup=0)

    def check_asked(self, asked: ModelRequest, heads: Path | None) -> None:
        """Refuse what does not fit the model that is asked for, or itself, before it is loaded.

        heads: their file, None for those that a tuned policy names. Raises PolicyError and InputError.
        """
        if self.heads is not None:
            asked.require_heads(self.heads, str(heads or (self.tuned and self.tuned.heads_file)))
        if asked.identity is not None:
            self._check_tuned_model(asked.identity.fingerprint, asked.name)
        check_exits(self.policy, asked)
        self.check_files(asked.dtype)

    def check_files(self, dtype: str) -> None:
        """Refuse heads and policies that do not fit each other, before a model is loaded.

        dtype: that it will be loaded in; "auto" is looked at once the device is known. Raises PolicyError and
        InputError.
        """
        if self.heads is not None:
            check_policy(self.policy, int(self.heads.model["layers"]), self.heads)
        self._check_tuned_early()
        if self.kv == MAPPED.name:
            check_maps(self.policy, self.heads, dtype=None if dtype == AUTO else dtype)

    def check_model(self, model: Model) -> None:
        """Refuse a model that this does not fit, or heads of another. Raises PolicyError and InputError."""
        check_policy(self.policy, model.layers, self.heads)
        identity = {"name": model.name, **model.identity.to_json()}
        if self.heads is not None:
            require_base(self.heads, identity, "heads=")
        self._check_tuned_model(identity["fingerprint"], model.shown_name)
        self.check_tuned_heads(model.layers)
        if self.kv == MAPPED.name:
            check_maps(self.policy, self.heads, model.layers, model.dtype)
        if self.heads is not None:
            require_layers(self.heads, model.layers)

    def check_tuned_heads(self, layers: int) -> None:
        """Refuse other heads than the policy was tuned with, where they matter. Raises PolicyError.

        See `heads_matter`; their K,V maps matter if K and V are mapped. layers: of the model.
        """
        tuned, heads, policy = self.tuned, self.heads, self.policy
        if tuned is None:
            return
        before: Mapping[str, Any] = tuned.model.get("heads") or {}
        now = {} if heads is None else describe_heads(heads)
        if tuned.kv == MAPPED.name and self.kv == MAPPED.name and heads is not None:
            check_same_maps(before, now, "heads=")
        if heads_matter(before, now, policy, layers):
            reading, tuned_reading = reading_of(now), reading_of(before)
            shown = "without exit heads" if reading is None else f"with the exit heads {reading[:12]}"
            tuned_with = (
                "without any" if tuned_reading is None else f"with the exit heads {tuned_reading[:12]}"
            )
            raise PolicyError(
                f"the policy was tuned {tuned_with}, but is to decode {shown}",
                where="heads=",
                fix=f"give heads=FILE (--heads FILE), the file that its trace was made with{_lost(tuned)}"
                if tuned_reading is not None
                else "leave heads= (--heads) out, or tune on a trace that was made with these",
            )

    def _check_tuned_model(self, fingerprint: str, name: str) -> None:
        """Refuse a policy that was tuned for another model than the one of this fingerprint and name."""
        if self.tuned is not None:
            require_model(self.tuned.model, fingerprint, f"policy= for {name}")

    def _check_tuned_early(self) -> None:
        """`check_tuned_heads` where that takes no model: with heads of the tuned one's, or without any."""
        tuned, heads = self.tuned, self.heads
        if tuned is None or (
            heads is not None and heads.model["fingerprint"] != tuned.model.get("fingerprint")
        ):
            return
        layers = tuned.provenance.get(LAYERS) if heads is None else heads.model["layers"]
        if layers is not None:
            self.check_tuned_heads(int(layers))


def _lost(tuned: Tuned) -> str:
    """Where the heads of a tuned policy were, if they are there no more."""
    place = tuned.heads_file
    return "" if place is None or place.is_file() else f"; it was {place}, which is gone"
