"""What a policy costs: layers run, K,V left for the skipped ones, every probe, and one head product.

A full-head probe that lets a token leave is its head product, and so is one of the short list where outputs
are read off that; a token that leaves by another probe, or unprobed, pays its exit's head beside, and one
that reaches exit L pays all the probes that did not fire and the final head. Each probe and head is charged
as if it stood alone: where two of them at one exit could share the final norm or the lens, both pay for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from offramp.costs.counting import is_recurrent
from offramp.costs.kernel_machine import KernelMachine
from offramp.costs.machine import Machine, machine_prices
from offramp.costs.machine_registry import find_machine, kept_notes
from offramp.costs.probes import (
    FULL_HEAD,
    NOTHING_FITTED,
    RESTRICTED_HEAD,
    FittedSizes,
    MapRanks,
    ProbeSizes,
    fitted_of,
)
from offramp.costs.timings import LENS, TimingsProfile
from offramp.costs.token import TokenCosts, add_costs, token_costs
from offramp.errors import InputError
from offramp.heads.described import unusual_length
from offramp.heads.exit_heads import ExitHeads
from offramp.models.devices import CPU
from offramp.models.identity import ATTENTION
from offramp.models.shape import ModelShape
from offramp.policies.cost_breakdown import CostBreakdown, PriceAt
from offramp.policies.decisions import Decisions
from offramp.policies.signals import probes_of
from offramp.tracing.trace import Trace

Needs = Mapping[int, tuple[str, ...]]


def check_price(costs: TokenCosts, facts: tuple[str, ...]) -> float:
    """Price of reading some facts at one exit: each kind of probe once."""
    return sum(costs.probes[kind] for kind in probes_of(facts))


def gives_output(facts: tuple[str, ...], *, short_list: bool) -> bool:
    """Whether reading these facts makes the exit's output too. short_list: whether that is of the list."""
    return (RESTRICTED_HEAD if short_list else FULL_HEAD) in probes_of(facts)


def exit_costs(costs: TokenCosts, needs: Needs) -> NDArray[np.float64]:
    """Cost of one token that leaves at exit l = 1..L, in the unit of `costs`: float64 [layers].

    needs: the facts read at each checked exit below L, ascending (see `ExitPolicy.needs`); a token is probed
    at every one up to its own exit.
    """
    probes = np.zeros(len(costs.layers))
    head = costs.heads.copy()
    for exit, facts in needs.items():
        probes[exit - 1 :] += check_price(costs, facts)
        if facts and gives_output(facts, short_list=costs.short_list):
            head[exit - 1] = 0.0
    return costs.overhead + costs.until_exit + probes + head


def exit_costs_without_probes(costs: TokenCosts) -> NDArray[np.float64]:
    """The same with checks for free, one head product a token: float64 [layers]."""
    return costs.overhead + costs.until_exit + costs.heads


def layers_executed(shape: ModelShape) -> NDArray[np.float64]:
    """Layers that a token which leaves at exit l = 1..L executes: float64 [layers].

    Layers 1..l, and those above with a recurrent state, which only moves by running the layer.
    """
    recurrent = is_recurrent(shape)
    above = np.append(np.cumsum(recurrent[::-1])[::-1][1:], 0)
    return np.asarray(np.arange(1.0, len(recurrent) + 1.0) + above)


def decision_costs(costs: TokenCosts, decisions: Decisions) -> NDArray[np.float64]:
    """Cost of each token, in the unit of `costs`: float64 [tokens]."""
    if decisions.probed is None:
        return np.asarray(exit_costs(costs, decisions.needs)[decisions.exits - 1])
    total = exit_costs_without_probes(costs)[decisions.exits - 1]
    for place, (exit, facts) in enumerate(decisions.needs.items()):
        probed = decisions.probed_at(place)
        total[probed] += check_price(costs, facts)
        if gives_output(facts, short_list=costs.short_list):
            total[probed & (decisions.exits == exit)] -= costs.heads[exit - 1]
    return np.asarray(total)


def probes_made(decisions: Decisions) -> NDArray[np.int64]:
    """Checked exits where each token was probed: int64 [tokens]."""
    made = np.zeros(len(decisions.exits), dtype=np.int64)
    for place in range(len(decisions.needs)):
        made += decisions.probed_at(place)
    return made


def fitted_sizes(trace: Trace, maps: MapRanks = ()) -> FittedSizes:
    """What the exit heads of a trace add to its steps. maps: the K,V maps that are charged."""
    heads = trace.request.get("heads") or {}
    return fitted_of(
        lens=bool(heads.get("lens")),
        lens_rank=heads.get("lens_rank"),
        mlp_units=int(heads.get("mlp_units", 0)),
        maps=maps,
        shortlist=heads.get("short_list"),
    )


def sizes_of_heads(heads: ExitHeads | None, *, mapped: bool) -> FittedSizes:
    """What exit heads add to a step. mapped: whether K and V are, by their maps."""
    if heads is None:
        return NOTHING_FITTED
    maps = heads.kv_maps.ranks.items() if mapped and heads.kv_maps is not None else ()
    return fitted_of(
        lens=heads.lens is not None,
        lens_rank=None if heads.lens is None else heads.lens.rank,
        mlp_units=0 if heads.mlp is None else heads.mlp.units,
        maps=tuple(maps),
        shortlist=unusual_length(heads),
    )


def mean_position(trace: Trace) -> float:
    """The position at which a trace's tokens are charged.

    Raises InputError for a trace without tokens.
    """
    if not trace.token_count:
        raise InputError(
            "the trace has no tokens", where=str(trace.folder or "the trace"), fix="trace more text"
        )
    return float(np.mean(trace.position, dtype=np.float64))


def costs_of(trace: Trace, by: Machine | str, batch: int = 1, maps: MapRanks = ()) -> TokenCosts:
    """What a step of `batch` tokens of this trace costs at the mean position.

    by: a machine, for seconds, or "bytes" moved or "flops". maps: the K,V maps that are charged.

    Raises InputError for a trace without tokens, or one that the machine's profile cannot price.
    """
    return _costs(by, trace.shape, mean_position(trace), batch, fitted_sizes(trace, maps))


def prices_at(
    trace: Trace, by: Machine | str, maps: MapRanks = (), *, batch: int = 1, position: float | None = None
) -> PriceAt:
    """The same of a step by its rows, at a position, by default the mean one.

    Raises InputError for a batch that the machine cannot price, and as `costs_of` does.
    """
    costs_of(trace, by, batch, maps)
    at = mean_position(trace) if position is None else position
    return prices_by_rows(by, trace.shape, at, fitted_sizes(trace, maps))


def prices_by_rows(
    by: Machine | str, shape: ModelShape, position: float, fitted: FittedSizes = NOTHING_FITTED
) -> PriceAt:
    """What a step costs by its rows.

    More rows than timings reach (tokens that waited for a layer) are charged as several steps.
    """
    largest = by.largest_batch if isinstance(by, TimingsProfile) else None

    @cache
    def at(rows: int) -> TokenCosts:
        if largest is None or rows <= largest:
            return _costs(by, shape, position, rows, fitted)
        return add_costs(at(largest), at(rows - largest))

    return at


def _costs(
    by: Machine | str, shape: ModelShape, position: float, batch: int, fitted: FittedSizes
) -> TokenCosts:
    """The prices of a step, with what exit heads add to it."""
    if isinstance(by, str):
        sizes = fitted.added_to(ProbeSizes())
        return token_costs(shape, position, by, batch=batch, lens=fitted.lens, sizes=sizes)
    if fitted == FittedSizes(lens=fitted.lens):
        return machine_prices(by, shape, position, batch=batch, lens=fitted.lens)
    sizes = fitted.added_to(by.sizes if isinstance(by, TimingsProfile) else ProbeSizes())
    costs = machine_prices(by, shape, position, batch=batch, lens=fitted.lens, sizes=sizes)
    if set(costs.maps) != {exit for exit, _ in fitted.maps}:
        raise _not_priced(by, "K,V maps", "kv_maps")
    if fitted.mlp_units:
        lens = fitted.lens_rank != 0
        alone = machine_prices(by, shape, position, batch=batch, lens=lens, sizes=replace(sizes, mlp_units=0))
        if not costs.exit_head > alone.exit_head:
            raise _not_priced(by, "the networks that exits are read through", "mlp_units")
    return costs


def _not_priced(machine: Machine, what: str, size: str) -> InputError:
    return InputError(
        f"the machine does not price {what}",
        where=f"machine {machine.name}",
        fix=f"price `sizes.{size}` in its token_costs, or choose another machine",
    )


def price_notes(machine: Machine | None, trace: Trace, sizes: Iterable[int]) -> tuple[str, ...]:
    """What must be said of a machine's prices of this trace's tokens at some batch sizes.

    Raises InputError for a trace without tokens.
    """
    if not isinstance(machine, TimingsProfile | KernelMachine):
        return ()
    return machine.price_notes(trace.shape, mean_position(trace), sizes)


def lookup_notes(given: Machine | str | None, machine: Machine | None) -> tuple[str, ...]:
    """What must be said of a machine that was looked up by its name, without its model at hand."""
    return kept_notes(machine) if isinstance(given, str) else ()


def derived_notes(machine: Machine | None, breakdown: CostBreakdown, *, lens: bool) -> tuple[str, ...]:
    """What must be said of prices that were derived instead of timed; lens: whether the trace has one."""
    if not isinstance(machine, TimingsProfile):
        return ()
    priced_as = {"short head": RESTRICTED_HEAD}
    used = {line.probe or priced_as.get(line.part, line.part) for line in breakdown.lines}
    return machine.derived_notes(used | {LENS} if lens else used)


def machine_for(trace: Trace, machine: Machine | str) -> Machine:
    """The machine itself, or the one of that name or TOML file for the trace's model.

    Raises InputError as `offramp.costs.machine_registry.find_machine` does.
    """
    if not isinstance(machine, str):
        return machine
    request = trace.request
    model = request.get("model", {})
    return find_machine(
        machine,
        model_fingerprint=model.get("fingerprint"),
        dtype=request.get("dtype"),
        device=request.get("device", CPU),
        attention=model.get(ATTENTION),
        model=model,
    )
