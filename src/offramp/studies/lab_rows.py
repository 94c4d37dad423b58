"""`runs.csv` of a study of the lab: a line for each kept model of each training that has ended."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from offramp.lab.design import rows_of
from offramp.lab.effects.runs import FROZEN
from offramp.records.spreadsheet import cell
from offramp.studies.folder import StudyFolder
from offramp.studies.lab_runs import second_name
from offramp.studies.task import Plan

RUN = ("run", "block", "base", "arm", "norm", "mlp", "positions", "heads", "residual", "layers", "hidden")
COLUMNS = (*RUN, "kind", "seed", "step", "tokens", "loss", "diverged")
"""Of every table; a column for each endpoint that was measured comes after them."""

GIVEN = ("base", "family", "generation", "released", "kind", "stage", "parameters", "layers")
"""What a study says of a model that is given."""

LENS = "_lens"
"""What the columns of endpoints through a lens that is trained end with."""

Row = Mapping[str, Any]


def lab_rows(plan: Plan, folder: StudyFolder) -> list[Row]:
    """The lines, by column. loss: nan where it was not finite. An endpoint that was not measured is absent,
    and None where it cannot be told. What a pilot trained is no run.
    """
    measured = _measured(plan, folder)
    found: list[Row] = []
    for name, run in plan.study["runs"].items():
        task = plan.tasks[run["train"]]
        if run["block"] == "pilot" or not folder.is_done(task):
            continue
        result = folder.result(task)
        about = {key: run.get(key, "") for key in RUN[1:]} | {"run": name, "kind": run["kind"]}
        out = name in plan.study["told"].get("diverged", ())
        about |= {"seed": run["seed"], "diverged": result["diverged"] or out}
        own = [{**about, **one, **measured.get((task.key, one["step"]), {})} for one in result["kept"]]
        if result["diverged"]:
            step = result["step"] + 1
            tokens = step * run["batch"] * run["context"]
            own.append({**about, "step": step, "tokens": tokens, "loss": float("nan")})
        found += own
        found += _standing_elsewhere(name, run, own[-1], plan)
    return found


def _standing_elsewhere(name: str, run: Mapping[str, Any], last: Row, plan: Plan) -> Iterator[Row]:
    """The lines of other blocks that the last line of a run makes (`offramp.lab.design.rows_of`)."""
    blocks = [str(block) for block in plan.study["lab"]["blocks"]]
    for row in rows_of(run["again"] or name)[1:]:
        if row.block not in blocks:
            continue
        base = run["base"] or name
        arm = row.arm.replace("_", "-")
        moved = {
            "run": second_name(f"{base}-{arm}") if run["base"] and run["again"] else f"{base}-{arm}",
            "block": row.block,
            "base": base,
            "arm": row.arm,
        }
        if row.arm != FROZEN:
            yield {**last, **moved}
            continue
        lens = {key.removesuffix(LENS): value for key, value in last.items() if key.endswith(LENS)}
        yield {**{key: value for key, value in last.items() if key in COLUMNS}, **moved, **lens}


def _measured(plan: Plan, folder: StudyFolder) -> dict[tuple[str, int], dict[str, Any]]:
    """Endpoints by training and step."""
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for task in plan.tasks.values():
        if task.kind == "measure" and folder.is_done(task):
            trained = task.needs["model"]
            step = task.recipe["step"] or folder.result(plan.tasks[trained])["step"]
            found.setdefault((trained, step), {}).update(folder.result(task)["values"])
    return found


def given_models(plan: Plan, folder: StudyFolder) -> tuple[list[Row], dict[str, str]]:
    """What was measured of the models that a study was given: facts and the results of their tasks; and why
    others were not measured, by name."""
    found: list[Row] = []
    absent = dict(plan.unavailable)
    for model in plan.study["models"]:
        name, task = model["name"], plan.tasks.get(model["measure"])
        if task is not None and folder.is_done(task):
            facts = {"model": name, **{key: model[key] for key in GIVEN}}
            found.append({**folder.result(task), **facts})
        elif name not in absent:
            failed = task is not None and folder.condition(task) == "failed"
            absent[name] = "its measurement failed: offramp study status" if failed else "not measured yet"
    return found, absent


def lab_table(rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> str:
    """The lines as CSV: these columns, then one for each endpoint."""
    endpoints = dict.fromkeys(key for row in rows for key in row if key not in columns)
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, *endpoints], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _shown(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _shown(value: Any) -> Any:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else cell(value)
