"""The lab's study as files: the page, and tables in CSV with every figure unrounded."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from offramp.files import write_text_atomically
from offramp.lab.effects.claims import CLAIMS, Claim, judge
from offramp.lab.effects.effect import PERMUTATIONS, Effect
from offramp.lab.effects.runs import runs_of
from offramp.lab.effects.score_validity import Correlation
from offramp.lab.effects.study import LabFindings, analyse
from offramp.lab.text.folder import TextRecord
from offramp.records.spreadsheet import cell
from offramp.report import REPORT_FILE
from offramp.report.lab.page import render_lab
from offramp.report.lab.words import NO_TEST

TABLES = "tables"
"""Folder of the tables, beside the page."""
NAMES = ("left_out", "effects", "claims", "scores", "scores_without_recurrent", "matched")
Cells = Sequence[object]


def write_lab_report(
    rows: Sequence[Mapping[str, str]],
    folder: Path,
    *,
    text: TextRecord | None = None,
    command: str = "offramp lab report runs.csv -o FOLDER",
    table: str = "runs.csv",
    permutations: int = PERMUTATIONS,
) -> LabFindings:
    """Analyse the rows of `runs.csv` as docs/lab/preregistered.md has it, and write page and tables.

    text: what the models were trained on. command: that makes the page again. table: how an error calls the
    rows. Raises InputError, with the line, for what is wrong about the rows, DiskFullError for a full disk.
    """
    findings = analyse(runs_of(rows, table), permutations=permutations)
    (folder / TABLES).mkdir(parents=True, exist_ok=True)
    tables = lab_tables(findings)
    for name, cells in tables.items():
        written = io.StringIO()
        csv.writer(written, lineterminator="\n").writerows([cell(value) for value in line] for line in cells)
        write_text_atomically(folder / TABLES / f"{name}.csv", written.getvalue())
    write_text_atomically(folder / REPORT_FILE, render_lab(findings, text, command))
    return findings


def lab_tables(findings: LabFindings) -> dict[str, list[Cells]]:
    """Tables by name, the header first; without a gate that is passed, only the runs left out."""
    found: dict[str, list[Cells]] = {"left_out": [("run", "why"), *findings.left_out.items()]}
    if not findings.gate.passed:
        return found
    effects = [one for family in findings.families.values() for one in family.effects]
    found["effects"] = _table_of(Effect, effects)
    found["claims"] = [
        ("claim", "test", "endpoint", "word"),
        *(line for claim in CLAIMS for line in _claim_lines(claim, findings)),
    ]
    if findings.validity is not None:
        found["scores"] = _table_of(Correlation, findings.validity.table)
        if (without := findings.validity.without_recurrent) is not None:
            found["scores_without_recurrent"] = _table_of(Correlation, without.table)
    matched: list[Cells] = [("family", "run", "endpoint", "loss", "value")]
    for key in ("1", "3"):
        if (block := findings.families[key].block) is not None:
            matched += [
                (key, run.name, endpoint, block.loss, value)
                for run, values in zip(block.runs, block.matched.tolist(), strict=True)
                for endpoint, value in zip(block.endpoints, values, strict=True)
            ]
    return found | {"matched": matched}


def _claim_lines(claim: Claim, findings: LabFindings) -> list[Cells]:
    judged = judge(claim, findings)
    return [(claim.said, one.name, one.endpoint, one.word) for one in judged] or [
        (claim.said, "", "", NO_TEST)
    ]


def _table_of(kind: type[Any], several: Sequence[Any]) -> list[Cells]:
    """The names of a dataclass's fields, and a line for each of several."""
    return [tuple(one.name for one in fields(kind)), *(tuple(asdict(one).values()) for one in several)]


def lab_summary(findings: LabFindings) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "gate": asdict(findings.gate) | {"passed": findings.gate.passed},
        **{
            name: [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
            for name, rows in lab_tables(findings).items()
        },
        "notes": {key: family.notes for key, family in findings.families.items()},
    }
