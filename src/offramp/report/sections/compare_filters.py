"""The bar that narrows down and searches every table of a comparison at once; only there with the script."""

from __future__ import annotations

from offramp.report.comparison_words import distinct, floor_order, floor_shown, heads_name, machine_shown
from offramp.report.data_table import FACETS
from offramp.report.markup import element, text
from offramp.studies.comparison.results import Comparison


def filters(comparison: Comparison) -> str:
    """A search box and a choice for each facet that has more than one value."""
    search = element(
        "label",
        element("span", "Search") + '<input type="search" name="filter" autocomplete="off" size="12">',
    )
    choices = "".join(_choice(name, values) for name, values in facets(comparison).items() if len(values) > 1)
    clear = element("button", "Clear", type_="button", id_="clear")
    return element(
        "form",
        search + choices + clear,
        id_="filters",
        class_="filters",
        role="search",
        aria_label="Narrow down all tables",
    )


def facets(comparison: Comparison) -> dict[str, list[str]]:
    """The values of every facet, as the tables show them."""
    rows = comparison.rows
    savings = [saving for row in rows for saving in row.savings]
    places = [(one.floor, one.machine) for one in savings]
    places += [(one.floor, one.machine) for one in comparison.strategies]
    places += [(one.floor, one.machine) for one in comparison.validity]
    bases = [one.basis for one in comparison.strategies] + [one.basis for one in comparison.validity]
    found = {
        "model": [row.model.shown for row in rows],
        "workload": [row.workload for row in rows],
        "heads": [heads_name(row.heads) for row in rows],
        "machine": [machine_shown(machine) for _, machine in places],
        "floor": [floor_shown(floor) for floor in sorted({floor for floor, _ in places}, key=floor_order)],
        "basis": bases,
    }
    return {name: distinct(values) for name, values in found.items()}


def _choice(name: str, values: list[str]) -> str:
    options = element("option", "all", value="")
    options += "".join(element("option", text(value), value=value) for value in values)
    return element("label", element("span", text(FACETS[name])) + element("select", options, name_=name))
