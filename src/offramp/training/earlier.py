"""What the exits and the model took that a training begins from, as the record beside them says."""

from __future__ import annotations

from pathlib import Path

from offramp.decoding.options import HeadsSource
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import TRAINING_FILE, heads_path
from offramp.models.model import Model
from offramp.training.gate import GATE
from offramp.training.gate_record import GATE_RECORD, GateRecord
from offramp.training.record import RECORD, Spent, TrainingRecord


def record_of(exits: Path, fingerprint: str) -> TrainingRecord | GateRecord | None:
    """The record of the training of some exits, in their folder or beside their file; None without one.

    fingerprint: of the exits; a record of others is none of these. Raises DamagedFileError.
    """
    path = heads_path(exits).parent / TRAINING_FILE
    kind = next((one for one in (RECORD, GATE_RECORD) if one.is_of(path)), None)
    found = None if kind is None else kind.read(path)
    return found if found is not None and found.heads == fingerprint else None


def spent_before(model: Model, source: HeadsSource, heads: ExitHeads | None) -> Spent | None:
    """What the trainings took of the heads that another one begins from, that of their model among them.

    source: where the heads come from. None if heads or model were trained and no record of that lies beside
    them. Raises DamagedFileError.
    """
    if heads is None:
        return _spent_on_model(model)
    record = record_of(Path(source), heads.fingerprint) if isinstance(source, (str, Path)) else None
    if record is not None:
        return spent_on(record)
    return None if _were_trained(heads) else _spent_on_model(model)


def _spent_on_model(model: Model) -> Spent | None:
    """What training the model itself took: nothing where its folder has no record of one."""
    path = None if model.source is None else model.source.folder / TRAINING_FILE
    if path is None or not RECORD.is_of(path):
        return Spent()
    record = RECORD.read(path)
    return spent_on(record) if record.heads == model.identity.base_fingerprint else None


def spent_on(record: TrainingRecord | GateRecord) -> Spent | None:
    """What a training took with all that it began from, None if a part of that is not known."""
    return None if record.earlier is None else record.own + record.earlier


def _were_trained(heads: ExitHeads) -> bool:
    """Whether more than sums over a text made them: steps, as far as they say."""
    maps = {} if heads.kv_maps is None else heads.kv_maps.provenance
    return "trained" in heads.provenance or GATE in heads.provenance or "trained" in maps
