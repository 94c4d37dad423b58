"""Which similarity and α bring EAS nearest to published values whose α nobody knows, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from common import Values, parser, read_table, run, show
from scipy import optimize, stats

SIMILARITIES = {
    "logit": "logit_cosine",
    "centred_logit": "centred_logit_cosine",
    "hidden": "hidden_cosine_to_final",
}
"""Columns of the profiles by similarity."""
MODELS_NEEDED = 3
"""Trainings; below that, one that is left out leaves nothing, or one alone, to fit to."""
CLOSE = 0.02
"""Values of two digits that differ by this much are different values."""
LEAST_ALPHA, EDGE = 0.001, 1e-4
"""α is above 0; within EDGE of the least or the largest one the range ends."""
ALPHAS = np.array([LEAST_ALPHA, *(step / 100 for step in range(1, 101))])
"""Where the least error is looked for first."""
PUBLISHED = Path(__file__).parent / "published_eas.csv"


@dataclass(frozen=True)
class Measured:
    """A model with its published EAS and what was measured of it.

    training: what it shares with models of the same base. similarity: of each exit to the last, mean over
    tokens; weights: (L - l) / L. Both float64 [exits below L].
    """

    model: str
    training: str
    published: float
    similarity: Values
    weights: Values

    def eas(self, alpha: float) -> float:
        """Mean over exits l < L of S_l^α w_l^(1 - α), S clipped to [0, 1] (docs/metrics.md)."""
        clipped = np.clip(self.similarity, 0.0, 1.0)
        return float(np.mean(clipped**alpha * self.weights ** (1.0 - alpha)))


def eas_fits(leaderboard: pd.DataFrame, profiles: pd.DataFrame, published: pd.Series) -> pd.DataFrame:
    """A line for each similarity on each text through each kind of heads. published: by the name of a model."""
    board = leaderboard[leaderboard["transform"] == ""]
    measured = board[board["model"].isin(published.index)]
    places = (measured if len(measured) else board)[["workload", "heads"]].drop_duplicates()
    lines = []
    for _, (workload, heads) in places.iterrows():
        for similarity, column in SIMILARITIES.items():
            models = []
            for name, value in published.items():
                row, curve = (
                    table[(table[["shown", "workload", "heads"]] == [name, workload, heads]).all(axis=1)]
                    for table in (board, profiles)
                )
                below, exits = curve[column].to_numpy(float)[:-1], curve["exit"].to_numpy(float)
                if len(below) and np.isfinite(below).all():
                    weights = (exits[-1] - exits[:-1]) / exits[-1]
                    models.append(Measured(str(name), str(row["base"].iloc[0]), float(value), below, weights))
            missing = [str(name) for name in published.index if name not in {one.model for one in models}]
            where = {"similarity": similarity, "workload": workload, "heads": heads}
            lines.append(where | eas_fit(models, missing))
    return pd.DataFrame(lines)


def eas_fit(models: Sequence[Measured], missing: Sequence[str] = ()) -> dict[str, Any]:
    """The α of these models, and what their values are described by with it; "cannot be told" below 3 trainings.

    Errors are root mean squares of what EAS lacks to the published values: error with `alpha`, left_out_error
    of each model with the α of other trainings, mean_error of the mean of their published values instead,
    default_error with α = 0.5. missing: models with a published value that were not measured here.
    """
    trainings, without = len({one.training for one in models}), ""
    if missing:
        without = f"; without {', '.join(missing)}, not measured"
    found: dict[str, Any] = {"models": len(models), "missing": "; ".join(missing)}
    if trainings < MODELS_NEEDED:
        noun = "training has" if trainings == 1 else "trainings have"
        both = f"{trainings} {noun} both a published value and a measurement, {MODELS_NEEDED} needed"
        return found | {"conclusion": "cannot be told", "claim": f"cannot be told; {both}{without}"}
    others = [[two for two in models if two.training != one.training] for one in models]
    alpha, published = fitted_alpha(models), np.array([one.published for one in models])
    values = {
        "fitted": [one.eas(alpha) for one in models],
        "left_out": [one.eas(fitted_alpha(rest)) for one, rest in zip(models, others, strict=True)],
        "mean": [np.mean([one.published for one in rest]) for rest in others],
        "default": [one.eas(0.5) for one in models],
    }
    errors = {name: float(np.sqrt(np.mean((np.array(v) - published) ** 2))) for name, v in values.items()}
    left_out, mean = errors["left_out"], errors["mean"]
    conclusion = "fits" if left_out < min(mean, CLOSE) else "does not fit"
    why = f"no better than the mean of the others, which is off by {mean:.3f}"
    if left_out < mean:
        why = f"better than the mean of the others ({mean:.3f}), "
        why += f"{'and' if conclusion == 'fits' else 'but not'} below {CLOSE:g}"
    shown = f"{alpha:.2f}" if alpha >= EDGE + 0.01 else f"{alpha:.3g}"
    edge = ", where its range ends" if alpha < LEAST_ALPHA + EDGE or alpha > 1.0 - EDGE else ""
    claim = (
        f"{conclusion}; α = {shown}{edge}, and with the α of the others a model's value is off by "
        f"{left_out:.3f}, {why} ({len(models)} models{without})"
    )
    varied = np.ptp(values["fitted"]) > 0 and np.ptp(published) > 0
    return found | {
        "conclusion": conclusion,
        "alpha": alpha,
        "error": errors["fitted"],
        **{f"{name}_error": errors[name] for name in ("left_out", "mean", "default")},
        "spearman": float(stats.spearmanr(values["fitted"], published).statistic) if varied else None,
        "claim": claim,
        **{
            f"{one.model}: {name}": values[name][place]
            for place, one in enumerate(models)
            for name in ("fitted", "left_out")
        },
    }


def fitted_alpha(models: Sequence[Measured]) -> float:
    """The α in [0.001, 1] whose EAS has the least root mean square error.

    EAS is convex in α (a mean of exponentials), so that it may meet a published value twice: the least error
    of a grid is found first, then refined between its neighbours (Brent's method).
    """

    def loss(alpha: float) -> float:
        return float(np.mean([(one.eas(alpha) - one.published) ** 2 for one in models]))

    best = int(np.argmin([loss(float(alpha)) for alpha in ALPHAS]))
    bounds = ALPHAS[max(best - 1, 0)], ALPHAS[min(best + 1, len(ALPHAS) - 1)]
    refined = optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-7}).x
    return min(float(ALPHAS[best]), float(refined), key=loss)


def main() -> None:
    """Read the tables and the published values, fit, print what they come to."""
    options = parser(__doc__)
    options.add_argument("--published", type=Path, default=PUBLISHED, help="CSV with model, published")
    asked = options.parse_args()
    published = pd.read_csv(asked.published).set_index("model")["published"]
    table = eas_fits(read_table(asked.tables, "leaderboard"), read_table(asked.tables, "profiles"), published)
    said = [f"{line.similarity}, {line.workload} {line.heads}: {line.claim}." for line in table.itertuples()]
    show(table, said, asked.output)


if __name__ == "__main__":
    run(main)
