"""Machines from measured kernels: tables written here in the package's layout, and the package itself."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.costs import aiconfigurator
from offramp.costs.kernel_machine import (
    Basis,
    DecodeAttention,
    KernelGrid,
    KernelMachine,
    KernelTime,
    feed_forward_width,
    grid_of,
)
from offramp.costs.machine import Roofline, machine_fingerprint
from offramp.costs.machine_registry import describe_machines, find_machine, machine_names
from offramp.costs.probes import PROBES
from offramp.errors import InputError
from offramp.files import sha256_of_file
from offramp.models.shape import LayerShape, ModelShape
from offramp.policies.replay import replay
from offramp.policies.steps import group_into_steps
from offramp.testing import check_machine
from offramp.tuning.predict import predict
from offramp.tuning.pricing import pricing_of
from offramp.tuning.ranking import machine_answers
from policy_traces import make_trace

US = 1e-6
SIZES = (64, 128, 256, 512)
ROWS = (1, 4, 16, 64)
BATCHES, CONTEXTS = (1, 4, 16, 64), (2, 64, 1024)
LAUNCH, DECISION = 1e-6, 7e-6
SHEET = "data_dir: data/g100\ngpu:\n  mem_bw: 1000000000000 # 1 TB/s\n  bfloat16_tc_flops: 100000000000000\n"


def product_us(n: int, k: int, m: int) -> float:
    """Microseconds of the made-up products: 4 at least, no dearer with more rows up to 64."""
    return 4.0 + n * k / 4096.0


def attention_us(batch: int, heads: int, key_value_heads: int, size: int, context: int) -> float:
    return 10.0 + batch * key_value_heads * size * context / 65536.0 + heads / 1000.0


def gemm_rows() -> list[dict[str, Any]]:
    shapes = itertools.product(SIZES, SIZES, ROWS)
    rows = [
        {"gemm_dtype": "bfloat16", "n": n, "k": k, "m": m, "latency": product_us(n, k, m) / 1e3}
        for n, k, m in shapes
    ]
    other = {"gemm_dtype": "fp8", "n": 64, "k": 64, "m": 1, "latency": 0.0001}
    return [{**row, "device": "G100"} for row in [*rows, other]]


def attention_rows(windows: bool = True) -> list[dict[str, Any]]:
    heads = [(2, 1), (4, 2), (4, 1), (8, 2)]
    shapes = itertools.product(BATCHES, heads, CONTEXTS)
    rows: list[dict[str, Any]] = [
        {
            "batch_size": batch, "num_heads": h, "num_key_value_heads": kv, "head_dim": 64,
            "step": context - 1, "kv_cache_dtype": "bfloat16", "window_size": 0,
            "latency": attention_us(batch, h, kv, 64, context) / 1e3,
        }
        for batch, (h, kv), context in shapes
    ]  # fmt: skip
    rows += [
        {**rows[0], "window_size": 128, "latency": 1e-6},
        {**rows[0], "kv_cache_dtype": "fp8", "latency": 1e-6},
    ]
    if not windows:
        rows = [
            {key: value for key, value in row.items() if key != "window_size"}
            for row in rows
            if row["window_size"] == 0
        ]
    return [{**row, "device": "G100"} for row in rows]


def write_package(
    root: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]], version: str = "0.12.0"
) -> Path:
    """The package's layout under `root`; tables: rows by the path below systems/data."""
    info = root / f"aiconfigurator_core-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: aiconfigurator-core\nVersion: {version}\n")
    systems = root / "aiconfigurator_core/systems"
    for path, rows in tables.items():
        file = systems / "data" / path
        file.parent.mkdir(parents=True)
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
        (systems / f"{file.relative_to(systems / 'data').parts[0]}.yaml").write_text(SHEET)
    return systems


def paths_of(system: str, engine: str, version: str) -> tuple[str, str]:
    gemm, attention = (
        name.format(f"{engine}/{version}") for name in (aiconfigurator.GEMM, aiconfigurator.ATTENTION)
    )
    return f"{system}/{gemm}", f"{system}/{attention}"


@pytest.fixture
def systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with g100 by two engines, one in two versions, and h9 with products only."""
    tables: dict[str, Any] = {}
    for engine, version in (("fast", "0.9.0"), ("fast", "0.10.0rc2"), ("fast", "0.10.0"), ("slow", "1.0")):
        gemm, attention = paths_of("g100", engine, version)
        tables |= {
            gemm: gemm_rows() * (2 if engine == "fast" else 1),
            attention: attention_rows(engine == "fast"),
        }
    tables[paths_of("h9", "fast", "1.0")[0]] = gemm_rows()
    found = write_package(tmp_path / "site", tables)
    only_this_package(monkeypatch, tmp_path / "site")
    return found


def only_this_package(monkeypatch: pytest.MonkeyPatch, site: Path | None) -> None:
    """The package lies in a folder, or nowhere, whether or not the real one is installed."""
    folder = None if site is None else site / "aiconfigurator_core/systems"
    monkeypatch.setattr(aiconfigurator, "_systems_folder", lambda: folder)
    monkeypatch.setattr(aiconfigurator, "package_version", lambda: "0.12.0")


@pytest.fixture
def machine(systems: Path) -> KernelMachine:
    found = find_machine("aic:g100/fast")
    assert isinstance(found, KernelMachine)
    return found


def dense(
    *,
    layers: int = 4,
    hidden: int = 128,
    inner: int = 128,
    heads: int = 4,
    kv: int = 2,
    size: int = 64,
    vocabulary: int = 512,
) -> ModelShape:
    width, kept = heads * size, 2 * kv * size
    elements = 2 * hidden * width + hidden * kept + 3 * hidden * inner + 2 * hidden
    layer = LayerShape("attention", elements, elements, hidden * kept, kept, width, None, 0)
    return ModelShape((layer,) * layers, hidden, vocabulary, hidden, hidden * vocabulary, 2)


def test_a_step_is_the_sum_of_its_kernels_by_hand(machine: KernelMachine) -> None:
    shape = dense()
    costs = machine.token_costs(shape, 63.0)
    # Q,K,V: 128 to 256 + 256; attention: 4 / 2 heads over 64 positions; output: 256 to 128; gate and up: 128
    # to 2 x 128; down: 128 to 128; and five kernels without a table.
    products = [(512, 128), (128, 256), (256, 128), (128, 128)]
    layer = sum(product_us(n, k, 1) for n, k in products) + attention_us(1, 4, 2, 64, 64) + 5.0
    assert costs.layers == pytest.approx([layer * US] * 4)
    head = product_us(512, 128, 1) * US
    assert costs.head == pytest.approx(head + LAUNCH)
    # K and V: 128 to 256, a norm, and the rotation with the cache write.
    assert costs.key_value == pytest.approx([product_us(256, 128, 1) * US + 2 * LAUNCH] * 4)
    # Norm and two reductions, 8 bytes of each logit, and the wait until the host knows.
    assert costs.probes["full head"] == pytest.approx(head + 3 * LAUNCH + 8 * 512 / 1e12 + DECISION)
    assert costs.probes["network"] == pytest.approx(product_us(64, 128, 1) * US + 2 * LAUNCH + DECISION)
    assert costs.probes["cosine"] == pytest.approx(LAUNCH + DECISION, rel=1e-3)
    assert costs.overhead == pytest.approx(2 * LAUNCH + DECISION)
    with_lens = machine.token_costs(shape, 63.0, lens=True)
    lens = product_us(128, 128, 1) * US
    assert with_lens.exit_head - costs.exit_head == pytest.approx(lens)
    assert with_lens.probes["full head"] - costs.probes["full head"] == pytest.approx(lens)


def test_between_measured_shapes_by_hand() -> None:
    # Halfway between 1 and 4 in logarithms, and a power law is met exactly: 2 x 8 is 4 x 4.
    grid = KernelGrid((np.array([1.0, 4.0]), np.array([64.0, 256.0])), np.array([[2.0, 8.0], [8.0, 32.0]]))
    assert grid.at(1, 64) == KernelTime(2.0, Basis.MEASURED)
    for point, seconds in {(2, 64): 4.0, (2, 128): 8.0, (4, 128): 16.0}.items():
        found = grid.at(*point)
        assert found is not None
        assert (found.seconds, found.basis) == (pytest.approx(seconds), Basis.INTERPOLATED)
    assert grid.at(0.5, 64) is None
    assert grid.at(1, 257) is None
    holed = replace(grid, seconds=np.array([[2.0, np.nan], [8.0, 32.0]]))
    assert holed.at(2, 128) is None  # a neighbour was not measured
    assert holed.at(4, 128) is not None  # it is no neighbour of this one


def slow_lookup(measured: Mapping[tuple[int, ...], float], point: Sequence[float]) -> float | None:
    """One axis after the other, from the plain list of what was measured."""

    def after(fixed: tuple[int, ...]) -> float | None:
        if len(fixed) == len(point):
            return measured.get(fixed)
        value, known = point[len(fixed)], sorted({key[len(fixed)] for key in measured})
        below, above = [one for one in known if one <= value], [one for one in known if one >= value]
        if not below or not above:
            return None
        low, high = after((*fixed, below[-1])), after((*fixed, above[0]))
        if low is None or high is None or below[-1] == above[0]:
            return None if low is None or high is None else low
        share = math.log(value / below[-1]) / math.log(above[0] / below[-1])
        return float(low ** (1 - share) * high**share)

    return after(())


measured_tables = st.dictionaries(
    st.tuples(*[st.sampled_from((1, 2, 3, 8, 64))] * 3), st.floats(1e-6, 1e-2), min_size=1, max_size=60
)


@settings(max_examples=80, deadline=None)
@given(measured_tables, st.tuples(*[st.floats(0.5, 80.0)] * 3), st.randoms())
def test_the_lookup_is_the_plain_one_and_needs_no_order(
    measured: dict[tuple[int, ...], float], between: tuple[float, ...], random: Any
) -> None:
    def grid(rows: list[tuple[tuple[int, ...], float]]) -> KernelGrid:
        columns = np.array([key for key, _ in rows], dtype=np.float64).T
        return grid_of(columns, np.array([seconds for _, seconds in rows]))

    rows = list(measured.items())
    one = grid(rows)
    random.shuffle(rows)
    # A dearer kernel for the same shapes changes nothing.
    other = grid([*rows, *((key, 2 * seconds) for key, seconds in rows)])
    for point in (between, *measured):
        found, wanted = one.at(*point), slow_lookup(measured, point)
        assert found == other.at(*point) == one.at(*point)
        assert (found is None) == (wanted is None)
        if found is not None:
            assert found.seconds == pytest.approx(wanted)
            assert (found.basis is Basis.MEASURED) == (tuple(point) in measured)
            if found.basis is Basis.MEASURED:
                assert found.seconds == wanted


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1.0, 1.2), min_size=16, max_size=16), st.integers(1, 63))
def test_more_rows_are_no_cheaper_but_for_the_noise_of_the_tables(noise: list[float], rows: int) -> None:
    true = np.array([1.0, 1.1, 1.5, 4.0])[:, None] * np.ones(4)
    axes = np.array([float(m) for m in ROWS]), np.array([64.0, 128.0, 256.0, 512.0])
    grid = KernelGrid(axes, true * np.array(noise).reshape(4, 4))
    few, more = grid.at(rows, 200.0), grid.at(rows + 1, 200.0)
    assert few is not None
    assert more is not None
    assert more.seconds >= few.seconds / 1.2 * (1 - 1e-12)


def attention_of(*rows: tuple[int, int, int, int, int, float]) -> DecodeAttention:
    return DecodeAttention(*np.array(rows, dtype=np.float64).T)


def test_attention_by_hand() -> None:
    rows = [
        (1, 2, 1, 64, 64, 1.0), (1, 2, 1, 64, 256, 2.0), (4, 2, 1, 64, 64, 4.0), (4, 2, 1, 64, 256, 8.0),
        (1, 8, 4, 64, 64, 5.0), (1, 8, 4, 64, 256, 4.5),
    ]  # fmt: skip
    table = attention_of(*rows)
    assert table.at(1, 128, 128, 64) == KernelTime(1.0, Basis.MEASURED)
    assert table.at(2, 128, 128, 128) == KernelTime(
        pytest.approx(math.sqrt(1 * 2 * 4 * 8) ** 0.5), Basis.INTERPOLATED
    )
    # Four K,V heads of one sequence come before one of four; over more positions they are never cheaper.
    assert table.at(1, 512, 512, 64) == KernelTime(5.0, Basis.MEASURED)
    assert table.at(1, 512, 512, 256) == KernelTime(5.0, Basis.MEASURED)
    # Two heads for two of K and V: no row has them, two sequences of one K,V head read as much.
    assert table.at(1, 256, 256, 64) == KernelTime(pytest.approx(2.0), Basis.INTERPOLATED)
    # Three query heads a K,V head: the two that were measured are nearest.
    assert table.at(1, 192, 128, 64) == KernelTime(1.0, Basis.INTERPOLATED)
    assert table.at(1, 128, 128, 1) == KernelTime(1.0, Basis.MEASURED)  # the smallest context
    assert table.at(1, 128, 128, 257) is None
    assert table.at(5, 128, 128, 64) is None
    # Heads of 128, which were not measured: as many bytes in heads of 64.
    assert table.at(1, 2 * 80, 2 * 80, 64) == KernelTime(
        pytest.approx(4 ** (math.log(1.25) / math.log(4))), Basis.INTERPOLATED
    )


def test_beyond_the_tables_is_the_data_sheet_and_said(machine: KernelMachine) -> None:
    wide = machine.product(1, 300, 2048)
    assert wide == KernelTime(pytest.approx(2 * 300 * 2048 / 1e12 + LAUNCH), Basis.DATA_SHEET)
    assert machine.product(4096, 64, 64).basis is Basis.DATA_SHEET
    assert machine.product(1, 63, 64).basis is Basis.DATA_SHEET
    # More columns than any measured product run as several, whose times are measured.
    assert machine.product(1, 1024, 64) == KernelTime(
        pytest.approx(2 * product_us(512, 64, 1) * US), Basis.INTERPOLATED
    )
    shape = dense()
    notes = " ".join(machine.price_notes(shape, 5000.0, (1,)))
    assert "data sheet: attention, small kernels" in notes
    longest = machine.layer_parts(shape.layers[0], 128, 1023.0, 4)["attention"]
    beyond = machine.layer_parts(shape.layers[0], 128, 1024.0, 4)["attention"]
    assert (longest.basis, beyond.basis) == (Basis.MEASURED, Basis.DATA_SHEET)
    assert beyond.seconds == longest.seconds  # peak rates are cheaper than what was measured: no step down
    check_machine(machine, shape, batches=(1, 3, 4, 64, 100))


def test_the_inner_size_is_without_norms_and_biases() -> None:
    layer = dense(hidden=256, inner=688).layers[0]
    for more in (0, 2 * 256, 7 * 256):  # norms after attention and network too, biases
        assert (
            feed_forward_width(replace(layer, active_parameters=layer.active_parameters + more), 256) == 688
        )


def test_a_window_is_a_context_of_its_length(machine: KernelMachine) -> None:
    shape = dense()
    windowed = replace(shape, layers=tuple(replace(layer, window=64) for layer in shape.layers))
    assert machine.token_costs(windowed, 900.0).layers == pytest.approx(
        machine.token_costs(shape, 63.0).layers
    )


def test_float32_is_priced_as_bfloat16_and_said(machine: KernelMachine) -> None:
    shape = dense()
    wide = replace(shape, element_bytes=4)
    assert machine.token_costs(wide, 10.0).plain == machine.token_costs(shape, 10.0).plain
    assert "traced in float32, priced in bfloat16" in machine.price_notes(wide, 10.0, (1,))[1]
    assert len(machine.price_notes(shape, 10.0, (1,))) == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "recurrent"}, "layer 2 is of kind recurrent"),
        ({"experts": 8, "experts_per_token": 2}, "layer 2 has 8 experts"),
        ({"expansion_parameters": 10}, "layer 2 caches a latent"),
        ({"element_bytes": 1.1}, "layer 2 has quantised weights"),
        ({"key_value_width": 0}, "layer 2 keeps no K and V of its own"),
        ({"active_parameters": 100}, "layer 2 has no feed-forward network"),
    ],
)
def test_other_layers_are_refused(machine: KernelMachine, change: dict[str, Any], said: str) -> None:
    first, *rest = dense().layers
    shape = replace(dense(), layers=(first, replace(rest[0], **change), *rest[1:]))
    with pytest.raises(InputError) as error:
        machine.token_costs(shape, 10.0)
    assert said in error.value.what
    assert "--hardware h100" in error.value.fix


def test_engines_and_versions_are_chosen_and_said(systems: Path) -> None:
    assert find_machine("aic:g100").name == "aic:g100/fast@0.10.0"  # more rows; 0.10.0 after 0.9.0 and rc2
    assert find_machine("aic:g100/slow").name == "aic:g100/slow@1.0"
    assert find_machine("aic:g100/fast@0.9.0").name == "aic:g100/fast@0.9.0"
    assert find_machine("aic:g100") is find_machine("aic:g100/fast@0.10.0")  # read once


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("aic:g10", "no system 'g10'", "did you mean 'g100'? choose one of: g100"),
        ("aic:h9", "no system 'h9'", "choose one of: g100"),  # without a table of attention
        ("aic:g100/fats", "no engine 'fats' on g100", "did you mean 'fast'? choose one of: fast, slow"),
        ("aic:g100/fast@0.10", "no version '0.10' of fast", "did you mean '0.10.0'"),
        ("aic:", "names no tables", "aic:SYSTEM/ENGINE@VERSION"),
        ("aic:g100@0.9.0", "names no tables", "aic:SYSTEM/ENGINE@VERSION"),
        ("g100", "unknown hardware 'g100'", "aic:g100"),
    ],
)
def test_unknown_names(systems: Path, name: str, what: str, fix: str) -> None:
    with pytest.raises(InputError) as error:
        find_machine(name)
    assert what in error.value.what
    assert fix in error.value.fix


def test_without_the_package_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    only_this_package(monkeypatch, None)
    with pytest.raises(InputError, match="is not installed") as error:
        find_machine("aic:h100_sxm/vllm")
    assert "pip install 'offramp[aic]'" in error.value.fix
    rows = {row.name: row for row in describe_machines()}
    assert "pip install 'offramp[aic]'" in rows["aic:SYSTEM"].source
    assert not any(name.startswith("aic:") for name in machine_names())


def test_a_package_without_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_this_package(monkeypatch, tmp_path)
    with pytest.raises(InputError, match="no system 'h100_sxm'") as error:
        find_machine("aic:h100_sxm/vllm")
    assert "it holds no tables: install it again" in error.value.fix


def test_the_package_is_found_without_being_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_package(tmp_path, {})
    (tmp_path / "aiconfigurator_core").mkdir(exist_ok=True)
    (tmp_path / "aiconfigurator_core/__init__.py").write_text("raise AssertionError('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert aiconfigurator._systems_folder() == tmp_path / "aiconfigurator_core/systems"
    assert aiconfigurator.package_version() == "0.12.0"


def test_the_list_names_the_systems(systems: Path) -> None:
    row = next(row for row in describe_machines() if row.name == "aic:g100")
    assert (
        row.description == "kernels measured with fast 0.10.0; with aic:g100/ENGINE also slow 1.0 (timings)"
    )
    assert row.rates == "100 TFLOP/s bfloat16; 1,000 GB/s"
    assert "aic:g100" in machine_names()


def test_the_fingerprint_holds_version_and_tables(systems: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = find_machine("aic:g100/fast@0.9.0")
    kept = json.loads(json.dumps(machine.to_json()))
    file = systems / "data" / paths_of("g100", "fast", "0.9.0")[0]
    assert kept["details"]["package_version"] == "0.12.0"
    assert kept["details"]["sha256"]["gemm_perf.parquet"] == sha256_of_file(file)
    assert kept["kind"] == "timings"
    before = machine_fingerprint(machine)
    parquet.write_table(parquet.read_table(file).slice(1), file)
    aiconfigurator._machine.cache_clear()
    assert machine_fingerprint(find_machine("aic:g100/fast@0.9.0")) != before


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda rows: [{**rows[0], "latency": -1.0}], "not a positive number"),
        (lambda rows: [{**rows[0], "latency": math.nan}], "not a positive number"),
        (lambda rows: [{**rows[0], "gemm_dtype": "fp8"}], "no row holds bfloat16"),
        (lambda rows: [{"n": 1, "device": "G100"}], "k"),
    ],
)
def test_damaged_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[list[Any]], list[Any]], said: str
) -> None:
    gemm, attention = paths_of("g100", "fast", "1.0")
    write_package(tmp_path, {gemm: damage(gemm_rows()), attention: attention_rows()})
    only_this_package(monkeypatch, tmp_path)
    with pytest.raises(InputError, match=said) as error:
        find_machine("aic:g100")
    assert "gemm_perf.parquet" in error.value.where
    assert "pip install --force-reinstall" in error.value.fix


def trace_of(shape: ModelShape, tokens: int = 640, documents: int = 64) -> Any:
    return make_trace(seed=3, tokens=tokens, layers=len(shape.layers), documents=documents, shape=shape)


POLICY = "threshold:signal=max_prob,value=0.6,exits=all"


def test_in_a_batch_only_what_every_row_leaves_is_saved(machine: KernelMachine) -> None:
    """At 32 rows, time follows where the last row of each step leaves, not how deep rows are on average."""
    shape = dense()
    trace = trace_of(shape)
    alone = replay(trace, POLICY, machine=machine)
    together = replay(trace, POLICY, machine=machine, batch=32, seed=5)
    costs = machine.token_costs(shape, float(np.mean(trace.position)), batch=32)
    steps = group_into_steps(trace.document, 32, 5)
    checks = np.cumsum([costs.probes["full head"]] * 3)
    by_exit = costs.overhead + costs.until_exit + np.array([*checks, checks[-1] + costs.head])
    assert (np.bincount(steps) == 32).all()
    joint = [int(alone.exits[steps == step].max()) for step in np.unique(steps)]
    taken = sum(by_exit[exit - 1] for exit in joint) / len(trace.token)
    assert together.seconds_per_token == pytest.approx(taken)
    # The mean of what each row would take, had its step left with it.
    assert float(np.mean(by_exit[alone.exits - 1])) / 32 < 0.9 * taken
    # The same in the search, which takes the rows of a step to be drawn at random.
    pricing = pricing_of(trace, machine, 32)
    shares = np.bincount(alone.exits - 1, minlength=4) / len(trace.token)
    reached = np.diff(np.cumsum(shares) ** 32, prepend=0.0)
    assert pricing.mean(by_exit / 32, shares) == pytest.approx(float(reached @ by_exit) / 32)
    # Rows that left make a step no cheaper: a layer of 2 rows takes the time of one of 32.
    few, many = (machine.token_costs(shape, 10.0, batch=rows) for rows in (2, 32))
    products = machine.product(2, 512, 128), machine.product(32, 512, 128)
    assert products[0].seconds == pytest.approx(products[1].seconds)
    assert few.layers[0] > 0.9 * many.layers[0]
    rebatched = replay(trace, POLICY, machine=machine, batch=32, batching="rebatch", seed=5)
    assert rebatched.skip_ratio > together.skip_ratio


def test_what_is_predicted_says_what_it_rests_on(machine: KernelMachine, systems: Path) -> None:
    trace = trace_of(dense(hidden=96))
    for notes in (
        replay(trace, POLICY, machine="aic:g100/fast").notes,
        predict(POLICY, trace, hardware="aic:g100/fast", batch=4).notes,
        (machine_answers(trace, [machine], (1, 8))[0].source,),
    ):
        said = " ".join(notes)
        assert "interpolated: Q,K,V product" in said
        assert "data sheet: small kernels" in said
        assert "wait for a decision" in said
    assert (
        "measured: attention" in " ".join(replay(trace, POLICY, machine=machine).notes)
        or "interpolated" in said
    )


REAL = "aic:h100_sxm/vllm@0.24.0"


def real_machine() -> KernelMachine:
    try:
        found = find_machine(REAL)
    except InputError as error:
        pytest.skip(f"{REAL}: {error.what}; {error.fix}")
    assert isinstance(found, KernelMachine)
    return found


def test_the_real_tables() -> None:
    machine = real_machine()
    assert machine.product(1, 4096, 4096) == KernelTime(pytest.approx(15.0e-6, rel=0.01), Basis.MEASURED)
    assert machine.product(64, 4096, 4096) == KernelTime(pytest.approx(14.8e-6, rel=0.01), Basis.MEASURED)
    llama = dense(layers=32, hidden=4096, inner=14336, heads=32, kv=8, size=128, vocabulary=128256)
    check_machine(machine, llama, batches=(1, 3, 8, 64, 1000))
    sheet = find_machine("h100")
    assert isinstance(sheet, Roofline)
    for ours, theirs in ((machine, sheet), (find_machine("aic:a100_sxm"), find_machine("a100"))):
        assert isinstance(ours, KernelMachine)
        assert isinstance(theirs, Roofline)
        rates = theirs.bytes_per_second, theirs.flops_per_second["bfloat16"], theirs.launch_seconds
        assert (ours.bytes_per_second, ours.flops_per_second, ours.launch_seconds) == rates
        assert ours.decision_seconds == theirs.decision_seconds
    plain = [machine.token_costs(llama, 1023.0, batch=batch).plain for batch in (1, 2, 4, 8, 16, 32, 64)]
    assert all(later > 0.95 * earlier for earlier, later in itertools.pairwise(plain))
    assert plain[3] < 1.2 * plain[0]  # eight rows take hardly longer than one
    # Peak rates are never reached.
    assert 0.5 < sheet.token_costs(llama, 1023.0).plain / plain[0] < 1.0
    for tables in aiconfigurator.list_tables():
        found = aiconfigurator.find_tables(tables.name)
        costs = found.token_costs(llama, 1023.0, batch=4)
        assert 0.0 < costs.plain < 1.0
        assert set(costs.probes) == set(PROBES)
