"""Suggested commands are whole and quoted; the commands themselves are run in tests/cli."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.commands import IN_MEMORY, command_for, command_line, filled, no_option, number_text


def test_a_command_line_is_read_back_by_a_shell_as_it_was_meant() -> None:
    policy = "threshold:signal=correctness,value=0.9,exits=[2, 4]"
    line = command_line(
        "bench", Path("my models/a"), transforms=["int8"], policy=policy, kv=None, batch=[1, 4],
        no_peers=True, floor=0.95, workload="txt:/tmp/it's.txt",
    )  # fmt: skip
    expected = ["offramp", "bench", "my models/a", "--transform", "int8", "--policy", policy]
    expected += ["--batch", "1", "--batch", "4", "--no-peers", "--floor", "0.95"]
    assert shlex.split(line) == [*expected, "--workload", "txt:/tmp/it's.txt"]


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"name": "smollm2", "source": "PyPI package x==1, a.gguf", "dtype": "float32"}, "smollm2"),
        (
            {"name": "o/n@step-100 + int8", "source": "o/n@step-100", "transforms": ["int8"]},
            "o/n@step-100 --transform int8",
        ),
        ({"name": "mine", "source": "HERE", "dtype": "bfloat16"}, "HERE --dtype bfloat16"),
        ({"name": "mine", "source": "/gone/mine"}, "mine"),
    ],
)
def test_a_command_names_a_model_as_it_is_loaded(model: dict[str, str], named: str, tmp_path: Path) -> None:
    here = {key: str(tmp_path) if value == "HERE" else value for key, value in model.items()}
    expected = f"offramp generate {named.replace('HERE', str(tmp_path))} --policy p.json --prompt TEXT"
    assert command_for("generate", here, policy="p.json", prompt="TEXT") == expected


def test_advice_is_filled_with_what_the_command_was_given() -> None:
    advice = "fit some: offramp heads fit MODEL --workload W --kv-maps 2,3 -o FILE; see MODELS"
    given = {"model": "my models/a", "transform": ["int8"], "workload": ["code", "prose"]}
    line = "offramp heads fit 'my models/a' --transform int8 --workload code --kv-maps 2,3"
    assert filled(advice, given) == f"fit some: {line} -o heads.safetensors; see MODELS"
    assert filled(advice, {}) == filled(advice, {"model": "none"}) == advice


@pytest.mark.parametrize(
    ("command", "options", "call"),
    [
        ("generate", {"prompt": "TEXT", "policy": Path("p.json"), "kv": None},
         "offramp.generate(model, 'TEXT', policy='p.json')"),
        ("bench", {"policy": "never", "workload": "prose"},
         "offramp.bench(model, 'never', prompts=[model.encode('TEXT')])"),
        ("hardware measure", {"device": None}, "offramp.measure_hardware(model)"),
        ("heads fit", {"workload": "prose", "output": "h"}, "offramp.fit_heads(model, 'prose')"),
    ],
)  # fmt: skip
def test_of_a_model_object_the_call_in_python_is_named(
    command: str, options: dict[str, object], call: str
) -> None:
    assert command_for(command, {"name": "mine", "source": IN_MEMORY}, **options) == call


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_on_a_command_line_is_the_same_one(number: float) -> None:
    assert float(number_text(number)) == number


def test_a_model_whose_name_looks_like_an_option_is_none() -> None:
    assert command_line("run", no_option("-dash"), floor=[0.9, 0.9000001]) == (
        "offramp run ./-dash --floor 0.9 --floor 0.9000001"
    )
