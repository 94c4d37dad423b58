"""The contract of a machine, for authors of plug-ins to run on theirs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from offramp.costs.machine import Machine, fault_of_prices, listed_prices
from offramp.costs.probes import ProbeSizes
from offramp.costs.token import TokenCosts
from offramp.errors import InputError
from offramp.kit.arguments import checked
from offramp.models.shape import LayerShape, ModelShape

FAR, NEAR = 500.0, 3.0


def example_shape(layers: int = 4) -> ModelShape:
    """A small dense model in bfloat16, to price where no other is at hand."""
    layer = LayerShape("attention", 100_000, 100_000, 8_000, 128, 256, None, 0)
    return ModelShape((layer,) * layers, 256, 1000, 256, 256_000, 2)


@checked
def check_machine(
    machine: Machine, shape: ModelShape | None = None, *, batches: Sequence[int] = (1, 4)
) -> Machine:
    """Hold a machine against what charging relies on; returns the machine.

    Name, source and kind are set; the profile is JSON; at every batch size of `batches` there are finite
    prices in seconds, none negative, one per layer and kind of probe, and the plain step takes time; a linear
    lens makes nothing cheaper, and neither does a later position; no batch below 1 and no position below 0
    has a price.

    shape: of a model that the machine can price, by default a small dense one. Raises InputError naming the
    first rule that is broken.
    """
    shape = example_shape() if shape is None else shape
    for field in ("name", "source", "kind"):
        if not str(getattr(machine, field, "")).strip():
            raise _broken(machine, f"its {field} is not set", f"give the machine a {field}")
    try:
        json.dumps(machine.to_json(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _broken(
            machine, f"its profile is not JSON: {error}", "let to_json give plain values"
        ) from error
    for batch in batches:
        near = machine.token_costs(shape, NEAR, batch=batch)
        _check_prices(machine, near, shape, batch)
        for what, other in {
            "a linear lens": machine.token_costs(shape, NEAR, batch=batch, lens=True),
            "a network behind it": machine.token_costs(
                shape, NEAR, batch=batch, lens=True, sizes=ProbeSizes(mlp_units=64)
            ),
            "a lens of low rank": machine.token_costs(
                shape, NEAR, batch=batch, lens=True, sizes=ProbeSizes(lens_rank=4)
            ),
            "a later position": machine.token_costs(shape, FAR, batch=batch),
        }.items():
            _check_prices(machine, other, shape, batch)
            if not all(
                after >= before
                for after, before in zip(listed_prices(other), listed_prices(near), strict=True)
            ):
                raise _broken(machine, f"{what} makes a part cheaper", "add its cost, never take away")
    _check_refused(machine, "a batch of 0", lambda: machine.token_costs(shape, NEAR, batch=0))
    _check_refused(machine, "position -1", lambda: machine.token_costs(shape, -1.0))
    return machine


def _check_prices(machine: Machine, costs: TokenCosts, shape: ModelShape, batch: int) -> None:
    fault = fault_of_prices(costs, shape, batch)
    if fault is not None:
        raise _broken(machine, fault, "see offramp.costs.machine.Machine for the contract")


def _check_refused(machine: Machine, what: str, ask: Callable[[], TokenCosts]) -> None:
    try:
        ask()
    except InputError:
        return
    raise _broken(machine, f"it prices {what}", "raise InputError")


def _broken(machine: Machine, what: str, fix: str) -> InputError:
    return InputError(what, where=f"machine {getattr(machine, 'name', type(machine).__name__)}", fix=fix)
