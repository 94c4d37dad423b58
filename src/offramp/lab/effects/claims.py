"""The claims of the study (arXiv 2603.23701), and the word that each test of them gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from offramp.lab.effects.effect import Effect
from offramp.lab.effects.factorial import CORNERS_NAME, NEWER
from offramp.lab.effects.families import SPED, WIDER
from offramp.lab.effects.runs import (
    CALIBRATION,
    DEPTH,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SKIPPED,
    SKIPPED_LENS,
)
from offramp.lab.effects.study import LabFindings

Word = Literal["holds here", "opposite here", "does not", "cannot be told", "readout", "representation"]


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


@dataclass(frozen=True)
class Judged:
    """The word of one test of a claim. effect: what was tested, None where there is nothing."""

    name: str
    endpoint: str
    word: Word
    effect: Effect | None = None


def judge(claim: Claim, findings: LabFindings) -> tuple[Judged, ...]:
    """The word of each test of a claim, none combined with another; empty where there is no test."""
    effects = [
        one
        for key in claim.families
        if key in findings.families
        for one in findings.families[key].effects
        if claim.names is None or one.name in claim.names
    ]
    if claim.said == READING:
        return _readings({(one.name, one.endpoint): one for one in effects})
    if claim.said == SCORE_CLAIM:
        found = findings.validity
        if found is None:
            return ()
        score = found.choice.score if found.choice else ""
        return (Judged(score, "", "holds here" if found.holds else "cannot be told"),)
    return tuple(
        Judged(one.name, one.endpoint, _word(one, claim.directions[one.endpoint]), one)
        for one in effects
        if one.endpoint in claim.directions
    )


def _word(effect: Effect, direction: int) -> Word:
    """What an effect says of a claim that expects this sign."""
    if effect.word == "no difference":
        return "does not"
    if effect.word not in ("lower", "higher"):
        return "cannot be told"
    return "holds here" if (effect.word == "higher") == (direction > 0) else "opposite here"


def _readings(effects: Mapping[tuple[str, str], Effect]) -> tuple[Judged, ...]:
    """Whether what moves the head's reading of the middle moves what a lens finds there."""
    found = []
    for (name, endpoint), one in effects.items():
        through = {REPRESENTATION: REPRESENTATION_LENS, SKIPPED: SKIPPED_LENS}.get(endpoint)
        other = effects.get((name, through or ""))
        if other is None:
            continue
        word: Word = "cannot be told"
        if one.word in ("lower", "higher") and other.word == "no difference":
            word = "readout"
        elif one.word in ("lower", "higher") and other.word == one.word:
            word = "representation"
        found.append(Judged(name, endpoint, word, other))
    return tuple(found)
