"""What the exits took that a training begins from, as the record beside them says."""

from __future__ import annotations

from pathlib import Path

from offramp.decoding.options import HeadsSource
from offramp.lab.exits.gate import GATE
from offramp.lab.exits.gate_record import GATE_RECORD, GateRecord
from offramp.lab.exits.record import RECORD, Spent, TrainingRecord
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.exits_folder import TRAINING_FILE, heads_path


def record_of(exits: Path, fingerprint: str) -> TrainingRecord | GateRecord | None:
    """The record of the training of some exits, in their folder or beside their file; None without one.

    fingerprint: of the exits; a record of others is none of these. Raises DamagedFileError.
    """
    path = heads_path(exits).parent / TRAINING_FILE
    kind = next((one for one in (RECORD, GATE_RECORD) if one.is_of(path)), None)
    found = None if kind is None else kind.read(path)
    return found if found is not None and found.heads == fingerprint else None


def spent_before(source: HeadsSource, heads: ExitHeads | None) -> Spent | None:
    """What the trainings took of the heads that another one begins from: nothing if they are fitted alone.

    source: where the heads come from. None if they were trained and no record of that lies beside them.
    """
    if heads is None:
        return Spent()
    record = record_of(Path(source), heads.fingerprint) if isinstance(source, (str, Path)) else None
    if record is not None:
        return spent_on(record)
    return None if _were_trained(heads) else Spent()


def spent_on(record: TrainingRecord | GateRecord) -> Spent | None:
    """What a training took with all that it began from, None if a part of that is not known."""
    return None if record.earlier is None else record.own + record.earlier


def _were_trained(heads: ExitHeads) -> bool:
    """Whether more than sums over a text made them: steps, as far as they say."""
    maps = {} if heads.kv_maps is None else heads.kv_maps.provenance
    return "trained" in heads.provenance or GATE in heads.provenance or "trained" in maps
