"""K,V maps in files of exit heads, beside other heads and alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_tracing_heads_file import HIDDEN, MODEL, example

from offramp.errors import InputError, OfframpError
from offramp.tracing.described_heads import describe_heads
from offramp.tracing.exit_heads import ExitHeads, ExitMaps, KeyValueMaps, map_elements
from offramp.tracing.heads_file import read_heads, require_base, write_heads


def example_maps(rank: int | None = 3) -> KeyValueMaps:
    """Maps from exit 1 of 4 layers to the outputs of layers 2 and 3."""
    generator = np.random.default_rng(2)

    def numbers(*shape: int) -> Any:
        return generator.normal(size=shape).astype(np.float32)

    whole = {"change": numbers(2, HIDDEN, HIDDEN)}
    low = {"inward": numbers(rank or 1, HIDDEN), "outward": numbers(2, HIDDEN, rank or 1)}
    maps = ExitMaps(
        centre=numbers(HIDDEN),
        bias=numbers(2, HIDDEN),
        explained=generator.uniform(size=(rank or 1, 2)),
        penalty=1e-6,
        **(whole if rank is None else low),
    )
    return KeyValueMaps({1: maps}, documents={"w" * 64: ("d2", "d3")}, provenance={"rank": rank})


def maps_alone(rank: int | None = 3) -> ExitHeads:
    """Heads with nothing else in them."""
    return ExitHeads(MODEL, (), None, {}, None, None, documents={}, kv_maps=example_maps(rank))


def with_maps(**changes: Any) -> ExitHeads:
    heads = maps_alone()
    assert heads.kv_maps is not None
    changed = dataclasses.replace(heads.kv_maps.maps[1], **changes)
    return dataclasses.replace(heads, kv_maps=KeyValueMaps({1: changed}))


@pytest.mark.parametrize("rank", [3, HIDDEN, None])
@pytest.mark.parametrize("beside", [True, False])
def test_what_is_written_is_read_back(tmp_path: Path, rank: int | None, beside: bool) -> None:
    heads = dataclasses.replace(example(), kv_maps=example_maps(rank)) if beside else maps_alone(rank)
    write_heads(heads, tmp_path / "heads")
    found = read_heads(tmp_path / "heads")
    assert found.header() == heads.header()
    assert found.fingerprint == heads.fingerprint
    for name, array in heads.arrays().items():
        np.testing.assert_array_equal(found.arrays()[name], array)
    assert found.kv_maps is not None
    assert found.kv_maps.ranks == {1: rank}
    assert found.reads_exits == beside
    assert found.holds_maps_alone == (not beside)


def test_maps_do_not_change_what_exits_are_read_by() -> None:
    """A trace or a policy that uses no maps stays good with them."""
    both = dataclasses.replace(example(), kv_maps=example_maps())
    assert both.fingerprint != example().fingerprint
    assert both.reading_fingerprint == example().fingerprint == example().reading_fingerprint
    assert maps_alone().reading_fingerprint is None
    assert describe_heads(both)["reading"] == example().fingerprint
    assert "reading" not in describe_heads(example())


def test_the_documents_that_maps_were_fitted_on_count_as_seen() -> None:
    both = dataclasses.replace(example(), kv_maps=example_maps())
    assert both.seen_documents == {"w" * 64: ("d1", "d2", "d3"), "v" * 64: ("é",)}
    assert describe_heads(both)["documents"]["w" * 64] == ["d1", "d2", "d3"]
    assert maps_alone().seen_documents == {"w" * 64: ("d2", "d3")}


@pytest.mark.parametrize(
    "maps",
    [
        KeyValueMaps({}),
        dataclasses.replace(example_maps(), documents={}),
        dataclasses.replace(example_maps(), provenance={}),
        example_maps().truncated(2),
        example_maps(None),
    ],
)
def test_the_fingerprint_covers_the_maps(maps: KeyValueMaps) -> None:
    assert dataclasses.replace(maps_alone(), kv_maps=maps).fingerprint != maps_alone().fingerprint


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    path = tmp_path / "heads"
    write_heads(maps_alone(), path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(len(whole), size=100).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(changed))
        with pytest.raises(OfframpError):
            read_heads(path)


@pytest.mark.parametrize(
    ("heads", "why"),
    [
        (with_maps(bias=np.full((2, HIDDEN), np.nan, np.float32)), "kv_maps.1.bias holds a number"),
        (with_maps(bias=np.zeros((3, HIDDEN), np.float32)), "kv_maps.1.bias is float32"),
        (with_maps(outward=np.zeros((2, HIDDEN, 2), np.float32)), "kv_maps.1.outward is float32"),
        (with_maps(centre=np.zeros(HIDDEN)), "kv_maps.1.centre is float64"),
        (with_maps(inward=np.zeros((0, HIDDEN), np.float32)), "rank 0"),
        (with_maps(inward=np.zeros((HIDDEN + 1, HIDDEN), np.float32)), f"not 1 to {HIDDEN}"),
        (with_maps(penalty=-1.0), "penalty"),
        (dataclasses.replace(maps_alone(), kv_maps=KeyValueMaps({})), "not ascending layers below 3"),
        (
            dataclasses.replace(maps_alone(), kv_maps=KeyValueMaps({3: example_maps().maps[1]})),
            "not ascending layers below 3",
        ),
    ],
    ids=str,
)
def test_maps_that_do_not_fit_are_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: ExitHeads, why: str
) -> None:
    path = tmp_path / "heads"
    with pytest.raises(InputError, match=why):
        write_heads(heads, path)
    assert not path.exists()
    with monkeypatch.context() as patch:
        patch.setattr("offramp.tracing.heads_file.build_heads", lambda *arguments: None)
        write_heads(heads, path)
    with pytest.raises(InputError, match=why):
        read_heads(path)


def test_maps_of_another_base_are_refused() -> None:
    with pytest.raises(InputError, match="not on other"):
        require_base(maps_alone(), {**MODEL, "name": "other", "fingerprint": "b" * 64})


def test_a_lower_rank_keeps_the_first_columns() -> None:
    maps, whole = example_maps().maps[1], example_maps(None)
    assert maps.inward is not None
    assert maps.outward is not None
    cut = example_maps().truncated(2).maps[1]
    np.testing.assert_array_equal(cut.inward, maps.inward[:2])
    np.testing.assert_array_equal(cut.outward, maps.outward[:, :, :2])
    np.testing.assert_array_equal(cut.explained, maps.explained[:2])
    assert cut.rank == 2
    assert example_maps().truncated(99).ranks == {1: 3}
    with pytest.raises(InputError, match="whole"):
        whole.truncated(2)
    with pytest.raises(InputError, match="rank 0"):
        example_maps().truncated(0)


def test_exits_without_maps_are_missing_unless_nothing_is_skipped_beyond_the_next_layer() -> None:
    assert example_maps().missing([1, 2, 3, 4], layers=4) == [2]
    assert example_maps().missing([1, 3], layers=4) == []


@pytest.mark.parametrize("rank", [3, None])
def test_the_size_of_maps_is_stated_rightly(rank: int | None) -> None:
    maps = example_maps(rank).maps[1]
    arrays = [array for array in (maps.bias, maps.change, maps.inward, maps.outward) if array is not None]
    assert map_elements(HIDDEN, 2, rank) == sum(array.size for array in arrays)
    assert maps.bytes == 4 * (map_elements(HIDDEN, 2, rank) + HIDDEN)
