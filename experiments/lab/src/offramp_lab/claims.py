"""The claims of the study (arXiv 2603.23701), and the word that each test of them gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from offramp_lab.design import REPLICATION
from offramp_lab.effects import CORNERS_NAME, NEWER, UNTOLD
from offramp_lab.families import SPED, WIDER, Findings
from offramp_lab.runs import (
    CALIBRATION,
    DEPTH,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SKIPPED,
    SKIPPED_LENS,
    SKIPPED_THIRD,
)

WORDS = ("holds here", "representation", "readout", "opposite here", "does not", UNTOLD)
"""That a test of a claim may get, the surest first."""


@dataclass(frozen=True)
class Claim:
    """A claim of the study. families: that test it. directions: by endpoint, the sign that the claim expects.

    names: of the effects that test it; None for all.
    """

    said: str
    families: tuple[str, ...]
    directions: Mapping[str, int]
    names: tuple[str, ...] | None = None


LESS = {SKIPPED: -1, REPRESENTATION: -1}
MORE = {SKIPPED: 1, REPRESENTATION: 1}
READING = "The middle layers of newer architectures are read badly, or hold less"
SCORE_CLAIM = "A score tells savings beforehand"
CLAIMS = (
    Claim("Newer architectures exit less", ("corners", "1"), LESS, (CORNERS_NAME, *NEWER)),
    Claim(READING, ("corners", "1"), {}, (CORNERS_NAME, *NEWER)),
    Claim("Depth that is not used is due to plain pre-norm", ("1",), LESS, ("residual",)),
    Claim("Dense models exit more than mixtures of experts, and these more than state spaces", ("3",), MORE),
    Claim("Base models exit more than tuned ones", ("5",), LESS),
    Claim("The confidence of shallow exits is ill calibrated after tuning", ("5",), {CALIBRATION: 1}),
    Claim("Training with exits regains what is lost", ("4",), MORE),
    Claim("Larger models exit more", ("sizes",), MORE, (WIDER,)),
    Claim("Longer training leaves less to skip", ("7",), {SPED: -1}),
    Claim(SCORE_CLAIM, ("6",), {}),
    Claim("A token that needs more steps needs more layers", ("8",), {DEPTH: 1}),
)
REPEATED = Claim(
    "Rotary positions leave fewer layers to skip", (REPLICATION,), dict.fromkeys(SKIPPED_THIRD, -1)
)
"""What the replication tests: no claim of the study, but what an exploratory look at its runs showed."""


def claims_of(findings: Findings) -> tuple[Claim, ...]:
    """The claims that runs are there for."""
    repeated = (REPEATED,) if REPLICATION in findings.families else ()
    return (*CLAIMS, *repeated) if findings.passed else repeated


def judge(claim: Claim, findings: Findings) -> pd.DataFrame:
    """The word of each test of a claim, none combined with another; without rows where there is no test.

    Columns `test`, `endpoint` and `claim_word`, and those of the effect that was tested, `of` its endpoint.
    """
    effects = [findings.families[key].effects for key in claim.families if key in findings.families]
    some = [frame for frame in effects if len(frame)]
    found = pd.concat(some, ignore_index=True) if some else pd.DataFrame(columns=["name", "endpoint", "word"])
    if claim.names is not None:
        found = found[found["name"].isin(claim.names)]
    if claim.said == READING:
        return _readings(found)
    if claim.said == SCORE_CLAIM:
        validity = findings.validity
        if validity is None:
            return pd.DataFrame(columns=["test", "endpoint", "claim_word"])
        score = validity.choice.score if validity.choice else ""
        word = "holds here" if validity.holds else UNTOLD
        return pd.DataFrame([{"test": score, "endpoint": "", "claim_word": word}])
    found = found[found["endpoint"].isin(claim.directions)]
    as_claimed = (found["word"] == "higher") == (found["endpoint"].map(claim.directions) > 0)
    words = [found["word"] == "no difference", ~found["word"].isin(["lower", "higher"]), as_claimed]
    said = np.select(words, ["does not", UNTOLD, "holds here"], default="opposite here")
    return found.assign(test=found["name"], of=found["endpoint"], claim_word=said)


def _readings(effects: pd.DataFrame) -> pd.DataFrame:
    """Whether what moves the head's reading of the middle moves what a lens finds there."""
    through = {REPRESENTATION: REPRESENTATION_LENS, SKIPPED: SKIPPED_LENS}
    own = effects.assign(of=effects["endpoint"].map(through)).dropna(subset="of")
    lens = effects.rename(columns={"endpoint": "of"})
    pairs = own[["name", "endpoint", "of", "word"]].merge(lens, on=["name", "of"], suffixes=("_own", ""))
    moved = pairs["word_own"].isin(["lower", "higher"])
    readout, held = moved & (pairs["word"] == "no difference"), moved & (pairs["word"] == pairs["word_own"])
    said = np.select([readout, held], ["readout", "representation"], default=UNTOLD)
    return pairs.assign(test=pairs["name"], claim_word=said)


def words_of(judged: pd.DataFrame) -> list[tuple[str, int]]:
    """Every word that the tests of a claim got, with how often, the surest first; "no test" without any."""
    counts = judged["claim_word"].value_counts()
    return [(word, int(counts[word])) for word in WORDS if word in counts] or [("no test", 0)]


def claims_table(findings: Findings) -> pd.DataFrame:
    """A row for each test of each claim, and for each claim without one."""
    rows = []
    for claim in claims_of(findings):
        judged = judge(claim, findings)
        tests = judged[["test", "endpoint", "claim_word"]].itertuples(index=False, name=None)
        rows += [(claim.said, *test) for test in tests] or [(claim.said, "", "", "no test")]
    return pd.DataFrame(rows, columns=["claim", "test", "endpoint", "word"])
