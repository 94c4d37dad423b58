"""Files of exit heads: one safetensors file whose metadata says what the arrays belong to.

Every shape, type and number is checked when heads are built from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import DamagedFileError, InputError
from offramp.files import canonical_json, write_atomically
from offramp.models.identity import command_name, shown_name
from offramp.tracing.exit_heads import (
    ExitClassifier,
    ExitHeads,
    ExitMaps,
    ExitMlp,
    KeyValueMaps,
    LinearLens,
    OutputHeads,
    seal_of,
)
from offramp.tracing.exits_folder import heads_path
from offramp.workloads.shared_text import WHOLE, Sketch

SCHEMA_VERSION = 4
"""4: networks behind a lens. 3: K,V maps, and sketches of the texts that fitting read. 2: output heads, and a
lens whose fit is not known. Older files are those without them."""

HEADER = "offramp_heads"
LARGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, by its format."""
SCHEMA = "schema_version"
SEAL = "sha256"

NORM_ARRAYS: dict[str, tuple[str, ...]] = {
    "model": (),
    "rms": ("norm_weight",),
    "layer": ("norm_weight", "norm_bias"),
    "none": (),
}
"""Arrays that a norm may bring with it, the first of which it must."""

Arrays = dict[str, NDArray[Any]]

MADE_BY = "make one with offramp heads fit MODEL --workload W -o FILE"


def build_heads(header: dict[str, Any], arrays: Arrays, where: str) -> ExitHeads:
    """Heads from a header and arrays, every shape, type and number checked.

    where: the file. Raises InputError for arrays that do not belong together, and what a header without the
    parts that `ExitHeads.header` writes raises.
    """
    reader = Reader(arrays, len(header["exits"]), where)
    hidden = int(header["model"]["hidden_size"])
    lens = None
    if header["lens"]:
        lens = LinearLens(
            weight=reader.take("lens.weight", (hidden, hidden)),
            bias=reader.take("lens.bias", (hidden,)),
            explained=reader.take_if_there("lens.explained", (), np.float64),
            penalty=reader.take_if_there("lens.penalty", (), np.float64),
        )
    heads = ExitHeads(
        model=header["model"],
        exits=tuple(header["exits"]),
        lens=lens,
        classifiers={
            fact: _classifier(reader, fact, layers) for fact, layers in header["classifiers"].items()
        },
        shortlist=reader.arrays.get("shortlist"),
        candidate_exit=header["candidate_exit"],
        documents={workload: tuple(ids) for workload, ids in header["documents"].items()},
        provenance=header["provenance"],
        output=_output(reader, header),
        texts=_texts(reader, header, "texts."),
        mlp=_mlp(reader, header),
        kv_maps=_maps(reader, header),
    )
    if heads.lens is not None and heads.output is not None:
        raise reader.refused("they read exits both through a lens and through output heads")
    if heads.mlp is not None and heads.lens is None:
        raise reader.refused("they hold networks behind a lens, and no lens")
    layers = int(header["model"]["layers"])
    if list(heads.exits) != sorted({exit for exit in heads.exits if 1 <= exit < layers}):
        raise reader.refused(f"the exits {list(heads.exits)} are not ascending layers below {layers}")
    return heads


def _texts(reader: Reader, header: dict[str, Any], prefix: str) -> tuple[Sketch, ...] | None:
    """The sketches of the texts that fitting read, if there are any."""
    if not header.get("texts"):
        return None
    hashes, sizes = (reader.array(f"{prefix}{name}") for name in ("hashes", "sizes"))
    documents = sum(len(ids) for ids in header["documents"].values())
    right = hashes.dtype == np.uint32 and sizes.dtype == np.int64 and hashes.ndim == sizes.ndim == 1
    if not right or len(sizes) != documents or sizes.sum() != len(hashes) or (sizes < WHOLE).any():
        raise reader.refused("the sketches of their texts do not belong to their documents")
    return tuple(np.split(hashes, np.cumsum(sizes)[:-1])) if documents else ()


def _output(reader: Reader, header: dict[str, Any]) -> OutputHeads | None:
    """The output heads that a header speaks of."""
    described = header.get("output")
    if described is None:
        return None
    hidden, vocabulary = (int(header["model"][name]) for name in ("hidden_size", "vocabulary_size"))
    shapes = {"bias": (vocabulary,), "norm_weight": (hidden,), "norm_bias": (hidden,)}
    norm, epsilon = described["norm"], described["epsilon"]
    if norm not in NORM_ARRAYS:
        raise reader.refused(f"no norm {norm!r}; there are: {', '.join(NORM_ARRAYS)}")
    if NORM_ARRAYS[norm] and not (isinstance(epsilon, float) and 0 <= epsilon < 1):
        raise reader.refused(f"the norm's epsilon is {epsilon!r}, not a number from 0 up to 1")
    given = {name: shape for name, shape in shapes.items() if name not in described["absent"]}
    stray = [name for name in given if name != "bias" and name not in NORM_ARRAYS[norm]]
    if stray or ("norm_weight" in NORM_ARRAYS[norm] and "norm_weight" not in given):
        raise reader.refused(f"a {norm} norm takes {', '.join(NORM_ARRAYS[norm]) or 'no weights'}")
    return OutputHeads(
        weight=reader.take("output.weight", (vocabulary, hidden)),
        norm=norm,
        epsilon=epsilon,
        **{name: reader.take(f"output.{name}", shape) for name, shape in given.items()},
    )


def _mlp(reader: Reader, header: dict[str, Any]) -> ExitMlp | None:
    """The networks behind a lens that a header speaks of."""
    described = header.get("mlp")
    if described is None:
        return None
    hidden, units, epsilon = int(header["model"]["hidden_size"]), described["units"], described["epsilon"]
    if not (isinstance(units, int) and units >= 1):
        raise reader.refused(f"networks of {units!r} units, which is not 1 or more")
    if not (isinstance(epsilon, float) and 0 < epsilon < 1):
        raise reader.refused(f"the norm's epsilon is {epsilon!r}, not a number above 0 and below 1")
    shapes = {"norm": (hidden,), "gate": (units, hidden), "up": (units, hidden), "down": (hidden, units)}
    return ExitMlp(
        epsilon=epsilon, **{name: reader.take(f"mlp.{name}", shape) for name, shape in shapes.items()}
    )


def _maps(reader: Reader, header: dict[str, Any]) -> KeyValueMaps | None:
    """The K,V maps that a header speaks of."""
    described = header.get("kv_maps")
    if described is None:
        return None
    hidden, layers = (int(header["model"][name]) for name in ("hidden_size", "layers"))
    exits = [int(one["exit"]) for one in described["maps"]]
    if not exits or exits != sorted({exit for exit in exits if 1 <= exit < layers - 1}):
        raise reader.refused(f"the exits {exits} of the K,V maps are not ascending layers below {layers - 1}")
    return KeyValueMaps(
        maps={
            exit: _exit_maps(reader, one, f"kv_maps.{exit}.", hidden, layers - 1 - exit)
            for exit, one in zip(exits, described["maps"], strict=True)
        },
        documents={workload: tuple(ids) for workload, ids in described["documents"].items()},
        texts=_texts(reader, described, "kv_maps.texts."),
        provenance=described["provenance"],
    )


def _exit_maps(reader: Reader, described: dict[str, Any], prefix: str, hidden: int, layers: int) -> ExitMaps:
    """The maps of one exit to so many layers."""
    rank, penalty = described["rank"], described["penalty"]
    if rank is not None and not (isinstance(rank, int) and 1 <= rank <= hidden):
        raise reader.refused(f"K,V maps of rank {rank!r}, which is not 1 to {hidden}")
    if not (isinstance(penalty, float) and 0 <= penalty < math.inf):
        raise reader.refused(f"the penalty of K,V maps is {penalty!r}, not a number of 0 or more")
    shapes = {"centre": (hidden,), "bias": (layers, hidden)}
    if rank is None:
        shapes["change"] = (layers, hidden, hidden)
    else:
        shapes |= {"inward": (rank, hidden), "outward": (layers, hidden, rank)}
    return ExitMaps(
        explained=reader.take_whole(prefix + "explained", (rank or 1, layers), np.float64),
        penalty=penalty,
        **{name: reader.take_whole(prefix + name, shape) for name, shape in shapes.items()},
    )


def _classifier(reader: Reader, fact: str, layers: int) -> ExitClassifier:
    features = reader.width(f"{fact}.mean")
    widths = [features]
    weights, biases = [], []
    for number in range(layers):
        outputs = 1 if number == layers - 1 else reader.width(f"{fact}.biases.{number}")
        weights.append(reader.take(f"{fact}.weights.{number}", (widths[-1], outputs)))
        biases.append(reader.take(f"{fact}.biases.{number}", (outputs,)))
        widths.append(outputs)
    scale = reader.take(f"{fact}.scale", (features,))
    if not (scale > 0).all():
        raise reader.refused(f"{fact}.scale holds a number that is not positive")
    return ExitClassifier(
        mean=reader.take(f"{fact}.mean", (features,)),
        scale=scale,
        weights=tuple(weights),
        biases=tuple(biases),
        auroc=reader.take(f"{fact}.auroc", (), np.float64, finite=False),
        base_rate=reader.take(f"{fact}.base_rate", (), np.float64),
        better_than_chance=reader.take(f"{fact}.better_than_chance", (), np.bool_),
    )


class Reader:
    """Takes arrays of known shapes, most of them with the exits' axis first."""

    def __init__(self, arrays: Arrays, exits: int, where: str) -> None:
        self.arrays = arrays
        self.exits = exits
        self.where = where

    def take(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float32, *, finite: bool = True
    ) -> NDArray[Any]:
        """The array [exits, *shape], refused if it is missing, of another shape or type, or not finite."""
        return self.take_whole(name, (self.exits, *shape), dtype, finite=finite)

    def take_whole(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic] = np.float32, *, finite: bool = True
    ) -> NDArray[Any]:
        """The same of an array without the exits' axis."""
        array = self.array(name)
        if array.shape != shape or array.dtype != dtype:
            wanted = f"{np.dtype(dtype)} {list(shape)}"
            raise self.refused(f"{name} is {array.dtype} {list(array.shape)}, not {wanted}")
        if finite and not np.isfinite(array).all():
            raise self.refused(f"{name} holds a number that is not finite")
        return array

    def take_if_there(
        self, name: str, shape: tuple[int, ...], dtype: type[np.generic]
    ) -> NDArray[Any] | None:
        """The same, or None if there is no such array."""
        return self.take(name, shape, dtype) if name in self.arrays else None

    def width(self, name: str) -> int:
        """The last axis of an array."""
        return int(self.array(name).shape[-1])

    def array(self, name: str) -> NDArray[Any]:
        """An array of any shape, refused if it is missing."""
        if name not in self.arrays:
            raise self.refused(f"the array {name} is missing")
        return self.arrays[name]

    def refused(self, why: str) -> InputError:
        """The error for heads whose arrays do not belong together."""
        return InputError(f"the exit heads cannot be used: {why}", where=self.where, fix=MADE_BY)


def write_heads(heads: ExitHeads, path: str | Path) -> None:
    """Write heads in one step (see `offramp.files.write_atomically`): the whole file or none.

    Raises InputError for arrays that do not belong together or hold a number that is not finite.
    """
    from safetensors.numpy import save

    arrays, header = heads.arrays(), heads.header()
    build_heads(header, arrays, str(path))  # what could not be read back is not written
    kept = {SCHEMA: SCHEMA_VERSION, SEAL: seal_of(header, arrays), **header}
    # One entry only: safetensors writes several in no fixed order, and equal heads give equal bytes.
    data = save(arrays, metadata={HEADER: canonical_json(kept)})

    def write(temporary: Path) -> None:
        temporary.write_bytes(data)

    write_atomically(Path(path), write)


def read_heads(path: str | Path) -> ExitHeads:
    """The heads of a file, or of a folder of trained exits, the bytes checked against their SHA-256.

    Raises InputError for a file that holds no heads or that a newer version wrote, and as
    `offramp.tracing.exits_folder.heads_path` does; DamagedFileError for one whose bytes changed.
    """
    path = heads_path(path)
    data = _read_bytes(path)
    metadata, arrays = _parse(data, path)
    if HEADER not in metadata:
        raise InputError("the safetensors file holds no exit heads", where=str(path), fix=MADE_BY)
    try:
        header = json.loads(metadata[HEADER])
        version, seal = header.pop(SCHEMA), header.pop(SEAL)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, "its header is not what offramp writes") from error
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise InputError(
            f"the exit heads have schema version {version}; this offramp reads {SCHEMA_VERSION}",
            where=str(path),
            fix="update offramp, or fit the heads again with this version",
        )
    if version not in range(1, SCHEMA_VERSION + 1) or seal != seal_of(header, arrays):
        raise _damaged(path, "its bytes changed since it was written (SHA-256 differs)")
    try:
        return build_heads(header, arrays, str(path))
    except (KeyError, TypeError, AttributeError) as error:  # sealed, but by another program
        raise _damaged(path, f"its header is not what offramp writes ({error})") from error


def require_base(heads: ExitHeads, model: Mapping[str, Any], where: str = "the exit heads") -> None:
    """Refuse heads that were fitted on another model: its weights, config or tokenizer differ.

    model: {"name", "fingerprint", ...} of the model at hand, and "transforms" if it has any.

    Raises InputError that names both.
    """
    if heads.model["fingerprint"] == model["fingerprint"]:
        return
    transforms = model.get("transforms", ())
    raise InputError(
        f"the exit heads were {_made(heads)} {heads.model['name']} ({heads.model['fingerprint'][:12]}), "
        f"not {_made(heads).split()[-1]} {shown_name(model['name'], transforms)} "
        f"({model['fingerprint'][:12]})",
        where=where,
        fix="fit heads of this model: offramp heads fit "
        f"{command_name(model['name'], transforms)} --workload W -o FILE",
    )


def _made(heads: ExitHeads) -> str:
    """How heads came to belong to their model."""
    return "imported for" if "imported" in heads.provenance else "fitted on"


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        what = "does not exist" if not path.exists() else "is a device or a pipe, not a file"
        raise InputError(f"{path.name} {what}", where=str(path), fix=MADE_BY)
    data = path.read_bytes()
    if is_pickle(data[:9]):
        raise InputError(
            "the file is a pickle, which can run code when it is read; exit heads are safetensors",
            where=str(path),
            fix=MADE_BY,
        )
    return data


def is_heads_file(path: Path) -> bool:
    """Whether a file begins as `write_heads` writes them, whole or not."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = file.read(min(size, LARGEST_HEADER))
    return header.startswith(b"{") and HEADER.encode() in header


def is_pickle(beginning: bytes) -> bool:
    """Whether a file that begins with these bytes (9 or more) is a pickle, alone or in a zip as torch's."""
    # A safetensors file begins with eight bytes of length, which may look like a pickle, and a brace.
    return beginning.startswith((b"PK\x03\x04", b"\x80")) and beginning[8:9] != b"{"


def _parse(data: bytes, path: Path) -> tuple[dict[str, str], Arrays]:
    """Metadata and arrays of safetensors bytes."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(data)
        size = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
    except SafetensorError as error:
        raise InputError(
            f"the file is not safetensors, or is damaged: {error}", where=str(path), fix=MADE_BY
        ) from error
    except KeyError as error:  # a type of numbers that numpy lacks
        raise InputError(
            f"the file holds arrays of the type {error}", where=str(path), fix=MADE_BY
        ) from error
    return dict(metadata), arrays


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"the file of exit heads is damaged: {path.name}: {why}",
        where=str(path),
        fix="copy the file again from where it came, or fit the heads again",
    )
