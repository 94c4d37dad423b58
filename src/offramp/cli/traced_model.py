"""The model that a trace was made of, loaded again for what a trace alone cannot tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offramp.commands import loadable_name
from offramp.errors import InputError, ModelError
from offramp.models.devices import AUTO
from offramp.models.identity import ATTENTION
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from pathlib import Path

    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.model import Model
    from offramp.tracing.trace import Trace


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
    from offramp.decoding.rerun.sequences import reference_of
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
