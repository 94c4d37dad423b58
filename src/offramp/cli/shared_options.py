"""What commands are given: how a policy decodes or is replayed, and the model that a trace was made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp import defaults
from offramp.commands import loadable_name
from offramp.errors import InputError, ModelError
from offramp.kit.numbers import LARGEST_SEED, Copied, Count, whole_number
from offramp.kit.request import Options, flags
from offramp.kit.rules import only_if, shown
from offramp.models.devices import AUTO
from offramp.policies.names import BatchingName, StrategyName
from offramp.tracing.asked import OnModel
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.decoding.options import DecodingOptions
    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.model import Model
    from offramp.tracing.trace import Trace
    from offramp.workloads.workload import Workload


SPECULATE = "speculate"


def read_number(text: str | None, option: str, *words: str) -> Any:
    """The text of an option as a whole number, or as it is if it is one of the words, or None.

    Raises InputError for any other.
    """
    number = None if text is None else whole_number(text, 0, LARGEST_SEED)
    if number is None and text not in (None, *words):
        name = option.strip("-").replace("-", " ")
        fix = f"give {', '.join(words)} or a whole number"
        raise InputError(f"{name} cannot be {shown(text)}", where=option, fix=fix)
    return text if number is None else number


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
    lookup: Copied = 0
    """Copy so many tokens at most from the text so far where it repeats itself, and verify them by all layers
    at once before the policy is asked; with --kv recompute."""
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
            draft_length=read_number(self.draft_length, "--draft-length", AUTO),
            lookup=self.lookup,
            batching=self.batching,
            new_tokens=self.new_tokens,
        )

    def load(self, *workloads: Workload) -> Model:
        """The model, once its files, the workloads, the policy and the exit heads fit each other.

        Raises ModelError or InputError.
        """
        with stage("loading the model and checking its exits"):
            found = self.find(self.model)
            found.require_fitting(workloads)
            self.options.check_asked(found, self.heads_file)
            return found.load()


def load_traced_model(
    trace: Trace,
    name: str | None,
    heads: ExitHeads | None,
    *,
    reference: bool = False,
    instead: str,
    device: str = AUTO,
    trust_remote_code: bool = False,
) -> Model:
    """The trace's own model, in its dtype, with its attention and transforms; by a name another copy of it.

    name: what to load, None for where the trace says that it came from. heads: checked against the model's
    files before a weight is loaded. reference: the model instead whose choices the trace keeps beside its
    own. instead: what can still be answered where the model is gone. device: as of `load_model`.

    Raises InputError for a model that is gone or another one, for heads of another model, or for a trace that
    keeps no reference.
    """
    from offramp.decoding.rerun.trace_sequences import reference_of
    from offramp.models.identity import ATTENTION
    from offramp.models.loading import Placement
    from offramp.policies.binding import require_heads
    from offramp.tracing.loading import find_model, read_transforms

    if not reference:
        require_heads(trace, heads)
    own: dict[str, Any] = dict(trace.request.get("model") or {})
    dtype = str(trace.request.get("dtype", "float32"))
    traced = reference_of(trace) if reference else {**own, "dtype": dtype}
    what, folder = "reference" if reference else "model", str(trace.folder or "the trace")
    wanted = name or loadable_name(traced)
    if not wanted:
        raise InputError(
            "the trace does not say which model it is of", where=folder, fix=f"name it with --{what}"
        )
    where = f"--{what} {wanted}, for {folder}"
    transforms = read_transforms(list(traced.get("transforms", ())), traced["dtype"])
    try:
        asked = find_model(
            str(wanted), transforms, dtype=traced["dtype"], trust_remote_code=trust_remote_code, device=device
        )
    except (InputError, ModelError) as error:
        raise InputError(
            f"the trace's {what} cannot be had: {error.what}",
            where=where,
            fix=f"name a copy of it with --{what}; without it, {instead}",
        ) from error
    found = asked.identity
    if found is not None and found.fingerprint != traced.get("fingerprint"):
        raise InputError(
            f"{wanted} is another model than the one that was traced{' as the reference' * reference}, "
            f"{traced.get('name', 'no name')}",
            where=where,
            fix=f"name a copy of that one, or trace again with this one; without it, {instead}",
        )
    if heads is not None:
        asked.require_heads(heads, "--heads")
    # Another way of attending changes last digits, and with them what is decoded.
    placement = Placement(asked.device, attn_implementation=own.get(ATTENTION))
    with stage(f"loading the {what} and checking its exits"):
        return asked.load(placement)


def read_traced_heads(trace: Trace, path: Path | None) -> ExitHeads | None:
    """The exit heads given with `--heads`, None without.

    Raises InputError for a file that is none, and where the trace was read through heads that are not given.
    """
    from offramp.heads.described import reads_exits
    from offramp.heads.file import read_heads
    from offramp.policies.binding import base_of

    heads = None if path is None else read_heads(path)
    before = base_of(trace)["heads"] or {}
    if heads is None and reads_exits(before):
        raise InputError(
            f"the trace's exits were read through the exit heads {str(before['fingerprint'])[:12]}",
            where=str(trace.folder or "the trace"),
            fix="give their file with --heads",
        )
    return heads
