"""What tests share: made-up prose, tiny recipes, and simulated runs, which hold what is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from offramp_lab.design import FACTORS, LEVELS, REPLICATION, half_fraction
from offramp_lab.recipes import Continued, Dense, Mamba2, Mixture
from offramp_lab.runs import ARMS, COLUMNS, ENDPOINTS, SKIPPED_THIRD, Study, checked

WORDS = "rain sun cat dog reads writes slowly and then a the of house tree old new runs sees three seven"


def sentences(seed: int, count: int = 60) -> str:
    """Sentences of random words, different for every seed."""
    generator = np.random.default_rng(seed)
    lines = [" ".join(generator.choice(WORDS.split(), size=9)) for _ in range(count)]
    return ".\n".join(lines) + ".\n"


def own_text(folder: Path, **more: object) -> dict[str, object]:
    """One's own files as an entry of a request."""
    return {"name": folder.name, "path": str(folder), "kind": "prose", "licence": "none", **more}


SIZES: dict[str, Any] = {
    "text": "text",
    "tokens": 2400,
    "seed": 1,
    "layers": 2,
    "hidden": 32,
    "query_heads": 4,
    "context": 32,
    "batch": 4,
    "rate": 5e-3,
    "checkpoints": 3,
}
"""19 steps of 128 tokens; models are kept after 4, 9 and 19."""
SWITCHES: dict[str, Any] = {
    "norm": "rmsnorm",
    "mlp": "swiglu",
    "positions": "rotary",
    "heads": "grouped",
    "residual": "plain",
    "group": 2,
    "width": 48,
}


def tiny(**more: Any) -> Dense:
    """A dense recipe with some entries changed."""
    return Dense(**{**SIZES, **SWITCHES, **more})


def tiny_kind(kind: str, **more: Any) -> Mixture | Mamba2:
    """One of a model of another kind."""
    if kind == "mixture":
        return Mixture(**{**SIZES, "group": 2, "experts": 4, "width": 48, **more})
    return Mamba2(**{**SIZES, "expand": 2, "chunk": 8, "width": 8, **more})


def going_on(base: Path, arm: str, **more: Any) -> Continued:
    """8 steps from a tiny model, of which the last is kept."""
    given = {**SIZES, "tokens": 1024, "rate": 1e-3, "checkpoints": 1, "seed": 7}
    given = {key: value for key, value in given.items() if key not in ("layers", "hidden", "query_heads")}
    return Continued.model_validate({**given, "from": str(base), "arm": arm, **more})


MODELS, TOKENS = 8, 8_000_000
GPT2, LLAMA = half_fraction()[0], half_fraction()[15]
SCORES = ("representation", "calibration", "composite", "mean_kl")
ERROR = {"skipped": 0.02, "representation": 0.01, "required_depth": 0.2}
"""Of a seed, by the first part of an endpoint's name; a lens reads with the same."""


def study_rows(
    seed: int = 0,
    *,
    blocks: Sequence[str] = ("gate", "1", "2", "3", "4", "5", "6"),
    effects: Mapping[tuple[str, str], float] | None = None,
    by_tokens: float = 0.0,
    by_step: float = 0.0,
    telling: float = 0.0,
    gained: float = 0.3,
    error: float = 1.0,
) -> list[dict[str, str]]:
    """All runs of some blocks.

    effects: what a factor's plus level, a kind, something done to a base or a doubling of the width
    ("width") adds to an endpoint. by_tokens: to the representation with every doubling of tokens. by_step:
    the layers that a step takes. telling: of scores, of the layers skipped on code. gained: nats by the
    deeper model of the gate. error: times ERROR.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for run in _runs():
        if run["block"] in blocks:
            rows += list(_models(generator, run, effects or {}, by_tokens, by_step, telling, gained, error))
    return rows


def _runs() -> Iterator[dict[str, str]]:
    base = {"base": "", "arm": "", "layers": "12", "hidden": "96", "kind": "dense", "diverged": "false"}
    for number, cell in ((1, GPT2), (16, LLAMA)):
        for kind in ("gate", "gate-wide"):
            yield {**base, **cell, "run": f"{kind}-run-{number:02}", "block": "gate", "layers": "4"}
    cells = dict(enumerate(half_fraction(), start=1)) | {17: GPT2, 18: GPT2, 19: LLAMA, 20: LLAMA}
    for number, cell in cells.items():
        yield {**base, **cell, "run": f"run-{number:02}", "block": "1" if number < 17 else "2"}
    for number in range(21, 29):
        kind = {"kind": "mixture"} | LLAMA if number < 25 else {"kind": "mamba2"} | dict.fromkeys(FACTORS, "")
        yield {**base, **kind, "run": f"run-{number}", "block": "3"}
    for block, arms in ARMS.items():
        for number in (1, 17, 18, 16, 19, 20):
            for arm in arms:
                name = f"run-{number:02}"
                run = {"frozen_exits": name, "plain": f"{name}-continued"}.get(arm, f"{name}-{arm}")
                again = {"run": run, "base": name, "arm": arm, "block": block}
                yield {**base, **cells[number], **again}
    for number, size in (
        (29, {"layers": "6"}),
        (30, {"layers": "24"}),
        (31, {"hidden": "48"}),
        (32, {"hidden": "192"}),
    ):
        yield {**base, **LLAMA, **size, "run": f"run-{number}", "block": "6"}
    for number in range(33, 57):
        positions = LEVELS["positions"][number > 44]
        yield {**base, **GPT2, "positions": positions, "run": f"run-{number}", "block": REPLICATION}


def _models(generator, run, effects, by_tokens, by_step, telling, gained, error) -> Iterator[dict[str, str]]:
    levels = {f"{factor}": LEVELS[factor].index(run[factor]) - 0.5 for factor in FACTORS if run[factor]}
    marks = levels | {run["kind"]: 1.0, run["arm"]: 1.0, "width": np.log2(int(run["hidden"]) / 96)}

    def level(endpoint: str, start: float) -> float:
        spread = ERROR.get(endpoint.split("_lens")[0].split("_code")[0], 0.02)
        added = sum(marks.get(name, 0.0) * size for (name, on), size in effects.items() if on == endpoint)
        return start + added + error * spread * generator.normal()

    ends = {
        "skipped": level("skipped", 0.5),
        "skipped_lens": level("skipped_lens", 0.5),
        "representation": level("representation", 0.4),
        "representation_lens": level("representation_lens", 0.55),
        "calibration": level("calibration", 0.1),
        "required_depth": level("required_depth", by_step),
    }
    ends |= {
        "calibration_first": ends["calibration"] - 0.01,
        "calibration_second": ends["calibration"] + 0.01,
    }
    if run["block"] == REPLICATION:
        ends |= {name: level(name, 0.3) for name in SKIPPED_THIRD}
    ends["oracle_saturation"] = level("oracle", 0.05) + ends["skipped"]
    ends["skipped_code"] = level("skipped_code", 0.0) + ends["skipped"]
    scores = {name: telling * ends["skipped_code"] + 0.02 * generator.normal() for name in SCORES}
    last = 3.6 + 0.02 * generator.normal() + (gained if run["block"] == "gate" else 0.0)
    kept = range(MODELS) if run["block"] not in ARMS else range(MODELS - 1, MODELS)
    by_tokens += 0.003 * generator.normal()
    for place in kept:
        doublings = place - MODELS + 1
        values = {name: str(value) for name, value in ends.items()}
        values["representation"] = str(ends["representation"] + by_tokens * doublings)
        values |= {f"score_{name}": str(value) for name, value in scores.items()}
        if run["block"] == "gate":
            values = dict.fromkeys(values, "")
        step, tokens = 1953 * 2**place // 128, TOKENS * 2**place // 128
        own = {
            "seed": run["run"].removeprefix("gate-").removeprefix("wide-")[4:6],
            "loss": str(last - 0.4 * doublings),
        }
        row = run | own | {"step": str(step), "tokens": str(tokens)} | values
        yield {
            name: row.get(name, "") for name in (*COLUMNS, *ENDPOINTS, *(f"score_{one}" for one in SCORES))
        }


def models_of(rows: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """Rows of text as a frame of models."""
    return checked(pd.DataFrame(rows), "runs.csv")


def make_runs(kinds: Sequence[str], losses: Sequence[float], signs: Any = None) -> pd.DataFrame:
    """Runs of one kept model each, of some kinds and last losses; signs: [runs, factors], of dense ones."""
    rows = []
    for place, (kind, loss) in enumerate(zip(kinds, losses, strict=True), start=1):
        levels = dict(LLAMA)
        if signs is not None:
            own = zip(FACTORS, signs[place - 1], strict=True)
            levels = {factor: LEVELS[factor][(sign + 1) // 2] for factor, sign in own}
        about = {
            "run": f"run-{place:02}",
            "block": "1",
            "base": "",
            "arm": "",
            "kind": kind,
            "diverged": False,
        }
        rows.append(
            {
                **about,
                **levels,
                "layers": 12,
                "hidden": 96,
                "seed": place,
                "step": 1,
                "tokens": 1,
                "loss": loss,
            }
        )
    return Study(pd.DataFrame(rows)).runs
