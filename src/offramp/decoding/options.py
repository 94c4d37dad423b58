"""How a model decodes: policy, K and V, batching, drafts, heads; read once, and handed down as one thing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.decoding.compatibility import (
    HeadsSource,
    PolicySource,
    check_early,
    check_maps,
    check_model,
    check_number,
    check_policy,
    check_reachable,
    check_tuned_early,
    read_heads_source,
    read_policy_source,
    warn_of_strategy,
)
from offramp.decoding.strategies.draft_length import Auto
from offramp.models.model import Model
from offramp.policies.kv_cost import MAPPED, find_strategy
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.policies.steps import DRAFT_LENGTH, find_batching, read_draft_length
from offramp.tracing.exit_heads import ExitHeads
from offramp.tuning.tuned import Tuned

if TYPE_CHECKING:
    from offramp.tracing.loading import ModelRequest

PROPAGATE, LOCKSTEP = "propagate", "lockstep"


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode; what each means is said at `offramp.generate`.

    policy: one that holds a policy per workload class decides as for an unknown class; see `for_task`.
    draft_length: a whole number, "auto", or settings of that. tuned: what the tuner said of the policy, None
    unless it was tuned. new_tokens: of each answer, at most.

    Names and numbers are checked when it is made; whether they fit each other, a model and what is to be
    decoded is checked as early as that is known: `check_files` before the model is loaded, `check_model`
    then, and `offramp.decoding.generation.early_exit.check_decodable` before anything runs.

    Raises PolicyError for an unknown strategy or batching, or an impossible draft length; InputError for no
    new tokens.
    """

    policy: ExitPolicy
    kv: str = PROPAGATE
    heads: ExitHeads | None = None
    draft_length: int | str | Auto = DRAFT_LENGTH
    batching: str = LOCKSTEP
    new_tokens: int = 64
    tuned: Tuned | None = None

    def __post_init__(self) -> None:
        """Refuse names that there are not, and numbers that are none; a draft length may be a text."""
        find_strategy(self.kv)
        find_batching(self.batching)
        if not isinstance(self.draft_length, Auto):
            object.__setattr__(self, "draft_length", read_draft_length(self.draft_length))
        check_number("max_new_tokens", self.new_tokens)

    @classmethod
    def read(
        cls,
        policy: PolicySource,
        *,
        kv: str | None = None,
        heads: HeadsSource = None,
        draft_length: int | str | Auto | None = None,
        batching: str | None = None,
        new_tokens: int = 64,
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
            kv=kv or (PROPAGATE if tuned is None else tuned.kv),
            heads=read_heads_source(heads, tuned),
            draft_length=DRAFT_LENGTH if draft_length is None else draft_length,
            batching=batching or LOCKSTEP,
            new_tokens=new_tokens,
            tuned=tuned,
        )
        warn_of_strategy(options.kv, tuned)
        return options

    @property
    def name(self) -> str:
        """Policy and strategy, as shown."""
        return f"{self.policy} ({self.kv})"

    def for_task(self, task: str | None) -> DecodingOptions:
        """The same with the policy of a workload class, None if that is not known."""
        return replace(self, policy=self.policy.for_task(task))

    @property
    def full_model(self) -> DecodingOptions:
        """The same without exits."""
        return replace(self, policy=Never(), kv=PROPAGATE, tuned=None)

    def check_asked(self, asked: ModelRequest, heads: Path | None) -> None:
        """Refuse heads and a policy of another model than the one asked for, before it is loaded.

        heads: their file, None for those that a tuned policy names. Raises PolicyError and InputError.
        """
        where = str(heads or (self.tuned and self.tuned.heads_file))
        check_early(asked, self.policy, self.tuned, self.heads, where, self.kv)

    def check_files(self, dtype: str) -> None:
        """Refuse heads and policies that do not fit each other, before a model is loaded.

        dtype: that it will be loaded in. Raises PolicyError and InputError.
        """
        if self.heads is not None:
            check_policy(self.policy, int(self.heads.model["layers"]), self.heads)
        check_tuned_early(self.tuned, self.policy, self.heads, self.kv)
        if self.kv == MAPPED:
            check_maps(self.policy, self.heads, dtype=dtype)

    def check_model(self, model: Model) -> None:
        """Refuse a model that this does not fit, or heads of another. Raises PolicyError and InputError."""
        check_policy(self.policy, model.layers, self.heads)
        check_model(self.tuned, self.policy, self.heads, model, self.kv)
        if self.kv == MAPPED:
            check_maps(self.policy, self.heads, model.layers, model.dtype)
