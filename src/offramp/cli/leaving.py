"""`Leaving`, `Keeping`: the parts of a request that say how a policy decodes, or is replayed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp.kit import defaults
from offramp.kit.numbers import Count
from offramp.kit.request import Options, flags
from offramp.kit.rules import only_if
from offramp.policies.names import BatchingName, StrategyName
from offramp.tracing.asked import OnModel
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.decoding.options import DecodingOptions
    from offramp.models.model import Model

SPECULATE = "speculate"


def read_draft_length(text: str | None) -> Any:
    """A text as a number, if it is one: what else it may be, the options say."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else text


@dataclass(frozen=True, kw_only=True)
class Keeping(Options):
    """What becomes of the layers that tokens skip, and how rows of a batch leave."""

    kv: StrategyName | None = None
    """Skipped layers' K and V: propagate (default unless tuned), mapped (by maps of --heads), recompute,
    speculate, monotone."""
    batching: BatchingName | None = None
    """How rows of a batch leave: lockstep (the default) or rebatch."""


@dataclass(frozen=True, kw_only=True)
class Leaving(Keeping, OnModel):
    """Where tokens leave, and what becomes of the layers that they skip."""

    policy: Annotated[str | None, flags("--policy", "-p")] = None
    """static:exit=20, threshold:signal=...,value=...,exits=..., a .json; never: the full model."""
    draft_length: Annotated[
        str | None,
        only_if(lambda asked: asked.options.kv == SPECULATE, "with --kv {options.kv}", "--kv speculate"),
    ] = None
    """Tokens drafted before a verification at most, with --kv speculate: a number or auto. By default
    {defaults.DRAFT_LENGTH}."""
    new_tokens: Count = defaults.NEW_TOKENS
    """New tokens at most."""

    @property
    def heads_file(self) -> Path | None:
        """That exits are read through: the file that was given, or that of the run whose policy it is."""
        raise NotImplementedError

    @cached_property
    def options(self) -> DecodingOptions:
        """The same as decoding takes it. Raises InputError, PolicyError among them, or DamagedFileError."""
        from offramp.decoding.options import DecodingOptions

        return DecodingOptions.read(
            self.policy,
            kv=self.kv,
            heads=self.heads_file,
            draft_length=read_draft_length(self.draft_length),
            batching=self.batching,
            new_tokens=self.new_tokens,
        )

    def load(self) -> Model:
        """The model, once its files, the policy and the exit heads fit each other.

        Raises ModelError or InputError.
        """
        with stage("loading the model and checking its exits"):
            found = self.find(self.model)
            self.options.check_asked(found, self.heads_file)
            self.options.check_files(found.dtype)
            return found.load()
