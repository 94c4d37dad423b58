from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quantised_cases import config_by_hand
from torch import nn

from offramp.errors import InputError
from offramp.models.process import quiet_loggers
from offramp.models.shape import DTYPES
from offramp.models.transforms import quantised_layers
from offramp.models.transforms.quantise import Int4, Int8
from offramp.models.transforms.quantised_layers import MOST_ROWS, Int8Linear, few_rows_pay
from offramp.testing.transforms import example_model


@pytest.mark.parametrize("rows", [1, 2, MOST_ROWS, MOST_ROWS + 1, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_few_rows_in_bfloat16_differ_by_rounding_only(rows: int, bias: bool) -> None:
    from torchao.quantization import quantize_

    torch.manual_seed(rows)
    own = nn.Linear(96, 64, bias=bias, dtype=torch.bfloat16).eval().requires_grad_(False)
    exact = own.weight.double()
    quantize_(own, config_by_hand(Int8()))
    other = Int8Linear.of(own)
    assert not other.training
    states = torch.randn(1, rows, 96, dtype=torch.bfloat16)
    found, expected = other(states), own(states)
    assert found.shape == expected.shape == (1, rows, 64)
    if rows > MOST_ROWS:
        assert torch.equal(found, expected)
    weight: Any = own.weight
    integers = weight.qdata.double() * weight.scale.double()
    assert (integers - exact).abs().max() <= weight.scale.max() / 2 * 1.01
    truth = states.double() @ integers.t() + (own.bias.double() if bias else 0.0)
    for product in (found, expected):
        torch.testing.assert_close(product.double(), truth, atol=2.0**-6 * float(truth.abs().max()), rtol=0)


def test_float32_products_stay_those_of_torchao() -> None:
    if few_rows_pay("float32", "cpu"):
        pytest.skip("this machine has a fast int8 kernel for float32")
    model = Int8().apply(example_model())
    assert not any(isinstance(module, Int8Linear) for module in model.hf.modules())


def test_the_kernel_for_few_rows_is_used_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    for pays in (True, False):
        monkeypatch.setattr(quantised_layers, "few_rows_pay", lambda *where, pays=pays: pays)
        model = Int8().apply(example_model("bfloat16"))
        assert sum(isinstance(module, Int8Linear) for module in model.hf.modules()) == 6 * 7 * pays
    monkeypatch.setattr(quantised_layers, "seconds_of", lambda product: 1.0)
    assert not few_rows_pay.__wrapped__("bfloat16", "cpu")  # no faster than torchao's
    monkeypatch.setattr(quantised_layers, "CLOSE", 0.0)
    monkeypatch.setattr(quantised_layers, "CLEARLY", 0.5)
    assert not few_rows_pay.__wrapped__("bfloat16", "cpu")  # too far from torchao's


def test_without_torchao_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    for act in (Int8().check, lambda: Int8().apply(example_model())):
        with pytest.raises(InputError, match="quantisation needs the package torchao") as caught:
            act()
        assert caught.value.fix == "pip install 'offramp[quantisation]'"


@pytest.fixture
def problems(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str | None]], None]:
    """Makes every layout fail in some dtypes."""

    def set_problems(by_dtype: dict[str, str | None]) -> None:
        monkeypatch.setattr(
            quantised_layers, "find_problem", lambda layout, group, dtype, device: by_dtype[dtype]
        )

    return set_problems


def test_a_dtype_without_a_kernel_is_refused_before_loading(problems: Any) -> None:
    problems({"float32": "a plain loop", "bfloat16": None})
    Int4().check()
    Int4().check("bfloat16")
    with pytest.raises(InputError, match="no kernel for int4 weights in float32") as caught:
        Int4().check("float32")
    assert caught.value.where == "int4:group=32, cpu"
    assert caught.value.fix == "load the model in bfloat16 (--dtype bfloat16)"
    assert caught.value.what.endswith("(packed for processors: a plain loop)")
    with pytest.raises(InputError, match="no kernel for int4 weights in float32"):
        Int4().apply(example_model())


def test_a_machine_without_any_kernel_is_refused(problems: Any) -> None:
    problems(dict.fromkeys(DTYPES, "nothing"))
    for dtype in (None, *DTYPES):
        with pytest.raises(InputError, match="no kernel for int4 weights"):
            Int4().check(dtype)


def test_a_device_without_a_layout_is_refused() -> None:
    with pytest.raises(InputError, match="it has no layout for this device") as caught:
        quantised_layers.find_config(4, 32, "bfloat16", "mps")
    assert caught.value.where == "mps"


def test_trials_find_slow_wrong_and_missing_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    find = quantised_layers.find_problem.__wrapped__
    layout = quantised_layers.LAYOUTS[8][0]
    seconds = iter([20.0, 1.0])
    monkeypatch.setattr(quantised_layers, "seconds_of", lambda product: next(seconds))
    assert "20 times as long" in str(find(layout, None, "float32", "cpu"))
    monkeypatch.setattr(quantised_layers, "FARTHEST", 1e-6)
    assert "products are off by 1 %" in str(find(layout, None, "float32", "cpu"))

    def missing(group: int | None) -> Any:
        raise ImportError("Requires mslk")

    assert (
        find(quantised_layers.Layout("other", ("cpu",), missing), None, "float32", "cpu")
        == "ImportError: Requires mslk"
    )


def test_loggers_are_quiet_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("torchao")
    before = logger.level
    with quiet_loggers("torchao"):
        logger.warning("no kernel for an accelerator")
        logger.error("something else")
    assert [record.message for record in caplog.records] == ["something else"]
    assert logger.level == before
