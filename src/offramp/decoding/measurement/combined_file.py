"""Files of combined accelerations: sealed JSON with every sample, and back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from offramp.decoding.measurement.combined import Combination, CombineResult, OnTop, Quality
from offramp.decoding.measurement.result_file import PARTS, built
from offramp.decoding.measurement.results import Contender, FreeRunning, Interval
from offramp.errors import DamagedFileError
from offramp.files import read_sealed_json, write_sealed_json

SCHEMA_VERSION = 2
KIND = "combined"

PARTS_OF_COMBINED: dict[type, dict[str, type]] = {
    **PARTS,
    Quality: {"free_running": FreeRunning, "forced_agreement": Interval},
    OnTop: {"speedup": Interval},
    Combination: {
        "contender": Contender,
        "product": Interval,
        "interaction": Interval,
        "on_top": OnTop,
        "quality": Quality,
    },
    CombineResult: {"combinations": Combination, "others": Contender, "a_a": Interval},
}


def combined_to_json(result: CombineResult) -> dict[str, Any]:
    """A result as a JSON object, tuples as lists."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(result)))
    return plain


def combined_from_json(value: dict[str, Any]) -> CombineResult:
    """The result that `combined_to_json` made an object of. KeyError or TypeError for any other object."""
    found: CombineResult = built(CombineResult, value, PARTS_OF_COMBINED)
    return found


def write_combined(path: Path, result: CombineResult) -> None:
    """Keep a result in a JSON file, in one step; a NaN or infinity in it is an error, not a file."""
    content = {"schema_version": SCHEMA_VERSION, "kind": KIND, "result": combined_to_json(result)}
    write_sealed_json(path, content)


def read_combined(path: Path) -> CombineResult:
    """The result of a file that `write_combined` wrote. Raises DamagedFileError for any other content."""
    value = read_sealed_json(path, _damaged)
    if value.get("kind") != KIND or value.get("schema_version") != SCHEMA_VERSION:
        raise _damaged(path, "it is of another kind or version")
    try:
        return combined_from_json(value["result"])
    except (KeyError, TypeError, AttributeError) as error:  # sealed, but by another program
        raise _damaged(path, f"its result is not what offramp writes ({error})") from error


def _damaged(path: Path, reason: str) -> DamagedFileError:
    return DamagedFileError(
        f"this is no file of offramp bench --combine: {reason}",
        where=str(path),
        fix="measure again: offramp bench MODEL --combine int8 --combine exits --policy P -o FILE",
    )
