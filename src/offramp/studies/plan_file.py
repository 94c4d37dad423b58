"""A plan as a JSON object, for the study's folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from offramp.errors import InputError
from offramp.studies.task import Cell, Job, Plan, Task

SCHEMA_VERSION = 1


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """A JSON object that `plan_from_json` reads back as equal; a task stands there once, a job by keys."""
    jobs = [{**asdict(job), "tasks": [task.key for task in job.tasks]} for job in plan.jobs]
    return {
        "schema_version": SCHEMA_VERSION,
        "study": dict(plan.study),
        "cells": [asdict(cell) for cell in plan.cells],
        "tasks": [{"key": key, **task.to_json()} for key, task in plan.tasks.items()],
        "jobs": jobs,
        "unavailable": dict(plan.unavailable),
        "damaged": list(plan.damaged),
    }


def plan_from_json(value: Mapping[str, Any]) -> Plan:
    """The plan that `plan_to_json` made an object of.

    Raises InputError if a newer offramp wrote it.
    """
    if value["schema_version"] > SCHEMA_VERSION:
        raise InputError(
            f"the study's plan has schema version {value['schema_version']}; "
            f"this offramp reads up to {SCHEMA_VERSION}",
            fix="upgrade offramp: pip install --upgrade offramp",
        )
    tasks = {}
    for entry in value["tasks"]:
        fields = {name: part for name, part in entry.items() if name != "key"}
        tasks[entry["key"]] = Task.from_json(fields)
    jobs = []
    for entry in value["jobs"]:
        members = tuple(tasks[key] for key in entry["tasks"])
        jobs.append(Job(**{**entry, "tasks": members, "needs": tuple(entry["needs"])}))
    cells = tuple(Cell(**cell) for cell in value["cells"])
    return Plan(
        value["study"], cells, tasks, tuple(jobs), value["unavailable"], tuple(value.get("damaged", ()))
    )
