"""The tables of `aiconfigurator-core`: measured kernel times of some ten GPU systems, read as machines.

Layout of the package (0.12), in `aiconfigurator_core/systems`: `SYSTEM.yaml` holds a GPU's data sheet;
`data/SYSTEM/gemm/ENGINE/VERSION/gemm_perf.parquet` the milliseconds of products of `m` rows, `n` columns and
inner size `k`, by `gemm_dtype`; `data/SYSTEM/attention/ENGINE/VERSION/generation_attention_perf.parquet`
those of the attention of one token a sequence (`batch_size`, `num_heads`, `num_key_value_heads`, `head_dim`,
`window_size`, 0 for none, and `step`, the positions before it). Only these files are read: the package itself
is not imported.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from offramp.costs.kernel_machine import DTYPE, DecodeAttention, KernelMachine, grid_of
from offramp.costs.machine import Roofline
from offramp.costs.profile_file import read_profile
from offramp.errors import InputError
from offramp.files import sha256_of_file
from offramp.kit.rules import suggest

PREFIX = "aic:"
PACKAGE = "aiconfigurator-core"
INSTALL = f"pip install 'offramp[aic]' (or, for its data alone, pip install --no-deps {PACKAGE})"
AGAIN = f"install it again: pip install --force-reinstall '{PACKAGE}>=0.12'"
GEMM, ATTENTION = "gemm/{}/gemm_perf.parquet", "attention/{}/generation_attention_perf.parquet"


@dataclass(frozen=True)
class KernelTables:
    """One version of one engine's tables on one system."""

    folder: Path
    system: str
    engine: str
    version: str

    @property
    def name(self) -> str:
        """As `--hardware` takes it."""
        return f"{PREFIX}{self.system}/{self.engine}@{self.version}"

    @property
    def paths(self) -> tuple[Path, Path]:
        """The tables of products and of attention."""
        gemm, attention = (
            self.folder / name.format(f"{self.engine}/{self.version}") for name in (GEMM, ATTENTION)
        )
        return gemm, attention

    @property
    def rows(self) -> int:
        """Measured times in both. Raises InputError where they cannot be read."""
        return sum(int(_opened(path).metadata.num_rows) for path in self.paths)

    @property
    def age(self) -> tuple[list[int], bool, list[int]]:
        """Rises with the version: 0.5.10 is newer than 0.5.9, and 1.3.0 than its candidate 1.3.0rc20."""
        release = re.match(r"[0-9.]*", self.version)
        before = "" if release is None else release.group()
        rest = self.version[len(before) :]
        numbers = [[int(number) for number in re.findall(r"[0-9]+", text)] for text in (before, rest)]
        return numbers[0], rest == "" or rest.startswith("post"), numbers[1]


def _systems_folder() -> Path | None:
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        return None
    return Path(str(package.locate_file("aiconfigurator_core/systems")))


def list_tables() -> list[KernelTables]:
    """All that can price a decoding step: tables of products and attention of one engine's one version.

    By system and engine, the newest version first; empty where the package is not installed.
    """
    systems = _systems_folder()
    paths = [] if systems is None else systems.glob("data/" + "/".join(["*", GEMM.format("*/*")]))
    found = [
        KernelTables(path.parents[3], path.parents[3].name, path.parents[1].name, path.parent.name)
        for path in paths
    ]
    whole = [tables for tables in found if all(path.is_file() for path in tables.paths)]
    newest_first = sorted(whole, key=lambda tables: tables.age, reverse=True)
    return sorted(newest_first, key=lambda tables: (tables.system, tables.engine))


def by_system() -> dict[str, list[KernelTables]]:
    """The newest tables of each engine, by system; those that are taken if no engine is named come first."""
    systems: dict[str, list[KernelTables]] = {}
    for tables in list_tables():
        systems.setdefault(tables.system, []).append(tables)
    return {system: _best_first(versions) for system, versions in systems.items()}


def _best_first(versions: Sequence[KernelTables]) -> list[KernelTables]:
    """The newest of each engine on one system, the one with most measured rows first."""
    newest = {version.engine: version for version in reversed(versions)}
    return sorted(sorted(newest.values(), key=lambda one: one.engine), key=lambda one: one.rows, reverse=True)


def find_tables(name: str) -> KernelMachine:
    """The machine of `aic:SYSTEM`, `aic:SYSTEM/ENGINE` or `aic:SYSTEM/ENGINE@VERSION`.

    Without an engine the one with most measured rows, without a version the newest; the machine's name states
    both.

    Raises InputError where the package is not installed (with the command that does it), for an unknown
    system, engine or version (with near names), and for tables that cannot be read.
    """
    parts = re.fullmatch(r"aic:(?P<system>[^/@]+)(?:/(?P<engine>[^/@]+)(?:@(?P<version>[^/@]+))?)?", name)
    if parts is None:
        raise InputError(
            f"{name!r} names no tables",
            where="hardware",
            fix=f"write {PREFIX}SYSTEM/ENGINE@VERSION, the last two if you choose them",
        )
    if _systems_folder() is None:
        raise InputError(
            f"{PACKAGE}, which holds the measured kernel times, is not installed",
            where=f"hardware {name}",
            fix=f"{INSTALL}; or choose a data sheet: offramp list hardware",
        )
    tables, among = list_tables(), ""
    for field, link in (("system", " on "), ("engine", " of "), ("version", "")):
        wanted = parts[field]
        if wanted is None:
            break
        known = list(dict.fromkeys(getattr(version, field) for version in tables))
        if wanted not in known:
            what = f"{PACKAGE} {package_version()} has no {field} {wanted!r}{among}"
            fix = suggest(wanted, known) if known else f"it holds no tables: {AGAIN}"
            raise InputError(what, where=f"hardware {name}", fix=fix)
        tables, among = (
            [version for version in tables if getattr(version, field) == wanted],
            f"{link}{wanted}",
        )
    return _machine(tables[0] if parts["engine"] else _best_first(tables)[0])


def package_version() -> str:
    """The version that is installed."""
    return importlib.metadata.version(PACKAGE)


def data_sheet(tables: KernelTables) -> tuple[float, float]:
    """Dense peak of a system's bfloat16 products in FLOP/s, and of its memory in bytes/s, by the package.

    Raises InputError if it lacks one.
    """
    import yaml

    path = tables.folder.parents[1] / f"{tables.system}.yaml"
    try:
        gpu = yaml.safe_load(path.read_text(encoding="utf-8"))["gpu"]
        return float(gpu["bfloat16_tc_flops"]), float(gpu["mem_bw"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


@cache
def _machine(tables: KernelTables) -> KernelMachine:
    gemm_path, attention_path = tables.paths
    gemm = _read(gemm_path, ("n", "k", "m"), {"gemm_dtype": DTYPE})
    shape = ("batch_size", "num_heads", "num_key_value_heads", "head_dim", "step")
    attention = _read(attention_path, shape, {"kv_cache_dtype": DTYPE, "window_size": 0})
    flops_per_second, bytes_per_second = data_sheet(tables)
    # No table says what the host takes: as the data sheets of offramp assume it.
    host = read_profile(Path(__file__).parent / "machines" / "h100.toml")
    assert isinstance(host, Roofline)
    package, device = package_version(), str(gemm["device"][0])
    return KernelMachine(
        name=tables.name,
        description=f"{device}, {tables.engine} {tables.version}",
        source=(
            f"kernel times of {PACKAGE} {package} (Apache-2.0), measured on {device} with {tables.engine} "
            f"{tables.version}; what has no table: peak rates of its {tables.system}.yaml; launches: "
            f"assumed, {1e6 * host.launch_seconds:g} us a kernel, {1e6 * host.decision_seconds:g} us to wait "
            "for an answer"
        ),
        products=grid_of((gemm[name] for name in ("n", "k", "m")), gemm["seconds"]),
        attention=DecodeAttention(
            batch=attention["batch_size"],
            heads=attention["num_heads"],
            key_value_heads=attention["num_key_value_heads"],
            head_size=attention["head_dim"],
            context=attention["step"] + 1.0,
            seconds=attention["seconds"],
        ),
        flops_per_second=flops_per_second,
        bytes_per_second=bytes_per_second,
        launch_seconds=host.launch_seconds,
        decision_seconds=host.decision_seconds,
        details={
            "package": PACKAGE,
            "package_version": package,
            "system": tables.system,
            "engine": tables.engine,
            "engine_version": tables.version,
            "dtype": DTYPE,
            "sha256": {path.name: sha256_of_file(path) for path in tables.paths},
        },
    )


def _read(path: Path, names: Sequence[str], chosen: Mapping[str, object]) -> dict[str, Any]:
    """Columns of a table as float64 [rows], "seconds" too, and "device"; rows where a column is as chosen.

    A table without a column that chooses has one value of it only. Raises InputError for one that cannot be
    read, or without such rows or times.
    """
    import pyarrow
    import pyarrow.compute as compute

    try:
        table = _opened(path).read()
        for name, value in chosen.items():
            if name in table.column_names:
                table = table.filter(compute.equal(table[name], value))
        columns: dict[str, Any] = {
            name: table[name].to_numpy().astype(np.float64) for name in (*names, "latency")
        }
        columns["device"] = table["device"].to_pylist()
    except (OSError, pyarrow.ArrowException, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error
    numbers = np.array([columns[name] for name in (*names, "latency")])
    if not numbers.size:
        raise _unreadable(path, f"no row holds {DTYPE}")
    # Attention's step is 0 before the first token; every other column is a size or a time.
    least = np.array([0.0 if name == "step" else np.nextafter(0.0, 1.0) for name in (*names, "latency")])
    if not (np.isfinite(numbers) & (numbers >= least[:, None])).all():
        raise _unreadable(path, "a size or a time is not a positive number")
    columns["seconds"] = columns.pop("latency") * 1e-3  # given in milliseconds
    return columns


def _opened(path: Path) -> Any:
    """A table as one file, where the names of its folders are no columns. Raises InputError."""
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        return parquet.ParquetFile(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: object) -> InputError:
    return InputError(
        f"a file of {PACKAGE} is not as version 0.12 has it: {error}",
        where=str(path),
        fix=AGAIN,
    )
