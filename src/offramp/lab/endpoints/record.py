"""`endpoints.json`: the endpoints of one model, and all that they depend on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from offramp.errors import InputError
from offramp.lab.endpoints.skipped import Skipped
from offramp.lab.required_depth import RequiredDepth
from offramp.records.sealed_file import SealedFile

Endpoint = Literal[
    "skipped",
    "skipped_lens",
    "representation",
    "representation_lens",
    "calibration",
    "required_depth",
    "skipped_code",
    "scores",
]
"""P1, P2, P3, P4, P5, D1 of docs/lab/preregistered.md, and of its family 6 the saving and the candidates."""

ENDPOINTS: tuple[Endpoint, ...] = get_args(Endpoint)

CANDIDATES = {
    **dict.fromkeys(("representation", "increment", "calibration", "composite"), 1),
    **dict.fromkeys(("eas_logit", "eas_centred_logit", "eas_hidden"), 1),
    **dict.fromkeys(("mean_kl", "block_influence"), -1),
}
"""Scores that may tell savings beforehand, and the sign with which a larger one means more."""

ORACLE = "oracle_saturation"
"""What the saturation exit skips: shown beside the candidates, and none."""


@dataclass(frozen=True)
class Sizes:
    """How much is decoded, read and trained on: as docs/lab/preregistered.md fixes it, less for a trial.

    prompts: half of them prose, half code, or all code. traced: tokens. lens_tokens: of validation works.
    context: tokens that are read at once, at most.
    """

    prompts: int = 32
    prompt_tokens: int = 64
    new_tokens: int = 48
    traced: int = 20_480
    lens_tokens: int = 32_768
    lens_steps: int = 600
    context: int = 256


@dataclass(frozen=True)
class Endpoints:
    """The endpoints of one model.

    model, text, code: fingerprints; code: of all source that the figures depend on. endpoints: those that
    were asked for. values: figures by the name of their column in a table of runs; None for one that cannot
    be told, and untold then says why.
    executed: the thresholds behind the layers skipped, by column. depth: what is behind `required_depth`.
    tokens, documents: that were traced, by endpoint. seconds: of the processor, by endpoint, and apart of the
    "lens" of P2 and P4 and the "trace" of P3 and P5.
    """

    model: str
    text: str
    code: str
    seed: int
    sizes: Sizes
    dtype: str
    device: str
    threads: int
    versions: dict[str, str]
    endpoints: tuple[Endpoint, ...]
    values: dict[str, float | None] = field(default_factory=dict)
    untold: dict[str, str] = field(default_factory=dict)
    executed: dict[str, Skipped] = field(default_factory=dict)
    depth: RequiredDepth | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


RECORD = SealedFile(
    Endpoints,
    what="the endpoints in {name} are damaged",
    fix="measure the model again: offramp lab measure",
    version=2,
    kind="lab endpoints",
)


def read_endpoints(path: str | Path) -> Endpoints:
    """The endpoints in a file. Raises InputError where there is none, DamagedFileError for changed bytes."""
    path = Path(path)
    if not path.is_file():
        raise InputError("there are no endpoints", where=str(path), fix="measure them: offramp lab measure")
    return RECORD.read(path)


def require_free(path: Path, *, overwrite: bool = False) -> None:
    """Refuse to write endpoints over others, unless that is asked for, or over anything else.

    Raises InputError, also where there is no folder for them.
    """
    if not path.parent.is_dir():
        fix = "make it, or choose another with -o"
        raise InputError("there is no folder for the output", where=str(path.parent), fix=fix)
    if path.exists() and not RECORD.is_of(path):
        raise InputError("the output is something else", where=str(path), fix="choose another file with -o")
    if path.exists() and not overwrite:
        fix = "choose another file with -o, or give --overwrite"
        raise InputError("endpoints are there already", where=str(path), fix=fix)
