"""A machine: what it must answer, and the one that is known by its data sheet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from offramp.costs import counting
from offramp.costs.probes import PROBES, ProbeSizes, lens_products
from offramp.costs.token import TokenCosts, token_costs
from offramp.errors import InputError
from offramp.files import canonical_json, sha256_of_text
from offramp.kit.numbers import LARGEST_NUMBER
from offramp.kit.typed import to_json
from offramp.models.shape import LayerShape, ModelShape
from offramp.plug_ins import asking, is_foreign, unfit


@runtime_checkable
class Machine(Protocol):
    """One hardware profile: roofline constants, or timings measured on a model."""

    @property
    def name(self) -> str:
        """As shown."""

    @property
    def source(self) -> str:
        """Where its numbers come from."""

    @property
    def kind(self) -> str:
        """Either "roofline" or "timings"."""

    def token_costs(
        self,
        shape: ModelShape,
        position: float,
        *,
        batch: int = 1,
        lens: bool = False,
        sizes: ProbeSizes | None = None,
    ) -> TokenCosts:
        """Seconds of one step that decodes a token of each of `batch` sequences at `position` (0 = first).

        Raises InputError for a batch or position that the profile cannot price, or another model than its
        own.
        """

    def to_json(self) -> dict[str, Any]:
        """The whole profile, to be kept beside every number made from it."""


def machine_fingerprint(machine: Machine) -> str:
    """SHA-256 of a machine's figures. Raises InputError as `profile_of`."""
    return sha256_of_text(canonical_json(profile_of(machine)))


FIX = "see offramp.costs.machine.Machine for the contract, and offramp.testing.check_machine"


def profile_of(machine: Machine) -> dict[str, Any]:
    """A machine's profile as JSON. Raises InputError for one of others that is none."""
    with asking(machine, f"the machine {machine.name}"):
        profile = machine.to_json()
    if is_foreign(machine):
        try:
            json.dumps(profile, allow_nan=False)
        except (TypeError, ValueError) as error:
            what = f"the profile of the machine {machine.name} is not JSON: {error}"
            raise unfit(machine, what, fix=FIX) from error
    return profile


def machine_prices(machine: Machine, shape: ModelShape, position: float, **asked: Any) -> TokenCosts:
    """What a machine asks for a step (`Machine.token_costs`, with its options).

    Raises what the machine refuses, and InputError for prices of others that cannot be charged.
    """
    with asking(machine, f"the machine {machine.name}"):
        costs = machine.token_costs(shape, position, **asked)
    fault = fault_of_prices(costs, shape, asked.get("batch", 1)) if is_foreign(machine) else None
    if fault is not None:
        raise unfit(machine, f"the machine {machine.name}: {fault}", fix=FIX)
    return costs


def fault_of_prices(costs: object, shape: ModelShape, batch: int) -> str | None:
    """Why prices of a step cannot be charged, None if they can."""
    if not isinstance(costs, TokenCosts):
        return f"its prices are of type {type(costs).__name__}, not TokenCosts"
    if (costs.unit, costs.batch) != ("seconds", batch):
        return f"its prices are in {costs.unit} at batch {costs.batch}, not in seconds at batch {batch}"
    sizes = np.shape(costs.layers), np.shape(costs.key_value)
    if sizes != ((len(shape.layers),),) * 2:
        return f"it prices arrays of {sizes}, not one price per layer"
    missing = [name for name in PROBES if name not in costs.probes]
    if missing:
        return f"it has no price for a probe of kind {missing[0]!r}"
    if not all(0 <= price <= LARGEST_NUMBER for price in listed_prices(costs)):
        return f"a price at batch {batch} is negative or not finite, or above {LARGEST_NUMBER:g}"
    return "the full model takes no time" if costs.plain <= 0 else None


def listed_prices(costs: TokenCosts) -> list[float]:
    """Every price of a step, in one order."""
    scalars = [costs.head, costs.exit_head, costs.overhead, *(costs.probes[name] for name in PROBES)]
    return [*np.asarray(costs.layers).tolist(), *np.asarray(costs.key_value).tolist(), *scalars]


KIND = "roofline"
LONGEST_WAIT = 3600.0
"""Seconds of a launch or a decision: more is a mistake."""
DTYPES = {4: "float32", 2: "bfloat16"}
"""Whose rate weights are multiplied at, by bytes of an element: float16 at that of bfloat16, on every machine
that has both."""

# Kernels that a serving engine with fused operators launches for one layer. Attention: norm, Q,K,V product,
# rotation, cache write, attention, output product, norm, up product, activation, down product.
LAYER_LAUNCHES = {"attention": 10, "recurrent": 8, "hybrid": 16, "feedforward": 5}
# Router, sorting of tokens by expert, and the weighted sum.
EXPERT_LAUNCHES = 3
# Norm, K,V product, rotation with the cache write.
KEY_VALUE_LAUNCHES = 3
# Norm and product.
HEAD_LAUNCHES = 2
# Norm, activation, gating, beside the three products of a network that exits are read through.
MLP_LAUNCHES = 3
# Subtraction of the centre, products (two in low rank), addition of the state.
MAP_LAUNCHES = 3
# Embedding, choice of the token.
STEP_LAUNCHES = 2


def launches_of_lens(hidden: int, sizes: ProbeSizes) -> int:
    """Kernels of a linear lens and the network behind it: every product, and what is between them."""
    return len(lens_products(hidden, sizes)) + (MLP_LAUNCHES if sizes.mlp_units else 0)


Rate = TypeVar("Rate")


@dataclass(frozen=True, eq=False)
class DataSheet(Generic[Rate]):
    """A machine's peak rates and fixed times."""

    name: str
    description: str
    source: str
    flops_per_second: Rate
    """Dense peak."""
    bytes_per_second: float
    """Peak of the memory."""
    launch_seconds: float
    """Of a kernel."""
    decision_seconds: float
    """Until the host knows an answer and launches on."""

    def to_json(self) -> dict[str, Any]:
        """The profile as a JSON object."""
        profile: dict[str, Any] = to_json(self)
        return profile


@dataclass(frozen=True)
class Roofline(DataSheet[Mapping[str, float]]):
    """Peak rates of a machine (Williams et al., Communications of the ACM 52(4), 2009) and its fixed costs.

    A part takes max(FLOPs / FLOP/s, bytes / (bytes/s)) + kernels x `launch_seconds`. A probe takes
    `decision_seconds` beside: the host has to wait for the answer before it knows what to run next; so does
    every step once, for its token.

    flops_per_second: by dtype, "float32" and "bfloat16".
    Raises InputError for a rate that is not positive, a negative time, or a missing dtype.
    """

    kind: str = KIND

    def __post_init__(self) -> None:
        rates = {dtype: self.flops_per_second.get(dtype, math.nan) for dtype in DTYPES.values()}
        for key, rate in {**rates, "bytes_per_second": self.bytes_per_second}.items():
            if not 1.0 <= rate <= LARGEST_NUMBER:
                raise self._refused(f"{key} is {rate}, not a rate of 1 or more")
        for key in ("launch_seconds", "decision_seconds"):
            if not 0.0 <= getattr(self, key) <= LONGEST_WAIT:
                raise self._refused(f"{key} is {getattr(self, key)}, not a time of zero to an hour")

    @property
    def rates(self) -> str:
        """Its peak rates and fixed times in one line."""
        peaks = ", ".join(f"{rate / 1e12:g} TFLOP/s {dtype}" for dtype, rate in self.flops_per_second.items())
        launch, decision = 1e6 * self.launch_seconds, 1e6 * self.decision_seconds
        moved = f"{self.bytes_per_second / 1e9:,.6g} GB/s"
        return f"{peaks}; {moved}; {launch:g} µs a launch, {decision:g} µs a decision"

    def _refused(self, what: str) -> InputError:
        return InputError(what, where=f"machine {self.name}", fix="correct the entry")

    def token_costs(
        self,
        shape: ModelShape,
        position: float,
        *,
        batch: int = 1,
        lens: bool = False,
        sizes: ProbeSizes | None = None,
    ) -> TokenCosts:
        """Seconds of one step that decodes a token of each of `batch` sequences at `position` (0 = first).

        Raises InputError for a position that is negative or not finite, a batch below 1, or weights of
        another size than any dtype's.
        """
        rate = self._flops_per_second(shape)
        flops, moved = (
            token_costs(shape, position, unit, batch=batch, lens=lens, sizes=sizes)
            for unit in ("flops", "bytes")
        )
        lens_launches = launches_of_lens(shape.hidden_size, sizes or ProbeSizes()) if lens else 0
        return TokenCosts(
            unit="seconds",
            layers=self._seconds(flops.layers, moved.layers, rate, layer_launches(shape)),
            head=self._second(flops.head, moved.head, rate, HEAD_LAUNCHES),
            exit_head=self._second(flops.exit_head, moved.exit_head, rate, HEAD_LAUNCHES + lens_launches),
            probes={
                name: self.decision_seconds
                + self._second(
                    flops.probes[name],
                    moved.probes[name],
                    rate,
                    kind.launches + (lens_launches if kind.reads_logits else 0),
                )
                for name, kind in PROBES.items()
            },
            key_value=self._seconds(flops.key_value, moved.key_value, rate, key_value_launches(shape)),
            overhead=STEP_LAUNCHES * self.launch_seconds + self.decision_seconds,
            batch=batch,
            decision=self.decision_seconds,
            maps={
                exit: self._second(
                    flops.maps[exit], moved.maps[exit], rate, MAP_LAUNCHES + int(rank is not None)
                )
                for exit, rank in (sizes.kv_maps if sizes else ())
            },
        )

    def _flops_per_second(self, shape: ModelShape) -> float:
        if shape.element_bytes not in DTYPES:
            raise InputError(
                f"no FLOP/s for weights of {shape.element_bytes} bytes an element",
                where=f"machine {self.name}",
                fix="trace in float32, bfloat16 or float16",
            )
        return self.flops_per_second[DTYPES[shape.element_bytes]]

    def _seconds(
        self,
        flops: NDArray[np.float64],
        moved: NDArray[np.float64],
        flops_per_second: float,
        launches: NDArray[np.float64],
    ) -> NDArray[np.float64]:
        busy = np.maximum(flops / flops_per_second, moved / self.bytes_per_second)
        return np.asarray(busy + launches * self.launch_seconds)

    def _second(self, flops: float, moved: float, flops_per_second: float, launches: int) -> float:
        busy = max(flops / flops_per_second, moved / self.bytes_per_second)
        return busy + launches * self.launch_seconds


def layer_launches(shape: ModelShape) -> NDArray[np.float64]:
    """Kernels launched for each layer: float64 [layers]."""
    return np.array([_launches(layer) for layer in shape.layers], dtype=np.float64)


def key_value_launches(shape: ModelShape) -> NDArray[np.float64]:
    """Kernels launched to leave behind what later tokens need of each skipped layer: float64 [layers].

    A recurrent layer is run whole (see `offramp.costs.counting.key_value_flops`).
    """
    repairs = [KEY_VALUE_LAUNCHES if layer.key_value_width else 0 for layer in shape.layers]
    return np.where(counting.is_recurrent(shape), layer_launches(shape), np.array(repairs, dtype=np.float64))


def _launches(layer: LayerShape) -> int:
    return LAYER_LAUNCHES[layer.kind] + (EXPERT_LAUNCHES if layer.experts else 0)
