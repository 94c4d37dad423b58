"""Every family of policies on some traces, on several machines: who wins, and by how much.

    python benchmarks/policies.py TRACE...  [--machines local,h100,l4] [--csv FILE]

For each trace and machine the fastest member of every family at 99, 95 and 90 % agreement is chosen on one
half of the documents and judged on the other. Prints Markdown tables; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from pathlib import Path

import offramp
from offramp.policies.prices import machine_for
from offramp.scoring.estimate import Estimate
from offramp.tuning.ranking import RankedPolicy

FLOORS = (0.99, 0.95, 0.90)
COLUMNS = (
    *("workload", "heads", "machine", "floor", "family", "policy", "reachable", "agreement", "agreement_low"),
    *("agreement_high", "skip_ratio", "net_speedup", "net_speedup_low", "net_speedup_high", "probe_share"),
    "chosen",
)


def workload_of(trace: offramp.Trace) -> tuple[str, str]:
    """The workload's name, and how its exits were read."""
    request = trace.request
    heads = request.get("heads") or {}
    return request["workload"]["name"], "linear lens" if heads.get("lens") else "logit lens"


def row_of(name: str, heads: str, machine: str, entry: RankedPolicy) -> dict[str, object]:
    """One line of the table of everything."""
    speed, agreement = entry.net_speedup, entry.agreement
    return {
        "workload": name,
        "heads": heads,
        "machine": machine,
        "floor": entry.floor,
        "family": entry.family,
        "policy": entry.policy,
        "reachable": entry.reachable,
        "agreement": agreement.value,
        "agreement_low": agreement.low,
        "agreement_high": agreement.high,
        "skip_ratio": entry.skip_ratio.value,
        "net_speedup": speed.value,
        "net_speedup_low": speed.low,
        "net_speedup_high": speed.high,
        "probe_share": entry.probe_share,
        "chosen": entry.chosen,
    }


def interval(estimate: Estimate) -> str:
    """A speedup with its interval."""
    if estimate.value is None:
        return "undefined"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def print_winners(found: Sequence[tuple[str, str, str, RankedPolicy]]) -> None:
    """The policy that the choosing half picked, for every trace, machine and floor."""
    print("\n### Chosen on one half of the documents, judged on the other\n")
    header = (
        "workload",
        "exits read by",
        "machine",
        "floor",
        "family",
        "skipped",
        "agreement",
        "net speedup",
    )
    print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for name, heads, machine, entry in found:
        if entry.chosen:
            cells = [name, heads, machine, f"{entry.floor:.0%}", entry.family]
            cells += [f"{share or 0:.1%}" for share in (entry.skip_ratio.value, entry.agreement.value)]
            print("| " + " | ".join([*cells, interval(entry.net_speedup)]) + " |")


def print_tables(name: str, heads: str, rankings: dict[str, Sequence[RankedPolicy]]) -> None:
    """One Markdown table per floor: families as rows, the fastest on the first machine first."""
    first = next(iter(rankings))
    for floor in FLOORS:
        print(f"\n### {name}, {heads}, {floor:.0%} agreement\n")
        header = ["family", "skipped", "agreement", "probes' share", *rankings]
        print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
        others = {
            machine: {entry.family: entry for entry in entries if entry.floor == floor}
            for machine, entries in rankings.items()
        }
        for entry in (entry for entry in rankings[first] if entry.floor == floor):
            family = entry.family if entry.reachable else f"*{entry.family} (unreachable)*"
            cells = [
                interval(others[machine][entry.family].net_speedup)
                if entry.family in others[machine]
                else "–"
                for machine in rankings
            ]
            shares = [entry.skip_ratio.value, entry.agreement.value, entry.probe_share]
            print(f"| {family} | " + " | ".join([f"{share or 0:.1%}" for share in shares] + cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--machines", default="local,h100,l4")
    parser.add_argument("--csv", type=Path, help="write every line there")
    options = parser.parse_args()
    found: list[tuple[str, str, str, RankedPolicy]] = []
    for folder in options.traces:
        trace = offramp.Trace.load(folder)
        name, heads = workload_of(trace)
        rankings: dict[str, Sequence[RankedPolicy]] = {}
        for machine in options.machines.split(","):
            rankings[machine] = offramp.ranking(trace, machine_for(trace, machine), FLOORS)
            found += [(name, heads, machine, entry) for entry in rankings[machine]]
        print_tables(name, heads, rankings)
    print_winners(found)
    rows = [row_of(*line) for line in found]
    if options.csv is not None:
        with options.csv.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
    best = {
        f"{row['workload']}, {row['heads']}, {row['machine']}, {row['floor']}": [
            row["family"],
            row["net_speedup"],
        ]
        for row in rows
        if row["chosen"]
    }
    print(json.dumps({"benchmark": "policies", "lines": len(rows), "best": best}))


if __name__ == "__main__":
    main()
