"""The model that a trace was made of, loaded again for what a trace alone cannot tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from offramp.cli.console import stage
from offramp.errors import InputError, ModelError
from offramp.models.devices import AUTO
from offramp.models.identity import ATTENTION

if TYPE_CHECKING:
    from pathlib import Path

    from offramp.models.model import Model
    from offramp.tracing.exit_heads import ExitHeads
    from offramp.tracing.trace import Trace


def load_traced_model(
    trace: Trace,
    name: str | None,
    heads: ExitHeads | None,
    *,
    instead: str,
    device: str = AUTO,
    trust_remote_code: bool = False,
) -> Model:
    """The trace's own model, in its dtype, with its attention and transforms; by a name another copy of it.

    name: what to load, None for where the trace says that it came from. heads: checked against the model's
    files before a weight is loaded. instead: what can still be answered where the model is gone. device: as
    of `load_model`.

    Raises InputError for a model that is gone or another one, or for heads of another model.
    """
    from offramp.tracing.loading import find_model, read_transforms

    traced: dict[str, Any] = dict(trace.request.get("model") or {})
    wanted = name or loadable_name(traced)
    where = str(trace.folder or "the trace")
    if not wanted:
        raise InputError(
            "the trace does not say which model it is of", where=where, fix="name it with --model"
        )
    dtype = str(trace.request.get("dtype", "float32"))
    transforms = read_transforms(list(traced.get("transforms", ())), dtype)
    try:
        asked = find_model(
            str(wanted), transforms, dtype=dtype, trust_remote_code=trust_remote_code, device=device
        )
    except (InputError, ModelError) as error:
        raise InputError(
            f"the trace's model cannot be had: {error.what}",
            where=f"--model {wanted}, for {where}",
            fix=f"name a copy of it with --model; without it, {instead}",
        ) from error
    found = asked.identity
    if found is not None and found.fingerprint != traced.get("fingerprint"):
        raise InputError(
            f"{wanted} is another model than the one that was traced, {traced.get('name', 'no name')}",
            where=f"--model {wanted}, for {where}",
            fix=f"name a copy of the traced model, or trace this one; without it, {instead}",
        )
    if heads is not None:
        asked.require_heads(heads, "--heads")
    from offramp.models.loading import Placement

    # Another way of attending changes last digits, and with them what is decoded.
    placement = Placement(asked.device, attn_implementation=traced.get(ATTENTION))
    with stage("loading the model and checking its exits"):
        return asked.load(placement)


def load_reference(
    trace: Trace, name: str | None, *, instead: str, device: str = AUTO, trust_remote_code: bool = False
) -> Model:
    """The model whose choices the trace keeps beside its own, in its dtype; by a name another copy of it.

    name: what to load, None for where the trace says that it came from. instead: what can still be answered
    where it is gone. device: as of `load_model`.

    Raises InputError for a trace that keeps none's, or for a model that is gone or another one.
    """
    from offramp.decoding.rerun.sequences import reference_of, require_reference
    from offramp.models.loading import Placement
    from offramp.tracing.loading import find_model

    kept = reference_of(trace)
    wanted = str(name or loadable_name(kept))
    try:
        asked = find_model(
            wanted, (), dtype=kept["dtype"], trust_remote_code=trust_remote_code, device=device
        )
    except (InputError, ModelError) as error:
        raise InputError(
            f"the trace's reference cannot be had: {error.what}",
            where=f"--reference {wanted}, for {trace.folder or 'the trace'}",
            fix=f"name a copy of it with --reference; without it, {instead}",
        ) from error
    require_reference(asked.source.identity.fingerprint, asked.dtype, trace)
    attention = (trace.request.get("model") or {}).get(ATTENTION)
    with stage("loading the reference and checking its exits"):
        return asked.load(Placement(asked.device, attn_implementation=attention))


def loadable_name(traced: dict[str, Any]) -> str | None:
    """What the traced model is loaded by: its folder or file while that is there, else its name."""
    from pathlib import Path

    source = traced.get("source")
    if source and Path(str(source)).exists():
        return str(source)
    name = traced.get("name")
    transforms = "".join(f" + {transform}" for transform in traced.get("transforms", ()))
    return None if name is None else str(name).removesuffix(transforms)


def read_traced_heads(trace: Trace, path: Path | None) -> ExitHeads | None:
    """The exit heads given with `--heads`, None without.

    Raises InputError for a file that is none, and where the trace was read through heads that are not given.
    """
    from offramp.policies.binding import base_of
    from offramp.tracing.described_heads import reads_exits
    from offramp.tracing.heads_file import read_heads

    heads = None if path is None else read_heads(path)
    before = base_of(trace)["heads"] or {}
    if heads is None and reads_exits(before):
        raise InputError(
            f"the trace's exits were read through the exit heads {str(before['fingerprint'])[:12]}",
            where=str(trace.folder or "the trace"),
            fix="give their file with --heads",
        )
    return heads
