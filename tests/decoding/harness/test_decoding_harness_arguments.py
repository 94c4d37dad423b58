"""Model arguments that do not fit are refused with what to do, before any weight is loaded."""

from __future__ import annotations

import inspect
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is not installed: pip install 'offramp[harness]'"
)

from lm_eval.api.model import LM
from lm_eval.api.registry import Registry, get_model
from lm_eval.models.huggingface import HFLM

from offramp.decoding.harness import __main__ as command
from offramp.decoding.harness.__main__ import register
from offramp.decoding.harness.model import OF_HARNESS, OfframpLM
from offramp.errors import InputError, PolicyError
from tiny_models import write_llama

PROJECT = Path(__file__).parents[3] / "pyproject.toml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_llama(tmp_path_factory.mktemp("arguments") / "tiny"))


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading weights fails the test."""

    def load(*_: Any, **__: Any) -> None:
        pytest.fail("weights were loaded")

    monkeypatch.setattr("offramp.tracing.loading.load_transformed", load)


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        ({"policy": "sattic:exit=2"}, "unknown policy 'sattic'", "did you mean 'static'"),
        ({"policy": "static:exit=9"}, "exit 9 is beyond the model, which has 4 layers", "from 1 to 4"),
        ({"policy": "threshold:signal=correctness,value=0.5,exits=1"}, "reads", "heads"),
        ({"heads": "nowhere.safetensors"}, "nowhere.safetensors", ""),
        ({"dtype": "float8"}, "unknown dtype 'float8'", "float32"),
        ({"transforms": "int9"}, "unknown transform 'int9'", "int8"),
        ({"transforms": 8}, "transforms cannot be 8", "int8"),
        ({"batch_size": 4}, "batch_size cannot be 4", "--batch_size 1"),
        ({"max_batch_size": 8}, "max_batch_size cannot be 8", "--max_batch_size 1"),
        ({"polcy": "never"}, "unknown model argument 'polcy'", "did you mean 'policy'"),
        ({"parallelize": True}, "unknown model argument 'parallelize'", "choose one of"),
        (
            {"policy": "threshold:signal=margin", "value": 0.9},
            "unknown model argument 'value'",
            "as JSON",
        ),
    ],
)
def test_what_does_not_fit_is_refused(folder: str, arguments: dict[str, Any], what: str, fix: str) -> None:
    with pytest.raises(InputError) as refused:
        OfframpLM.create_from_arg_obj({"pretrained": folder, **arguments}, {"device": "cpu"})
    assert what in str(refused.value)
    assert fix in refused.value.fix


@pytest.mark.usefixtures("no_weights")
def test_a_device_that_is_not_here_is_refused(folder: str) -> None:
    with pytest.raises(InputError, match="there is no device cuda:63 here"):
        OfframpLM(pretrained=folder, device="cuda:63")


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({}, "no model was named"),
        ({"pretrained": ""}, "no model was named"),
        ({"pretrained": "no-such-model"}, "no-such-model"),
    ],
)
def test_a_model_must_be_named(given: dict[str, str], what: str) -> None:
    with pytest.raises(InputError, match=what):
        OfframpLM(**given)


def test_a_policy_that_only_generates_is_refused_when_it_is_to_score(folder: str) -> None:
    lm = OfframpLM(pretrained=folder, policy="shortlist:policy=[static:exit=2]")
    with pytest.raises(PolicyError, match="short list"):
        lm._loglikelihood_tokens([(("a", "b"), [1, 2], [3])])


def test_a_continuation_longer_than_the_context_is_refused(folder: str) -> None:
    lm = OfframpLM(pretrained=folder, policy="static:exit=2", max_length=4)
    assert len(lm._loglikelihood_tokens([(("a", "b"), [1, 2], [3, 4, 5, 6])])) == 1
    with pytest.raises(InputError, match="a continuation of 5 tokens does not fit into 4"):
        lm._loglikelihood_tokens([(("a", "b"), [1, 2], [3, 4, 5, 6, 7])])


def test_the_arguments_of_hf_that_are_taken_are_its_own() -> None:
    assert set(OF_HARNESS) <= set(inspect.signature(HFLM.__init__).parameters)


def test_lm_eval_finds_the_model_by_name_once_it_is_registered() -> None:
    register()
    register()  # again makes no difference
    assert get_model("offramp") is OfframpLM
    assert get_model("hf").__name__ == "HFLM"  # and all others as before


def test_a_registry_of_entry_points_finds_the_model() -> None:
    declared = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["entry-points"]
    point = EntryPoint("offramp", declared["lm_eval.models"]["offramp"], "lm_eval.models")
    registry = Registry("model", base_cls=LM)
    registry.register(point.name, target=point)
    assert registry.get("offramp") is OfframpLM


def test_the_command_shows_an_error_and_exits_with_its_code(
    folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lm_eval.__main__.cli_evaluate", lambda: OfframpLM(pretrained=folder, policy="x"))
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("offramp: unknown policy 'x'")
    assert "what to do: " in shown


def test_without_lm_eval_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2
    assert "pip install 'offramp[harness]'" in capsys.readouterr().err


def test_nothing_of_lm_eval_nor_of_tasks_is_loaded_before_it_is_wanted() -> None:
    program = (
        "import sys\nimport offramp, offramp.decoding.harness.__main__\n"
        "import offramp.decoding.harness.tasks.questions\n"
        "unwanted = {'lm_eval', 'torch', 'datasets', 'reasoning_gym'}\n"
        "assert not unwanted & sys.modules.keys()\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
