"""What was measured and kept: read again, in rows of figures, by which tables and pictures are made."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy.stats import t as student

from offramp.scoring.estimate import Estimate
from offramp.studies.folder import StudyFolder
from offramp.studies.work.decode import DecodedPolicies, DecodeWork
from offramp.timing.accelerations import LLAMA_CPP
from offramp.timing.results import COMBINED, RESULTS, BenchResult, CombineResult, Contender, Credit
from offramp.tuning.bounds import settle
from offramp.tuning.verdict import Verdict

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs" / "results" / "added"
EXECUTED, TRAININGS = "executed", "trainings"
TEXTS = ("code", "prose", "math")
"""Each a word in its workload's name."""


@dataclass(frozen=True)
class Measured:
    """One text of one model, decoded."""

    model: str
    text: str
    transform: str
    dtype: str
    decoded: DecodedPolicies


def keep(folder: Path) -> None:
    """Copy what every decoding of a study measured. Raises InputError for what is no study's folder."""
    study = StudyFolder(folder)
    plan = study.read_plan()
    for cell in plan.cells:
        result = folder / "tasks" / "decode" / cell.task / "result.json"
        if cell.kind != DecodeWork.kind or not result.exists():
            continue
        text = next(text for text in TEXTS if text in cell.workload)
        settings = plan.study.settings
        kept = {
            "study": plan.study.name,
            "model": cell.model,
            "text": text,
            "transform": cell.transform,
            "dtype": settings.dtype,
            "workload": cell.workload,
            "decoded": json.loads(result.read_text()),
        }
        name = "-".join(part for part in (cell.model, cell.transform, text) if part)
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
    (KEPT / EXECUTED).mkdir(exist_ok=True)
    (KEPT / EXECUTED / f"{plan.study.name}.csv").write_text(as_csv(list(executed_rows(folder))))
    (KEPT / TRAININGS).mkdir(exist_ok=True)
    (KEPT / TRAININGS / f"{plan.study.name}.csv").write_text(as_csv(list(training_rows(folder))))


def training_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """What the trainings of a study took, and how well their exits say the full model's token, held out."""
    for path in sorted((folder / "tasks" / "training").glob("*/exits/training.json")):
        kept = json.loads(path.read_text())
        recipe = kept["request"]["recipe"]
        for place, exit in enumerate(recipe["at"]):
            yield {
                "model": kept["request"]["model"]["name"],
                "exit": exit,
                "tokens": kept["rows"]["fit"],
                "steps": recipe["steps"],
                "minutes": sum(kept["seconds"].values()) / 60.0,
                "agreement": kept["trained"][place]["agreement"],
                "agreement_logit_lens": kept["logit_lens"][place]["agreement"],
            }


PERIOD, REPEATED = 4, 12
"""An answer loops whose last tokens, so many, repeat with a period of at most so many."""


def loops(answer: Sequence[int]) -> bool:
    """Whether an answer ends in a loop."""
    last = answer[-REPEATED:]
    return len(last) == REPEATED and any(
        all(last[place] == last[place - period] for place in range(period, REPEATED))
        for period in range(1, PERIOD + 1)
    )


def executed_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Every document that was decoded for a certificate, a line for each policy."""
    for path in sorted((folder / "executions").glob("*/*.json")):
        kept = json.loads(path.read_text())
        for execution in kept["executions"]:
            agrees = execution["agrees"]
            yield {
                "policy": kept["request"]["policy"],
                "kv": kept["request"]["kv"],
                "document": execution["document"],
                "tokens": len(agrees),
                "wrong": len(agrees) - sum(agrees),
                "first_is_wrong": int(not agrees[0]),
                "loops": int(loops(execution["answer"])),
            }


def executed_summary(policy: str, kv: str, folder: Path = KEPT / EXECUTED) -> dict[str, Any]:
    """Of all documents that a policy decoded for certificates: how many, and what it kept of them.

    The first token comes with the prompt, of which all layers run: kept_after_first leaves it out.
    kept_without_loops: of documents whose answers do not end in a loop.
    """
    rows = [
        row
        for path in sorted(folder.glob("*.csv"))
        for row in csv.DictReader(path.read_text().splitlines())
        if (row["policy"], row["kv"]) == (policy, kv)
    ]

    def kept(some: Sequence[Mapping[str, str]], first: int) -> float | None:
        shares = [
            1.0 - (int(row["wrong"]) - first * int(row["first_is_wrong"])) / (int(row["tokens"]) - first)
            for row in some
            if int(row["tokens"]) > first
        ]
        return fmean(shares) if shares else None

    straight = [row for row in rows if row["loops"] == "0"]
    return {
        "decoded": len(rows),
        "kept_of_decoded": kept(rows, 0),
        "kept_after_first": kept(rows, 1),
        "looping": len(rows) - len(straight),
        "kept_without_loops": kept(straight, 0),
    }


def kept_measurements(folder: Path = KEPT) -> list[Measured]:
    """All that were kept, by file name."""
    found = []
    for path in sorted(folder.glob("*.json")):
        kept = json.loads(path.read_text())
        decoded = DecodeWork.read(kept["decoded"])
        if isinstance(decoded, DecodedPolicies):
            fields = (kept["model"], kept["text"], kept["transform"], kept["dtype"])
            found.append(Measured(*fields, decoded))
    return found


@dataclass(frozen=True)
class Credited:
    """What exits add at one floor."""

    verdict: Verdict
    contender: Contender | None
    """That was timed for it, None where nothing was."""
    credit: Credit | None
    """Computed again from the ratios of prompts, None where nothing was timed."""


def credited(measured: Measured) -> list[Credited]:
    """What exits add at every floor of a measurement, by the policy that its verdict is about."""
    rows, bench = [], measured.decoded.bench
    for verdict in measured.decoded.verdicts:
        policy = verdict.tried.policy if verdict.tried is not None else verdict.policy
        names = [choice.contender for choice in measured.decoded.chosen if choice.policy == policy]
        contender, credit = None, None
        if names:
            contender, credit = bench.contender(names[0]), bench.credit(names[0], verdict.floor)
        rows.append(Credited(verdict, contender, credit))
    return rows


def credit_rows(measurements: Iterable[Measured]) -> list[dict[str, Any]]:
    """One for each floor of each text of each model."""
    rows = []
    for measured in measurements:
        for row in credited(measured):
            verdict, tried = row.verdict, row.verdict.tried
            certificate = verdict.certificate
            documents: int | None = None
            kept: float | None = None
            if tried is not None:
                documents, kept = tried.documents, tried.executed
            elif verdict.certified and certificate is not None and certificate.empirical_risk is not None:
                documents, kept = certificate.stopped_after, 1.0 - certificate.empirical_risk
            ratio = None if row.contender is None else row.contender.ratio
            if measured.decoded.bench.defects:  # no time of it is believed
                ratio = None
            agreement = None if row.contender is None else row.contender.executed_agreement
            kv = (tried.kv if tried else verdict.kv) or ""
            rows.append(
                {
                    "model": measured.model,
                    "text": measured.text,
                    "transform": measured.transform,
                    "dtype": measured.dtype,
                    "floor": verdict.floor,
                    "verdict": verdict.decision,
                    "policy": str(tried.policy if tried else verdict.policy),
                    "kv": kv,
                    "certified": verdict.certified,
                    "documents": documents,
                    "kept": kept,
                    **executed_summary(str(tried.policy if tried else verdict.policy), kv),
                    "over": "" if row.credit is None else row.credit.over,
                    **columns(None if row.credit is None else row.credit.estimate, "credit", "low", "high"),
                    **columns(ratio, "speed", "speed_low", "speed_high"),
                    "agreement_timed": None if agreement is None else agreement.value,
                    "prompts": measured.decoded.bench.prompts,
                }
            )
    return rows


def columns(estimate: Estimate[float] | None, *names: str) -> dict[str, float | None]:
    """Value, lower and upper limit, as far as they are known, by the columns' names."""
    found = (None,) * 3 if estimate is None else (estimate.value, estimate.low, estimate.high)
    return dict(zip(names, found, strict=True))


def contender_rows(measurements: Iterable[Measured]) -> list[dict[str, Any]]:
    """Every way to decode that took turns, with its speed over plain decoding and its agreement."""
    return [
        {
            "model": measured.model,
            "text": measured.text,
            "transform": measured.transform,
            "contender": contender.name,
            "without_exits": contender.without_exits,
            **columns(contender.ratio, "speed", "low", "high"),
            "agreement": None if contender.executed_agreement is None else contender.executed_agreement.value,
            "milliseconds": None
            if contender.seconds_per_token is None
            else 1000 * contender.seconds_per_token.value,
            "left_out": contender.left_out or "",
        }
        for measured in measurements
        for contender in measured.decoded.bench.contenders
    ]


def prediction_rows(measurements: Iterable[Measured]) -> list[dict[str, Any]]:
    """The time saved of plain decoding as predicted before anything was timed, and as measured after."""
    return [
        {
            "model": measured.model,
            "text": measured.text,
            "transform": measured.transform,
            "policy": forecast.policy,
            "predicted_saving": 1.0 - forecast.predicted / forecast.plain_measured,
            "measured_saving": 1.0 - forecast.measured.value / forecast.plain_measured,
            "predicted_agreement": forecast.predicted_agreement,
            "measured_agreement": forecast.measured_agreement,
        }
        for measured in measurements
        if not measured.decoded.bench.defects
        for forecast in measured.decoded.bench.forecasts
        if forecast.predicted is not None
    ]


FITTED_ON = "smollm2"
"""The model whose pairs say how much of a predicted saving is measured; others hold that to account."""


def timed_pairs(measurements: Iterable[Measured]) -> list[Pair]:
    """Savings of plain decoding, predicted and measured, of policies that ask a signal and keep tokens."""
    return [
        Pair(row["model"], row["predicted_saving"], row["measured_saving"])
        for row in prediction_rows(measurements)
    ]


def pairs_of(measurements: Iterable[Measured]) -> list[Pair]:
    """The same, behind those of pages before these measurements, which hold speeds over plain decoding."""
    rows = csv.DictReader((KEPT / "published.csv").read_text().splitlines())
    before = [
        Pair(FITTED_ON, *(1.0 - 1.0 / float(row[name]) for name in ("predicted", "measured"))) for row in rows
    ]
    return before + timed_pairs(measurements)


@dataclass(frozen=True)
class Pair:
    """The share of plain decoding's time that a policy saves."""

    model: str
    predicted: float
    measured: float


def measured_share(pairs: Sequence[Pair]) -> Estimate[float]:
    """Measured over predicted savings: their mean, and within what a further one lies in 19 of 20 cases.

    Student's t with the spread of the pairs and that of their mean.
    """
    shares = np.array([pair.measured / pair.predicted for pair in pairs])
    spread = float(shares.std(ddof=1)) * math.sqrt(1.0 + 1.0 / len(shares))
    reach = float(student.ppf(0.975, len(shares) - 1)) * spread
    mean = float(shares.mean())
    return Estimate(mean, mean - reach, mean + reach)


def slope_of(pairs: Sequence[Pair], share: float = 1.0) -> float:
    """Of measured on predicted savings, times a share, by least squares through nothing saved."""
    predicted = np.array([pair.predicted for pair in pairs])
    measured = np.array([pair.measured for pair in pairs])
    return float(predicted @ measured / (share * predicted @ predicted))


def stack_rows(results: Iterable[tuple[str, CombineResult]]) -> list[dict[str, Any]]:
    """Every combination of accelerations, with what its exits add: to all, and to what PyTorch decodes.

    Peers of the same turns are not judged.
    """
    rows = []
    for name, result in results:
        others = tuple(way for way in result.combinations if way.name != LLAMA_CPP)
        in_torch = replace(result, combinations=others)
        for way in result.combinations:
            quality = way.quality
            row = {
                "measurement": name,
                "floor": result.floor,
                "combination": way.name,
                "without_exits": way.contender.without_exits,
                **columns(way.speedup, "speed", "low", "high"),
                "agreement": None if quality is None else quality.free_running.agreement.value,
                "forced_agreement": None if quality is None else quality.forced_agreement.value,
            }
            for among, which in (("all", result), ("in PyTorch", in_torch)):
                credit = None if way.contender.without_exits else which.credit(way)
                names = [f"{figure}, {among}" for figure in ("credit", "credit_low", "credit_high")]
                row |= {f"over, {among}": "" if credit is None else credit.over}
                row |= columns(None if credit is None else credit.estimate, *names)
            rows.append(row | {"prompts": result.prompts, "left_out": way.contender.left_out or ""})
        rows += [
            dict.fromkeys(rows[-1])
            | {"measurement": name, "floor": result.floor, "combination": peer.name, "without_exits": True}
            | {**columns(peer.ratio, "speed", "low", "high"), "prompts": result.prompts}
            for peer in result.others
            if peer.role == "peer"
        ]
    return rows


def stacks(folder: Path = KEPT / "stack") -> list[tuple[str, CombineResult]]:
    """Measurements of `offramp bench --combine` that were kept, by file name."""
    return [(path.stem, COMBINED.read(path)) for path in sorted(folder.glob("*.json"))]


LOOKUP_FLOOR, LOOKUP_CHANCE = 0.9, 0.1 / 3
"""At which the policy was certified that is timed with drafts from the text; and the chance that the
certificate of both together is wrong, as large as that of each of the study's texts."""


PLANNED = 512
"""Documents of the study's certificates on that text, which may be decoded for it."""
CERTIFICATE = Path("lookup") / "qwen-0.5b-math-certificate.csv"
"""Of both together, every document in its order."""


def lookup_losses(path: Path = KEPT / CERTIFICATE) -> list[float]:
    """The share of wrong tokens of every document that was decoded with both."""
    rows = csv.DictReader(path.read_text().splitlines())
    return [int(row["wrong"]) / int(row["tokens"]) for row in rows]


def certified_after(losses: Sequence[float], floor: float, chance: float, planned: int) -> int | None:
    """After how many documents, in their order, the betting bound certifies a floor; None if it does not.

    losses: the share of wrong tokens of each. planned: documents that may be looked at.
    """
    end = settle(np.array(losses), 1.0 - floor, chance, planned)
    return end[1] if end is not None and end[0] == "certified" else None


def beside_lookup(path: Path = KEPT / "lookup" / "qwen-0.5b-math.json") -> BenchResult:
    """A policy with drafts from the text, timed beside what drafts from it without exits."""
    (result,) = RESULTS.read(path)
    return result


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as text, with the columns of the first; numbers to six digits."""
    if not rows:
        return ""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {name: f"{value:.6g}" if isinstance(value, float) else value for name, value in row.items()}
        )
    return out.getvalue()
