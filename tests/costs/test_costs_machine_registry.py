"""Finding machines by name or file, profiles from TOML with everything that can be wrong in them."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.costs import machine_registry
from offramp.costs.machine import Roofline
from offramp.costs.machine_registry import (
    OWN_LOOP,
    RECIPE,
    STEPS,
    describe_machines,
    find_machine,
    kept_notes,
    list_local_profiles,
    load_local_profile,
    machine_facts,
    machine_names,
    save_local_profile,
)
from offramp.costs.probes import PROBES
from offramp.costs.profile_file import UNITS, read_profile, required_keys
from offramp.costs.timings import OTHER_LOAD, TimingsProfile
from offramp.errors import BusyMachineError, DamagedFileError, InputError
from offramp.testing.contracts import example_shape

ROOFLINE = """
kind = "roofline"
name = "card"
description = "a card"
source = "its data sheet"
bytes_per_second = 1e12
launch_seconds = 2e-6
decision_seconds = 0
[flops_per_second]
float32 = 80e12
bfloat16 = 160e12
"""
TIMINGS = """
kind = "timings"
name = "engine"
source = "profiled"
dtype = "bfloat16"
unit = "milliseconds"
layers = 4
[[batch]]
size = 8
layer = 0.5
head = 3
token = 6.5
key_value = 0.1
lens = 0.05
probes = { "full head" = 3.5, cosine = 0.01 }
[[batch]]
size = 1
layer = [0.1, 0.2, 0.3, 0.4]
head = 2
token = 3.25
key_value = 0.05
lens = 0.05
probes = { "full head" = 2.5, cosine = 0.01 }
"""
SHAPE = example_shape(4)


def written(folder: Path, text: str) -> Path:
    path = folder / "machine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_roofline_file_is_read(tmp_path: Path) -> None:
    machine = find_machine(str(written(tmp_path, ROOFLINE)))
    expected = Roofline(
        "card", "a card", "its data sheet", {"float32": 80e12, "bfloat16": 160e12}, 1e12, 2e-6, 0.0
    )
    assert machine == expected


def test_a_timings_file_is_read_in_milliseconds(tmp_path: Path) -> None:
    machine = find_machine(str(written(tmp_path, TIMINGS)))
    one, eight = (machine.token_costs(SHAPE, 100, batch=batch) for batch in (1, 8))
    np.testing.assert_allclose(one.layers, [0.1e-3, 0.2e-3, 0.3e-3, 0.4e-3])
    np.testing.assert_allclose(eight.layers, 0.5e-3)
    np.testing.assert_allclose(one.key_value, 0.05e-3)
    assert (one.head, eight.head) == pytest.approx((2e-3, 3e-3))
    # What is left of the whole step beside its layers and head.
    assert (one.overhead, eight.overhead) == pytest.approx((0.25e-3, 1.5e-3))
    assert one.plain == pytest.approx(3.25e-3)
    assert one.probes["full head"] == pytest.approx(2.5e-3)
    assert one.probes["cosine"] == pytest.approx(0.01e-3)
    assert (machine.name, machine.source, machine.kind) == ("engine", "profiled", "timings")


def test_timings_without_the_optional_entries(tmp_path: Path) -> None:
    text = TIMINGS.split("[[batch]]")[0] + "[[batch]]\nsize = 1\nlayer = 0.5\nhead = 3\n"
    costs = read_profile(written(tmp_path, text)).token_costs(SHAPE, 10)
    assert costs.overhead == 0.0
    assert 0 < costs.key_value[0] < costs.layers[0]
    assert 0 < costs.probes["cosine"] < costs.probes["restricted head"]


@pytest.mark.parametrize(
    ("text", "old", "new", "what"),
    [
        (ROOFLINE, "bytes_per_second = 1e12\n", "", "'bytes_per_second' is missing"),
        (ROOFLINE, "= 1e12", "= 0", "bytes_per_second is 0"),
        (ROOFLINE, "decision_seconds = 0", "decision_seconds = -1e-6", "decision_seconds is -1e-06"),
        (ROOFLINE, "bfloat16 = 160e12", "bfloat16 = 1\nint8 = 1", "unknown key 'int8'"),
        (ROOFLINE, '"roofline"', '"rooflin"', "kind is 'rooflin'"),
        (TIMINGS, "layers = 4", "layers = 5", "layer holds 4 times"),
        (TIMINGS, "head = 2", "head = 0", "head is 0"),
        (TIMINGS, "0.2, 0.3", "nan, 0.3", "an entry of layer is nan"),
        (TIMINGS, "size = 8", "size = 1", "the size 1 twice"),
        (TIMINGS, "token = 3.25\n", "", "'token' is missing"),
        (TIMINGS, "token = 3.25", "token = 2.9", "token is less than the layers and the head"),
        (TIMINGS, "token = ", "overhead = 0.1\ntoken = ", "token stands beside overhead"),
        (TIMINGS, "key_value = 0.05\n", "", "'key_value' is missing"),
        (TIMINGS, "2.5, cosine = 0.01", "2.5", "'cosine' is missing"),
        (TIMINGS, "2.5, cosine", "2.5, cosin", "unknown key 'cosin'"),
        (TIMINGS, "[[batch]]", "[[batches]]", "no entry 'batches'"),
        (TIMINGS, '"milliseconds"', '"ms"', "unit is 'ms'"),
        (TIMINGS, "layers = 4", "layers = 1000000000000", "layers is 1000000000000"),
        (ROOFLINE, "= 1e12", f"= 1{400 * '0'}", "bytes_per_second is 10000"),
    ],
)
def test_a_wrong_entry_is_refused_with_file_and_key(
    tmp_path: Path, text: str, old: str, new: str, what: str
) -> None:
    assert old in text
    path = written(tmp_path, text.replace(old, new))
    with pytest.raises(InputError, match=what) as error:
        find_machine(str(path))
    assert error.value.where.startswith(str(path))
    assert error.value.fix


@pytest.mark.parametrize(("unit", "seconds"), [("seconds", 1.0), ("microseconds", 1e-6)])
def test_times_are_read_in_the_unit_that_the_file_names(tmp_path: Path, unit: str, seconds: float) -> None:
    machine = read_profile(written(tmp_path, TIMINGS.replace('"milliseconds"', f'"{unit}"')))
    costs = machine.token_costs(SHAPE, 100)
    assert costs.plain == pytest.approx(3.25 * seconds)
    assert costs.probes["full head"] == pytest.approx(2.5 * seconds)


@pytest.mark.parametrize(
    ("text", "old", "place", "fix"),
    [
        (ROOFLINE, "bfloat16 = 160e12", "line 9, flops_per_second.bfloat16", "needed are: float32, bfloat16"),
        (ROOFLINE, "launch_seconds = 2e-6", "line 1, launch_seconds", "needed are: kind, name, description"),
        (TIMINGS, "head = 2", "line 16, batch[2].head", "needed are: size, layer, head"),
    ],
)
def test_the_place_of_a_missing_entry_is_named(
    tmp_path: Path, text: str, old: str, place: str, fix: str
) -> None:
    path = written(tmp_path, text.replace(old, ""))
    with pytest.raises(InputError) as error:
        read_profile(path)
    assert error.value.where == f"{path}, {place}"
    assert fix in error.value.fix


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        find_machine(str(tmp_path / "absent.toml"))
    path = tmp_path / "machine.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not UTF-8"):
        find_machine(str(path))


def test_an_unknown_name_is_refused_with_near_matches() -> None:
    with pytest.raises(InputError, match=r"unknown hardware 'H10O'(.|\n)*did you mean 'h100'") as caught:
        find_machine("H10O")
    assert caught.value.where == "hardware H10O"
    assert machine_names()[-1] == "local"


def test_local_needs_a_model_and_its_timings() -> None:
    with pytest.raises(InputError, match="belongs to a model"):
        find_machine("local")
    with pytest.raises(InputError, match="no timings of this model") as caught:
        find_machine("local", model_fingerprint="0" * 64, dtype="bfloat16")
    assert "offramp hardware measure MODEL --dtype bfloat16" in caught.value.fix


def test_plug_ins_are_found_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    card = Roofline("card", "a card", "made", {"float32": 1.0, "bfloat16": 1.0}, 1.0, 0.0, 0.0)
    loaded: dict[str, Any] = {"card": card, "text": "no machine", "kind": Roofline}

    class Point:
        def __init__(self, name: str) -> None:
            self.name, self.value, self.group = name, f"package:{name}", machine_registry.ENTRY_POINTS

        def load(self) -> Any:
            return loaded[self.name]

    points = {name: Point(name) for name in loaded}
    points["broken"] = EntryPoint("broken", "no_such_package:machine", machine_registry.ENTRY_POINTS)  # type: ignore[assignment]
    monkeypatch.setattr("offramp.plug_ins.entry_points", lambda group: list(points.values()))
    assert find_machine("card") is card
    assert "card" in machine_names()
    for name, what in {
        "text": "is of type str, not a machine",
        "kind": "not a machine",
        "broken": "cannot be loaded",
    }.items():
        with pytest.raises(InputError, match=what):
            find_machine(name)


def test_the_list_tells_what_and_where_from() -> None:
    rows = describe_machines()
    # Without their package, one line says how measured kernels are had.
    assert [row.name for row in rows if row.name != "aic:SYSTEM"] == machine_names()
    assert all(row.description and row.source for row in rows)


FINGERPRINT = "ab" * 32


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path))
    return tmp_path


def profile(
    *,
    fingerprint: str = FINGERPRINT,
    threads: int = 2,
    head: float = 1.0,
    at: str = "2026-01-01",
    other_load: float = 0.0,
    **machine: Any,
) -> TimingsProfile:
    return TimingsProfile(
        name="local",
        source="a test",
        dtype="float32",
        layers_count=1,
        batches=(1,),
        layer_seconds=[[1.0]],
        layer_seconds_per_position=[[0.0]],
        head_seconds=[head],
        probe_seconds={},
        lens_seconds=None,
        key_value_seconds=None,
        overhead_seconds=[0.0],
        details={
            "model": {"name": "m", "fingerprint": fingerprint},
            "machine": machine_facts(threads) | machine,
            "measured_at": at,
            STEPS: OWN_LOOP,
            OTHER_LOAD: other_load,
        },
    )


def test_what_is_saved_is_loaded() -> None:
    path = save_local_profile(profile())
    assert path.name.startswith(f"{FINGERPRINT[:16]}-float32-")
    assert load_local_profile(FINGERPRINT, "float32", threads=2).to_json() == profile().to_json()
    assert [found.to_json() for found in list_local_profiles()] == [profile().to_json()]


@pytest.mark.parametrize("older", [{}, {OTHER_LOAD: 0.0, STEPS: "decoding loop"}])
def test_a_profile_of_an_older_version_notes_no_load_or_another_loop_and_is_not_used(
    older: dict[str, Any],
) -> None:
    now = profile()
    details = {name: value for name, value in now.details.items() if name not in (OTHER_LOAD, STEPS)}
    save_local_profile(dataclasses.replace(now, details=details | older))
    with pytest.raises(InputError, match="of an older offramp"):
        load_local_profile(FINGERPRINT, "float32", threads=2)
    assert len(list_local_profiles()) == 1


CORES = machine_facts(2)["cores"]
ONE_LAYER = dataclasses.replace(example_shape(1), element_bytes=4)


@pytest.mark.parametrize(
    ("threads", "load", "kept"),
    [
        (CORES, 0.2, True),
        (CORES, 0.4, False),
        (CORES, 3.9, False),
        # One processor is left to others.
        (CORES - 1, 1.2, True),
        (CORES - 1, 1.4, False),
        # More threads than processors leave none, and no less than none.
        (CORES + 4, 0.2, True),
        (CORES + 4, 0.4, False),
    ],
)
def test_a_profile_timed_under_load_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, threads: int, load: float, kept: bool
) -> None:
    monkeypatch.setattr("offramp.costs.timings.TOLERABLE_LOAD", 0.3)
    save_local_profile(profile(threads=threads, head=5.0))
    made = profile(threads=threads, head=9.0, other_load=load)
    busy = pytest.raises(BusyMachineError, match=f"other work kept {load:.1f} of {CORES} processors busy")
    with contextlib.nullcontext() if kept else busy:
        save_local_profile(made)
    with contextlib.nullcontext() if kept else busy:  # nor is anything priced with it
        made.token_costs(ONE_LAYER, 0)
    found = load_local_profile(FINGERPRINT, "float32", threads=threads)
    assert found.head_seconds == [9.0 if kept else 5.0]  # it takes no other's place


def test_a_kept_profile_that_was_timed_under_load_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a version, or a limit, that still kept it."""
    save_local_profile(profile(other_load=3.9 + CORES))
    monkeypatch.setattr("offramp.costs.timings.TOLERABLE_LOAD", 0.3)
    with pytest.raises(InputError, match="or were timed under load"):
        load_local_profile(FINGERPRINT, "float32", threads=2)
    assert len(list_local_profiles()) == 1


@pytest.mark.parametrize(("hours", "said"), [(0.5, "under 2 hours"), (5.0, "5 hours"), (72.0, "3 days")])
def test_facts_of_kept_timings(hours: float, said: str) -> None:
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    (note,) = kept_notes(profile(at=then.isoformat(timespec="milliseconds"), other_load=0.12))
    assert f"{said} old" in note
    assert "2 threads" in note
    assert "0.1 processors busy" in note


def test_other_machines_have_no_such_facts() -> None:
    assert kept_notes(None) == ()
    assert kept_notes(dataclasses.replace(profile(), details={})) == ()


def test_measuring_again_takes_the_older_ones_place() -> None:
    assert save_local_profile(profile()) == save_local_profile(profile(head=5.0))
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [5.0]
    assert len(list_local_profiles()) == 1


def test_a_study_s_profile_is_asked_for_by_its_recipe_and_replaces_no_other() -> None:
    recipe = {"code": "c", "versions": {"numpy": "2"}, "seconds": 12.0, "texts": ("a",)}
    by_hand = profile()

    def of_study(head: float, **changes: Any) -> TimingsProfile:
        made = profile(head=head, at="2026-01-02")
        return dataclasses.replace(made, details={**made.details, RECIPE: {**recipe, **changes}})

    save_local_profile(of_study(2.0))
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [2.0]  # the only one
    save_local_profile(by_hand)
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [1.0]
    assert load_local_profile(FINGERPRINT, "float32", threads=2, recipe=recipe).head_seconds == [2.0]
    save_local_profile(of_study(3.0, code="newer"))
    assert len(list_local_profiles()) == 2
    with pytest.raises(InputError, match="no timings of this model"):
        load_local_profile(FINGERPRINT, "float32", threads=2, recipe=recipe)


def test_each_thread_count_has_its_own_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    save_local_profile(profile(threads=1, head=9.0, at="2026-01-02"))
    save_local_profile(profile(threads=2))
    assert load_local_profile(FINGERPRINT, "float32", threads=1).head_seconds == [9.0]
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [1.0]
    for in_use, stated, head in ((1, "", 9.0), (2, "", 1.0), (2, "1", 9.0), (2, "many", 1.0), (8, "", 9.0)):
        monkeypatch.setattr("torch.get_num_threads", lambda in_use=in_use: in_use)
        monkeypatch.setenv("OMP_NUM_THREADS", stated)
        # Those in use, no more than are allowed, else the last ones measured.
        assert load_local_profile(FINGERPRINT, "float32").head_seconds == [head]


def test_each_device_has_its_own_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_registry, "find_device", lambda device: f"{device}:0")
    monkeypatch.setattr(
        machine_registry, "device_name", lambda device: {"cuda:0": "card", "xpu:0": "other"}[device]
    )
    save_local_profile(profile())
    save_local_profile(profile(head=5.0, **machine_facts(2, "cuda")))
    assert load_local_profile(FINGERPRINT, "float32", threads=2).head_seconds == [1.0]
    assert load_local_profile(FINGERPRINT, "float32", threads=2, device="cuda").head_seconds == [5.0]
    with pytest.raises(InputError, match=r"those kept are of .*card with 2 threads") as caught:
        load_local_profile(FINGERPRINT, "float32", threads=2, device="xpu")
    assert "--device xpu" in caught.value.fix


def test_each_attention_that_was_asked_for_has_its_own_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def timed(head: float, attention: str) -> TimingsProfile:
        made = profile(head=head, at="2026-01-02")
        described = {**made.details["model"], "attention": attention}
        return dataclasses.replace(made, details={**made.details, "model": described})

    plain = save_local_profile(profile())
    assert save_local_profile(timed(5.0, "eager")) != plain
    with pytest.raises(InputError, match="there are no timings of this model") as caught:
        load_local_profile(FINGERPRINT, "float32", threads=2, attention="sdpa")
    assert "threads and torch" in caught.value.what
    assert "with eager attention" in caught.value.what
    assert "'sdpa' attention" in caught.value.fix
    save_local_profile(timed(7.0, "sdpa"))
    for attention, head in ((None, 1.0), ("eager", 5.0), ("sdpa", 7.0)):
        found = find_machine("local", model_fingerprint=FINGERPRINT, dtype="float32", attention=attention)
        assert isinstance(found, TimingsProfile)
        assert found.head_seconds == [head]


@pytest.mark.parametrize(
    "machine", [{"torch": "1.0"}, {"processor": "another"}, {"cores": 999}, {"threads": 3}]
)
def test_a_profile_of_another_machine_is_not_used(machine: dict[str, Any]) -> None:
    save_local_profile(profile(**machine))
    with pytest.raises(InputError, match="as it is now; those kept are of"):
        load_local_profile(FINGERPRINT, "float32", threads=2)


def test_a_profile_of_another_model_or_dtype_is_not_used() -> None:
    save_local_profile(profile())
    begins_alike = FINGERPRINT[:16] + "0" * 48
    for fingerprint, dtype in ((begins_alike, "float32"), ("cd" * 32, "float32"), (FINGERPRINT, "bfloat16")):
        with pytest.raises(InputError, match="no timings"):
            load_local_profile(fingerprint, dtype, threads=2)


@pytest.mark.parametrize("edit", ["value", "space", "no seal", "cut short", "not text"])
def test_a_changed_file_is_refused(edit: str) -> None:
    path = save_local_profile(profile())
    text = path.read_text()
    value = json.loads(text)
    if edit == "value":
        value["head_seconds"] = [0.001]
        path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    elif edit == "no seal":
        del value["sha256"]
        path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    elif edit == "not text":
        path.write_bytes(b"\xff" + text.encode())
    else:
        path.write_text(text.replace("[", "[ ", 1) if edit == "space" else text[:-9])
    for load in (lambda: load_local_profile(FINGERPRINT, "float32", threads=2), list_local_profiles):
        with pytest.raises(DamagedFileError, match="are damaged") as caught:
            load()
        assert caught.value.where == str(path)


def test_nothing_half_written_is_left(cache: Path) -> None:
    broken = dataclasses.replace(profile(), details={**profile().details, "load": object()})  # no JSON value
    with pytest.raises(TypeError):
        save_local_profile(broken)
    assert [path for path in cache.rglob("*") if path.is_file()] == []


def test_the_store_needs_no_torch() -> None:
    program = "import sys, offramp.costs.machine_registry as s; s.list_local_profiles(); s.machine_facts(1); "
    program += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


PAGE = (Path(__file__).parents[2] / "docs" / "hardware.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```toml\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


def test_the_examples_price_a_step(tmp_path: Path) -> None:
    roofline, timings = EXAMPLES
    (tmp_path / "card.toml").write_text(roofline, encoding="utf-8")
    (tmp_path / "engine.toml").write_text(timings, encoding="utf-8")
    shape = example_shape(30)
    card, engine = (read_profile(tmp_path / f"{name}.toml") for name in ("card", "engine"))
    assert (card.name, engine.name) == ("lab-card", "our engine")
    costs = engine.token_costs(shape, 1000)
    assert costs.plain == pytest.approx(11.5e-3)
    assert costs.probes["restricted head"] == pytest.approx(0.2e-3)
    assert engine.token_costs(shape, 1000, batch=8).plain == pytest.approx(13.4e-3)
    assert card.token_costs(shape, 1000).probes["cosine"] > 17e-6


def test_every_key_unit_and_probe_is_named() -> None:
    words = set(re.findall(r"`\"?([\w ]+)\"?`", PAGE))
    assert required_keys() - {"batch", "flops_per_second"} <= words
    assert "[flops_per_second]" in PAGE
    assert {*UNITS, *PROBES, "token", "overhead", "key_value", "lens", "probes"} <= words


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b"])
def test_what_no_file_can_be_called_is_no_machine(name: str) -> None:
    with pytest.raises(InputError, match="hardware"):
        find_machine(name)
