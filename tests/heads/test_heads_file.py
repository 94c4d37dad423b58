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
from offramp.heads.described import describe_heads
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps, build_heads
from offramp.heads.file import HEADER, SCHEMA_VERSION, read_heads, require_base, write_heads
from offramp.heads.parts import Classifier, ExitMaps, GatedNetwork, Lens, OwnHead, map_elements
from offramp.kit.sealed_tensors import Arrays

HIDDEN, UNITS, EXITS = 6, 4, (2, 3)
MODEL: dict[str, Any] = {
    "name": "tiny",
    "fingerprint": "a" * 64,
    "dtype": "float32",
    "layers": 4,
    "hidden_size": HIDDEN,
    "vocabulary_size": 50,
}


def classifier(features: int, *, network: bool, seed: int = 0) -> Classifier:
    generator = np.random.default_rng(seed)

    def numbers(*shape: int) -> Any:
        return generator.normal(size=(len(EXITS), *shape)).astype(np.float32)

    widths = (features, UNITS, 1) if network else (features, 1)
    layers = list(itertools.pairwise(widths))
    return Classifier(
        mean=numbers(features),
        scale=np.abs(numbers(features)) + 1,
        weights=tuple(numbers(*layer) for layer in layers),
        biases=tuple(numbers(layer[1]) for layer in layers),
        auroc=np.array([0.7, np.nan]),
        base_rate=np.array([0.5, 0.01]),
        better_than_chance=np.array([True, False]),
    )


def example(**changes: Any) -> ExitHeads:
    """A lens and classifiers, some of it changed."""
    generator = np.random.default_rng(1)
    heads = ExitHeads(
        model=MODEL,
        exits=EXITS,
        lens=Lens(
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
    return dataclasses.replace(heads, **changes)


def with_lens(**arrays: Any) -> ExitHeads:
    lens = example().lens
    assert lens is not None
    return example(lens=dataclasses.replace(lens, **arrays))


def with_low_rank(rank: int) -> ExitHeads:
    generator = np.random.default_rng(6)
    inward, outward = (
        generator.normal(size=(2, *shape)).astype(np.float32) for shape in ((rank, HIDDEN), (HIDDEN, rank))
    )
    return with_lens(weight=None, inward=inward, outward=outward)


def with_classifier(**arrays: Any) -> ExitHeads:
    changed = dataclasses.replace(example().classifiers["correctness"], **arrays)
    return example(classifiers={"correctness": changed})


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
    return ExitHeads(
        MODEL, None, {}, None, exits=(), candidate_exit=None, documents={}, kv_maps=example_maps(rank)
    )


def with_maps(**changes: Any) -> ExitHeads:
    heads = maps_alone()
    assert heads.kv_maps is not None
    changed = dataclasses.replace(heads.kv_maps.maps[1], **changes)
    return dataclasses.replace(heads, kv_maps=KeyValueMaps({1: changed}))


def with_mlp(units: int = 3, **changes: Any) -> ExitHeads:
    """A lens and a network behind it for every exit, some of it changed."""
    generator = np.random.default_rng(4)

    def numbers(*shape: int) -> Any:
        return generator.normal(size=(len(EXITS), *shape)).astype(np.float32)

    sizes = {"norm": (HIDDEN,), "gate": (units, HIDDEN), "up": (units, HIDDEN), "down": (HIDDEN, units)}
    mlp = GatedNetwork(**{name: numbers(*shape) for name, shape in sizes.items()})
    return example(mlp=dataclasses.replace(mlp, **changes))


def own_heads(kind: Any = "rms", **changes: Any) -> ExitHeads:
    """An output head of its own for every exit, some of it changed."""
    generator = np.random.default_rng(3)

    def numbers(*shape: int) -> Any:
        return generator.normal(size=(len(EXITS), *shape)).astype(np.float32)

    output = OwnHead(
        weight=numbers(MODEL["vocabulary_size"], HIDDEN),
        bias=None if kind == "model" else numbers(MODEL["vocabulary_size"]),
        norm=kind,
        norm_weight=None if kind == "model" else numbers(HIDDEN),
        norm_bias=numbers(HIDDEN) if kind == "layer" else None,
        epsilon=None if kind == "model" else 1e-2,
    )
    output = dataclasses.replace(output, **changes)
    return ExitHeads(MODEL, None, {}, None, exits=EXITS, candidate_exit=None, documents={}, output=output)


OUTPUT: Any = own_heads().output

WHOLE = {
    "lens and classifiers": example(),
    "classifiers": example(lens=None, shortlist=None, candidate_exit=None),
    "lens of unknown fit": with_lens(explained=None, penalty=None),
    "lens and networks": with_mlp(),
    "maps alone": maps_alone(),
    "maps beside": example(kv_maps=example_maps(HIDDEN)),
    "whole maps": maps_alone(None),
    "own heads, the model's norm": own_heads("model"),
    "own heads, own norm": own_heads("layer"),
    "own norms": own_heads("layer", weight=None, bias=None),
    "one head for all": own_heads("rms", weight=OUTPUT.weight[:1], bias=OUTPUT.bias[:1]),
    "own heads behind a lens of low rank": dataclasses.replace(own_heads("rms"), lens=with_low_rank(2).lens),
    "networks alone": dataclasses.replace(with_mlp(), lens=None),
    "one network for all": with_mlp(
        **{name: getattr(with_mlp().mlp, name)[:1] for name in ("norm", "gate", "up", "down")}
    ),
}


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


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_written_is_read_back(tmp_path: Path, case: str) -> None:
    heads = WHOLE[case]
    write_heads(heads, tmp_path / "heads")
    found = read_heads(tmp_path / "heads")
    assert found.header() == heads.header()
    arrays, expected = found.arrays(), heads.arrays()
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
        assert arrays[name].dtype == array.dtype
    for part in ("lens", "mlp", "output", "kv_maps", "shortlist"):
        assert (getattr(found, part) is None) == (getattr(heads, part) is None)
    assert found.fingerprint == heads.fingerprint
    assert [one.fingerprint for one in WHOLE.values()].count(found.fingerprint) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["heads"]
    write_heads(found, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "heads").read_bytes()


@pytest.mark.parametrize(
    "changed",
    [
        example(exits=(1, 3)),
        example(candidate_exit=3),
        example(documents={"w" * 64: ("d1",)}),
        example(provenance={"seed": 1}),
        example(model={**MODEL, "name": "other"}),
        example(shortlist=np.array([3, 1, 5], dtype=np.int32)),
        example(classifiers={"correctness": classifier(HIDDEN, network=False, seed=5)}),
        *(
            example(kv_maps=maps)
            for maps in (
                KeyValueMaps({}),
                dataclasses.replace(example_maps(), documents={}),
                dataclasses.replace(example_maps(), provenance={}),
                example_maps().truncated(2),
            )
        ),
        with_mlp(),
        with_mlp(epsilon=1e-5),
        with_mlp(2),
        with_low_rank(2),
    ],
    ids=lambda _: "",
)
def test_the_fingerprint_covers_everything(changed: ExitHeads) -> None:
    assert changed.fingerprint not in (example().fingerprint, example(kv_maps=example_maps()).fingerprint)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
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


@pytest.mark.parametrize("case", ["lens and classifiers", "maps alone"])
def test_every_flipped_bit_and_every_cut_is_found(tmp_path: Path, case: str) -> None:
    path = tmp_path / "heads"
    write_heads(WHOLE[case], path)
    whole = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(len(whole), size=150).tolist():
        changed = bytearray(whole)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(changed))
        with pytest.raises(OfframpError):
            read_heads(path)
    for kept in (0, 7, 100, -1):
        path.write_bytes(whole[:kept])
        with pytest.raises(OfframpError):
            read_heads(path)


def test_a_length_that_begins_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    firsts = set()
    for padding in range(0, 256, 8):  # of which a header's length is a multiple
        heads = example(provenance={"note": "x" * padding})
        write_heads(heads, tmp_path / "heads")
        firsts.add((tmp_path / "heads").read_bytes()[0])
        assert read_heads(tmp_path / "heads").fingerprint == heads.fingerprint
    assert 0x80 in firsts


def newer(header: dict[str, Any], description: dict[str, Any]) -> None:
    header["schema_version"] = SCHEMA_VERSION + 1


def forget_documents(header: dict[str, Any], description: dict[str, Any]) -> None:
    header["documents"] = {}


def test_what_is_no_file_of_heads_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.numpy import save_file

    save_file({"weight": np.ones(2)}, tmp_path / "model")
    (tmp_path / "text").write_text("not safetensors at all")
    (tmp_path / "pickle").write_bytes(pickle.dumps({"weight": 1}))
    torch.save({"weight": torch.ones(2)}, tmp_path / "heads.pt")
    empty = json.dumps({"__metadata__": None, "a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}})
    (tmp_path / "empty metadata").write_bytes(struct.pack("<Q", len(empty)) + empty.encode() + b"0")
    for name, change in (("newer", newer), ("edited", forget_documents)):
        write_heads(example(), tmp_path / name)
        rewrite(tmp_path / name, change)
    for name, why, fix in [
        ("model", "holds no exit heads", "offramp heads fit"),
        ("text", "not safetensors", "offramp heads fit"),
        ("absent", "does not exist", "offramp exits train -o writes a folder, offramp heads fit -o a file"),
        (".", "the folder holds no trained exits", "offramp heads fit"),
        ("pickle", "is a pickle", "offramp heads fit"),
        ("heads.pt", "is a pickle", "offramp heads fit"),
        ("empty metadata", "holds no exit heads", "offramp heads fit"),
        ("newer", f"schema version {SCHEMA_VERSION + 1}", "update offramp"),
        ("edited", "SHA-256 differs", "copy the file again"),
    ]:
        with pytest.raises(OfframpError, match=why) as caught:
            read_heads(tmp_path / name)
        assert isinstance(caught.value, DamagedFileError if name == "edited" else InputError)
        assert fix in caught.value.fix


def poisoned(array: np.ndarray | None, value: float = np.nan) -> np.ndarray:
    assert array is not None
    changed = array.copy()
    changed.flat[3] = value
    return changed


MISFITS: list[tuple[ExitHeads, str]] = [
    (with_lens(weight=np.full((2, HIDDEN, HIDDEN), np.nan, np.float32)), "lens.weight holds a number"),
    (with_lens(weight=np.zeros((2, HIDDEN, 3), np.float32)), "lens.weight is float32"),
    (with_lens(bias=np.zeros((2, HIDDEN))), "lens.bias is float64"),
    (with_classifier(scale=np.zeros((2, HIDDEN), np.float32)), "scale holds a number that is not positive"),
    (
        with_classifier(auroc=np.array([5.0, np.nan])),
        "correctness.auroc holds a number that is not from 0 to 1",
    ),
    (with_classifier(weights=(np.zeros((2, 3, 1), np.float32),)), "correctness.weights.0 is float32"),
    (with_classifier(biases=(np.zeros((2, 2), np.float32),)), "correctness.biases.0 is float32"),
    (example(exits=(3, 2)), "not ascending"),
    (with_low_rank(HIDDEN + 1), f"a lens of rank {HIDDEN + 1}, which is not 1 to {HIDDEN}"),
    (with_lens(inward=np.zeros((2, 2, HIDDEN), np.float32)), "lens.outward is missing"),
    (with_mlp(gate=np.zeros((2, 4, HIDDEN), np.float32)), "mlp.up is float32"),
    (with_mlp(down=np.full((2, HIDDEN, 3), np.nan, np.float32)), "mlp.down holds a number"),
    (with_mlp(epsilon=0.0), "mlp.epsilon: Input should be greater than 0"),
    (example(exits=(2, 4)), "not ascending"),
    (example(shortlist=np.zeros(0, np.int32)), "the shortlist is not of token ids"),
    (example(shortlist=np.array([[1, 2]], np.int32)), "the shortlist is not of token ids"),
    (example(shortlist=np.array([1, 1], np.int32)), "the shortlist is not of token ids"),
    (example(candidate_exit=99), "the candidate exit 99 is none of its exits"),
    (with_maps(bias=np.zeros((3, HIDDEN), np.float32)), "kv_maps.1.bias is float32"),
    (with_maps(centre=np.zeros(HIDDEN)), "kv_maps.1.centre is float64"),
    (with_maps(inward=np.zeros((0, HIDDEN), np.float32)), "rank: Input should be greater"),
    (with_maps(inward=np.zeros((HIDDEN + 1, HIDDEN), np.float32)), f"not 1 to {HIDDEN}"),
    (with_maps(penalty=-1.0), "penalty: Input should be greater"),
    (dataclasses.replace(maps_alone(), kv_maps=KeyValueMaps({})), "not ascending layers below 3"),
    (
        dataclasses.replace(maps_alone(), kv_maps=KeyValueMaps({3: example_maps().maps[1]})),
        "not ascending layers below 3",
    ),
    (own_heads(weight=poisoned(OUTPUT.weight)), "output.weight holds a number that is not finite"),
    (own_heads(weight=OUTPUT.weight[:, :, :3]), "output"),
    (own_heads(norm_weight=OUTPUT.norm_weight[:1]), "output.norm_weight is"),
    (own_heads(norm="batch"), "output.norm: Input should be 'model', 'rms', 'layer' or 'none'"),
    (own_heads(norm="model"), "a model norm takes no weights"),
    (own_heads(norm_weight=None), "a rms norm takes norm_weight"),
    (own_heads(epsilon=None), "a rms norm takes an epsilon"),
    (own_heads("model", weight=None), "without an output head they must bring a norm, and no bias"),
    (own_heads("rms", weight=None), "without an output head they must bring a norm, and no bias"),
    (own_heads(weight=np.zeros((3, 50, HIDDEN), np.float32)), "output.weight is float32"),
]


@pytest.mark.parametrize(("heads", "why"), MISFITS, ids=lambda value: value if isinstance(value, str) else "")
def test_arrays_that_do_not_fit_are_neither_written_nor_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: ExitHeads, why: str
) -> None:
    path = tmp_path / "heads"
    with pytest.raises(InputError, match=why):
        write_heads(heads, path)
    assert not path.exists()
    # A well-sealed file that another program wrote is checked just the same.
    with monkeypatch.context() as patch:
        patch.setattr("offramp.heads.file.build_heads", lambda *arguments: None)
        write_heads(heads, path)
    with pytest.raises((InputError, DamagedFileError), match=why):
        read_heads(path)


@pytest.mark.parametrize("name", ["other", "lens.other", "lens.weight.0", "correctness.weights.1", "kv_maps"])
def test_an_array_that_the_header_does_not_list_is_refused_before_any_is_read(
    path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(header: dict[str, Any], description: dict[str, Any]) -> None:
        end = max(entry["data_offsets"][1] for key, entry in description.items() if key != "__metadata__")
        description[name] = {"dtype": "U8", "shape": [16], "data_offsets": [end, end + 16]}

    rewrite(path, add)
    path.write_bytes(path.read_bytes() + bytes(16))
    monkeypatch.setattr("offramp.kit.sealed_tensors.read_arrays", None)
    with pytest.raises(DamagedFileError, match=f"the array {name} belongs to nothing in its header"):
        read_heads(path)


def test_an_exit_that_is_no_number_sizes_that_wrap_round_and_arrays_of_one_number_are_refused() -> None:
    heads = with_maps()
    header, arrays = heads.header(), heads.arrays()
    header["kv_maps"]["maps"][0]["exit"] = "abc"
    with pytest.raises(InputError, match=r"kv_maps\.maps\[1\]\.exit"):
        build_heads(header, arrays, "there")
    heads = example(documents={"w": ("a", "b", "c")}, texts=(np.zeros(2, np.uint32),) * 3)
    arrays = heads.arrays()
    arrays["texts.sizes"] = np.array([2**62, 2**63 - 1, 2**62 + 7], np.int64)
    with np.errstate(over="ignore"), pytest.raises(InputError, match="sketches"):
        build_heads(heads.header(), arrays, "there")
    with pytest.raises(InputError, match=r"correctness\.mean is one number"):
        build_heads(example().header(), {**example().arrays(), "correctness.mean": np.array(0)}, "there")


@pytest.mark.parametrize("part", ["exits", "model", "classifiers", "documents", "candidate_exit"])
def test_a_sealed_header_without_a_part_is_refused(path: Path, part: str) -> None:
    from offramp.files import SEAL
    from offramp.kit.sealed_file import VERSION
    from offramp.kit.sealed_tensors import seal_of

    def without(header: dict[str, Any], description: dict[str, Any]) -> None:
        del header[part]
        content = {key: value for key, value in header.items() if key not in (VERSION, SEAL)}
        header[SEAL] = seal_of(content, example().arrays())

    rewrite(path, without)
    with pytest.raises(DamagedFileError, match=part):
        read_heads(path)


@pytest.mark.parametrize(
    ("place", "value", "why"),
    [
        (("lens",), "no", "lens: Input should be a valid boolean"),
        (("texts",), 5, "texts: Input should be a valid boolean"),
        (("kv_maps", "maps", 0, "rank"), True, "rank: Input should be a valid integer"),
        (("kv_maps", "texts"), 1, "texts: Input should be a valid boolean"),
        (("model", "layers"), 4.0, "model.layers: Input should be a valid integer"),
        (("exits",), [2, "3"], "exits"),
        (("lens",), False, r"the array lens\.bias belongs to nothing in its header"),
    ],
)
def test_a_header_of_other_types_is_refused(place: tuple[Any, ...], value: object, why: str) -> None:
    heads = example(kv_maps=example_maps())
    header: Any = json.loads(json.dumps(heads.header()))
    *ways, last = place
    inner = header
    for way in ways:
        inner = inner[way]
    inner[last] = value
    with pytest.raises(InputError, match=why):
        build_heads(header, heads.arrays(), "there")


def test_how_well_a_part_was_fitted_is_possible() -> None:
    with pytest.raises(InputError, match=r"lens\.explained holds a share above 1"):
        build_heads(*_stated(with_lens(explained=np.array([0.5, 7.0]))), "there")
    with pytest.raises(InputError, match=r"lens\.penalty holds a number below 0"):
        build_heads(*_stated(with_lens(penalty=np.array([0.5, -1.0]))), "there")
    maps = with_maps(explained=np.full_like(example_maps().maps[1].explained, 1.5))
    with pytest.raises(InputError, match=r"kv_maps\.1\.explained holds a share above 1"):
        build_heads(*_stated(maps), "there")


def _stated(heads: ExitHeads) -> tuple[dict[str, Any], Arrays]:
    return heads.header(), heads.arrays()


@pytest.mark.parametrize("layers", [0, -1])
def test_a_classifier_without_layers_is_refused(path: Path, layers: int) -> None:
    from offramp.files import SEAL
    from offramp.kit.sealed_file import VERSION
    from offramp.kit.sealed_tensors import seal_of

    def emptied(header: dict[str, Any], description: dict[str, Any]) -> None:
        header["classifiers"]["correctness"] = layers
        content = {key: value for key, value in header.items() if key not in (VERSION, SEAL)}
        header[SEAL] = seal_of(content, example().arrays())

    rewrite(path, emptied)
    with pytest.raises(DamagedFileError, match="classifiers"):
        read_heads(path)


def test_heads_of_another_base_are_refused_by_name() -> None:
    require_base(example(), MODEL)
    for heads in (example(), maps_alone()):
        with pytest.raises(InputError, match=r"fitted on tiny \(a{12}\), not on other \(b{12}\)"):
            require_base(heads, {**MODEL, "name": "other", "fingerprint": "b" * 64})


def test_a_failed_write_leaves_nothing(tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full_disk(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("offramp.files.os.replace", full_disk)
    with pytest.raises(OfframpError, match="disk is full"):
        write_heads(example(candidate_exit=3), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


# -- K,V maps


def test_maps_do_not_change_what_exits_are_read_by() -> None:
    """A trace or a policy that uses no maps stays good with them."""
    both = example(kv_maps=example_maps())
    assert both.fingerprint != example().fingerprint
    assert both.reading_fingerprint == example().fingerprint == example().reading_fingerprint
    assert maps_alone().reading_fingerprint is None
    assert describe_heads(both)["reading"] == example().fingerprint
    assert "reading" not in describe_heads(example())


def test_the_documents_that_maps_were_fitted_on_count_as_seen() -> None:
    both = example(kv_maps=example_maps())
    assert both.seen_documents == {"w" * 64: ("d1", "d2", "d3"), "v" * 64: ("é",)}
    assert describe_heads(both)["documents"]["w" * 64] == ["d1", "d2", "d3"]
    assert maps_alone().seen_documents == {"w" * 64: ("d2", "d3")}


def test_a_lower_rank_keeps_the_first_columns() -> None:
    maps = example_maps().maps[1]
    assert maps.inward is not None
    assert maps.outward is not None
    cut = example_maps().truncated(2).maps[1]
    np.testing.assert_array_equal(cut.inward, maps.inward[:2])
    np.testing.assert_array_equal(cut.outward, maps.outward[:, :, :2])
    np.testing.assert_array_equal(cut.explained, maps.explained[:2])
    assert example_maps().truncated(2).ranks == {1: 2}
    assert example_maps().truncated(99).ranks == {1: 3}
    assert example_maps(None).ranks == {1: None}
    with pytest.raises(InputError, match="whole"):
        example_maps(None).maps[1].truncated(2)
    with pytest.raises(InputError, match="rank 0"):
        example_maps().truncated(0)


@pytest.mark.parametrize("rank", [3, None])
def test_the_size_of_maps_is_stated_rightly(rank: int | None) -> None:
    maps = example_maps(rank).maps[1]
    arrays = [array for array in (maps.bias, maps.change, maps.inward, maps.outward) if array is not None]
    assert map_elements(HIDDEN, 2, rank) == sum(array.size for array in arrays)
    assert maps.bytes == 4 * (map_elements(HIDDEN, 2, rank) + HIDDEN)


def test_numbers_that_nothing_can_be_computed_with_are_refused(path: Path) -> None:
    shape = (len(EXITS), HIDDEN, HIDDEN)
    lens = Lens(weight=np.full(shape, 1e38, np.float32), bias=np.zeros(shape[:2], np.float32))
    with pytest.raises(InputError, match=r"lens\.weight holds 1e\+38, and products with it are infinite"):
        write_heads(example(lens=lens), path)


def test_trained_exits_that_are_cut_are_to_be_trained_again(path: Path) -> None:
    folder = path.parent / "exits"
    folder.mkdir()
    (folder / "training.json").write_text("{}")
    (folder / "exits.safetensors").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedFileError, match="damaged or truncated") as refused:
        read_heads(folder)
    assert "offramp exits train --overwrite" in refused.value.fix
