"""Which similarity and α bring EAS nearest to published values, whose own nobody knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from common import Values, read_table, run, tables_parser

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
ALPHAS = np.array([0.001, *(step / 100 for step in range(1, 101))])
"""Where the least error is looked for first."""
DEFAULT_ALPHA = 0.5
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
    """A line for each similarity and text through each kind of heads. published: by the name of a model.

    missing: models with a published value that were not measured there.
    """
    board = leaderboard[leaderboard["transform"] == ""].set_index(["workload", "heads", "model"])["base"]
    curves = dict(list(profiles.groupby(["workload", "heads", "shown"])))
    measured = board[board.index.get_level_values("model").isin(published.index)]
    places = (measured if len(measured) else board).index.droplevel("model").unique()
    lines = []
    for place, (similarity, column) in ((p, s) for p in places for s in SIMILARITIES.items()):
        models = []
        for name, value in published.items():
            curve = curves.get((*place, name))
            if curve is not None and curve[column].iloc[:-1].notna().all() and len(curve) > 1:
                exits, values = curve["exit"].to_numpy(float), curve[column].to_numpy(float)[:-1]
                weights = (exits[-1] - exits[:-1]) / exits[-1]
                models.append(Measured(str(name), board[(*place, name)], float(value), values, weights))
        missing = "; ".join(str(name) for name in published.index if name not in {m.model for m in models})
        where = {"similarity": similarity, "workload": place[0], "heads": place[1], "missing": missing}
        lines.append(where | eas_fit(models))
    return pd.DataFrame(lines)


def eas_fit(models: Sequence[Measured]) -> dict[str, Any]:
    """The α of these models, and how well it describes their values; "cannot be told" below 3 trainings.

    Errors are root mean squares of what EAS lacks to the published values: error with `alpha`, left_out_error
    of each model with the α of other trainings, mean_error of the mean of their published values instead,
    default_error with α = 0.5. spearman: of fitted with published values.
    """
    if len({one.training for one in models}) < MODELS_NEEDED:
        return {"models": len(models), "conclusion": "cannot be told"}
    others = [[two for two in models if two.training != one.training] for one in models]
    alpha, published = fitted_alpha(models), np.array([one.published for one in models])
    fitted = np.array([one.eas(alpha) for one in models])
    left_out = np.array([one.eas(fitted_alpha(rest)) for one, rest in zip(models, others, strict=True)])
    means = np.array([np.mean([one.published for one in rest]) for rest in others])
    default = np.array([one.eas(DEFAULT_ALPHA) for one in models])
    error, left_out_error, mean_error, default_error = (
        float(np.sqrt(np.mean((values - published) ** 2))) for values in (fitted, left_out, means, default)
    )
    varied = np.ptp(fitted) > 0 and np.ptp(published) > 0
    return {
        "models": len(models),
        "conclusion": "fits" if left_out_error < min(mean_error, CLOSE) else "does not fit",
        "alpha": alpha,
        "error": error,
        "left_out_error": left_out_error,
        "mean_error": mean_error,
        "default_error": default_error,
        "spearman": float(stats.spearmanr(fitted, published).statistic) if varied else np.nan,
        **{f"{one.model}: fitted": value for one, value in zip(models, fitted, strict=True)},
        **{f"{one.model}: left_out": value for one, value in zip(models, left_out, strict=True)},
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


def main() -> tuple[pd.DataFrame, Path | None]:
    """The fits of a comparison's tables."""
    options = tables_parser(__doc__)
    options.add_argument("--published", type=Path, default=PUBLISHED, help="CSV with model, published")
    asked = options.parse_args()
    published = pd.read_csv(asked.published).set_index("model")["published"]
    return eas_fits(
        read_table(asked.tables, "leaderboard"), read_table(asked.tables, "profiles"), published
    ), asked.output


if __name__ == "__main__":
    run(main)
