"""Files of exit heads: written whole, read back the same, refused when they are not what they should be."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.errors import DamagedFileError, InputError, OfframpError
from offramp.tracing.exit_heads import ExitClassifier, ExitHeads, LinearLens
from offramp.tracing.heads_file import HEADER, SCHEMA_VERSION, read_heads, require_base, write_heads

HIDDEN, UNITS, EXITS = 6, 4, (2, 3)
MODEL = {
    "name": "tiny",
    "fingerprint": "a" * 64,
    "dtype": "float32",
    "layers": 4,
    "hidden_size": HIDDEN,
    "vocabulary_size": 50,
}


def classifier(features: int, *, network: bool, seed: int = 0) -> ExitClassifier:
    generator = np.random.default_rng(seed)

    def numbers(*shape: int) -> Any:
        return generator.normal(size=(len(EXITS), *shape)).astype(np.float32)

    widths = (features, UNITS, 1) if network else (features, 1)
    layers = list(itertools.pairwise(widths))
    return ExitClassifier(
        mean=numbers(features),
        scale=np.abs(numbers(features)) + 1,
        weights=tuple(numbers(*layer) for layer in layers),
        biases=tuple(numbers(layer[1]) for layer in layers),
        auroc=np.array([0.7, np.nan]),
        base_rate=np.array([0.5, 0.01]),
        better_than_chance=np.array([True, False]),
    )


def example() -> ExitHeads:
    generator = np.random.default_rng(1)
    return ExitHeads(
        model=MODEL,
        exits=EXITS,
        lens=LinearLens(
            weight=generator.normal(size=(2, HIDDEN, HIDDEN)).astype(np.float32),
            bias=generator.normal(size=(2, HIDDEN)).astype(np.float32),
            explained=np.array([0.4, 0.8]),
            penalty=np.array([1e-3, 2.0]),
        ),
        classifiers={
            "correctness": classifier(HIDDEN, network=False),
            "candidate_score": classifier(24, network=True),
        },
        shortlist=np.array([3, 1, 4], dtype=np.int32),
        candidate_exit=2,
        documents={"w" * 64: ("d1", "d2"), "v" * 64: ("é",)},
        provenance={"seed": 0, "lens": None},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "heads.safetensors"
    write_heads(example(), file)
    return file


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    """Change the header (as the file holds it) and the arrays' description, keeping the arrays' bytes."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    description = json.loads(data[8 : 8 + size])
    metadata = description["__metadata__"]
    header = json.loads(metadata[HEADER])
    change(header, description)
    metadata[HEADER] = json.dumps(header)
    text = json.dumps(description).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


@pytest.mark.parametrize("lens", [True, False])
def test_what_is_written_is_read_back(tmp_path: Path, lens: bool) -> None:
    heads = example()
    if not lens:
        heads = dataclasses.replace(heads, lens=None, shortlist=None, candidate_exit=None)
    write_heads(heads, tmp_path / "heads")
    found = read_heads(tmp_path / "heads")
    assert found.header() == heads.header()
    assert (found.lens is not None) == lens
    arrays, expected = found.arrays(), heads.arrays()
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
    assert found.fingerprint == heads.fingerprint
    assert [file.name for file in tmp_path.iterdir()] == ["heads"]


def test_the_same_heads_give_the_same_bytes(path: Path, tmp_path: Path) -> None:
    write_heads(read_heads(path), tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"exits": (1, 3)},
        {"candidate_exit": 3},
        {"documents": {"w" * 64: ("d1",)}},
        {"provenance": {"seed": 1}},
        {"model": {**MODEL, "name": "other"}},
        {"shortlist": np.array([3, 1, 5], dtype=np.int32)},
        {"classifiers": {"correctness": classifier(HIDDEN, network=False, seed=5)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_fingerprint_covers_everything(change: dict[str, Any]) -> None:
    assert dataclasses.replace(example(), **change).fingerprint != example().fingerprint


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_an_older_version_is_read_and_has_the_fingerprint_that_it_had(
    path: Path, version: int
) -> None:
    """Traces and policies know heads by their fingerprint: it must not change with the file's version."""

    def older(header: dict[str, Any], description: dict[str, Any]) -> None:
        header["schema_version"] = version

    rewrite(path, older)
    of_version_1 = "fd5d9645ab8d08475d74a0ef5d2a624d9ebd7fbabd1790b74de042ce34632445"
    assert read_heads(path).fingerprint == of_version_1 == example().fingerprint
    assert read_heads(path).output is None
    assert read_heads(path).kv_maps is None


def test_a_lens_whose_fit_is_not_known_is_read_back(tmp_path: Path) -> None:
    heads = with_lens(explained=None, penalty=None)
    write_heads(heads, tmp_path / "heads")
    found = read_heads(tmp_path / "heads")
    assert found.fingerprint == heads.fingerprint != example().fingerprint
    assert found.lens is not None
    assert found.lens.explained is None
    assert found.lens.penalty is None


def test_every_flipped_bit_is_found(path: Path) -> None:
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(len(whole), size=200).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(changed))
        with pytest.raises(OfframpError):
            read_heads(path)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(OfframpError):
        read_heads(path)


def test_a_header_edited_by_hand_is_refused(path: Path) -> None:
    def forget_documents(header: dict[str, Any], description: dict[str, Any]) -> None:
        header["documents"] = {}

    rewrite(path, forget_documents)
    with pytest.raises(DamagedFileError, match="SHA-256 differs"):
        read_heads(path)


def test_a_newer_schema_is_named(path: Path) -> None:
    def newer(header: dict[str, Any], description: dict[str, Any]) -> None:
        header["schema_version"] = SCHEMA_VERSION + 1

    rewrite(path, newer)
    with pytest.raises(InputError, match=f"schema version {SCHEMA_VERSION + 1}") as caught:
        read_heads(path)
    assert "update offramp" in caught.value.fix


def test_safetensors_with_empty_metadata_hold_no_heads(tmp_path: Path) -> None:
    header = json.dumps({"__metadata__": None, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    (tmp_path / "null").write_bytes(struct.pack("<Q", len(header)) + header.encode() + b"0")
    with pytest.raises(InputError, match="holds no exit heads"):
        read_heads(tmp_path / "null")


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    import torch

    (tmp_path / "heads.bin").write_bytes(pickle.dumps({"weight": 1}))
    torch.save({"weight": torch.ones(2)}, tmp_path / "heads.pt")
    for name in ("heads.bin", "heads.pt"):
        with pytest.raises(InputError, match="is a pickle") as caught:
            read_heads(tmp_path / name)
        assert "offramp heads fit" in caught.value.fix


def test_a_length_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    firsts = set()
    for padding in range(256):
        heads = dataclasses.replace(example(), provenance={"note": "x" * padding})
        write_heads(heads, tmp_path / "heads")
        firsts.add((tmp_path / "heads").read_bytes()[0])
        assert read_heads(tmp_path / "heads").fingerprint == heads.fingerprint
    assert 0x80 in firsts


def test_what_is_no_file_of_heads_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"weight": np.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "text").write_text("not safetensors at all")
    for name, why in [
        ("model.safetensors", "holds no exit heads"),
        ("text", "not safetensors"),
        ("absent", "does not exist"),
        (".", "is a folder"),
    ]:
        with pytest.raises(InputError, match=why) as caught:
            read_heads(tmp_path / name)
        assert "offramp heads fit" in caught.value.fix


def with_lens(**arrays: Any) -> ExitHeads:
    heads = example()
    assert heads.lens is not None
    return dataclasses.replace(heads, lens=dataclasses.replace(heads.lens, **arrays))


def with_classifier(**arrays: Any) -> ExitHeads:
    heads = example()
    changed = dataclasses.replace(heads.classifiers["correctness"], **arrays)
    return dataclasses.replace(heads, classifiers={"correctness": changed})


@pytest.mark.parametrize(
    ("heads", "why"),
    [
        (with_lens(weight=np.full((2, HIDDEN, HIDDEN), np.nan, np.float32)), "lens.weight holds a number"),
        (with_lens(bias=np.full((2, HIDDEN), np.inf, np.float32)), "lens.bias holds a number"),
        (with_lens(weight=np.zeros((2, HIDDEN, 3), np.float32)), "lens.weight is float32"),
        (with_lens(weight=np.zeros((3, HIDDEN, HIDDEN), np.float32)), "lens.weight is float32"),
        (with_lens(bias=np.zeros((2, HIDDEN))), "lens.bias is float64"),
        (
            with_classifier(scale=np.zeros((2, HIDDEN), np.float32)),
            "scale holds a number that is not positive",
        ),
        (with_classifier(weights=(np.zeros((2, 3, 1), np.float32),)), "correctness.weights.0 is float32"),
        (with_classifier(biases=(np.zeros((2, 2), np.float32),)), "correctness.biases.0 is float32"),
        (dataclasses.replace(example(), exits=(3, 2)), "not ascending"),
        (dataclasses.replace(example(), exits=(2, 4)), "not ascending"),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_are_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: ExitHeads, why: str
) -> None:
    path = tmp_path / "heads"
    with pytest.raises(InputError, match=why):
        write_heads(heads, path)
    assert not path.exists()
    # A well-sealed file that another program wrote is checked just the same.
    with monkeypatch.context() as patch:
        patch.setattr("offramp.tracing.heads_file.build_heads", lambda *arguments: None)
        write_heads(heads, path)
    with pytest.raises(InputError, match=why):
        read_heads(path)


@pytest.mark.parametrize("part", ["exits", "model", "classifiers", "documents", "candidate_exit"])
def test_a_sealed_header_without_a_part_is_refused(path: Path, part: str) -> None:
    from offramp.tracing.exit_heads import seal_of
    from offramp.tracing.heads_file import SCHEMA, SEAL

    def without(header: dict[str, Any], description: dict[str, Any]) -> None:
        del header[part]
        content = {key: value for key, value in header.items() if key not in (SCHEMA, SEAL)}
        header[SEAL] = seal_of(content, example().arrays())

    rewrite(path, without)
    with pytest.raises(DamagedFileError, match=part):
        read_heads(path)


def test_heads_of_another_base_are_refused_by_name() -> None:
    require_base(example(), MODEL)
    with pytest.raises(InputError, match=r"fitted on tiny \(a{12}\), not on other \(b{12}\)"):
        require_base(example(), {**MODEL, "name": "other", "fingerprint": "b" * 64})


def test_a_failed_write_leaves_nothing(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full_disk(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("offramp.files.os.replace", full_disk)
    with pytest.raises(OfframpError, match="disk is full"):
        write_heads(dataclasses.replace(example(), candidate_exit=3), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_reading_needs_no_torch(path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from offramp.tracing.heads_file import read_heads; "
        f"read_heads({str(path)!r}); assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
