"""How the lab's endpoints, comparisons and claims are called, and said."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.lab.effects.claims import Judged
from offramp.lab.effects.effect import Effect
from offramp.lab.effects.factorial import CORNERS_NAME
from offramp.lab.effects.families import CACHED, DEEPER, SPED, WIDER
from offramp.lab.effects.runs import (
    CALIBRATION,
    CONTINUED,
    DENSE,
    DEPTH,
    EXIT_LOSS,
    FROZEN,
    MAMBA,
    MIXTURE,
    ORACLE,
    PLAIN,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SKIPPED,
    SKIPPED_CODE,
    SKIPPED_LENS,
    TUNED,
)
from offramp.lab.effects.study import LabFindings
from offramp.report.formats import NumberFormat, interval_text, listed, thousandths
from offramp.report.names import in_sentence
from offramp.report.sections.claims import probability, signed
from offramp.scoring.rank_correlation import LEVEL

ENDPOINT_NAMES = {
    SKIPPED: "Layers skipped",
    SKIPPED_LENS: "Layers skipped, KL lens",
    REPRESENTATION: "Representation",
    REPRESENTATION_LENS: "Representation, KL lens",
    CALIBRATION: "Calibration error",
    SKIPPED_CODE: "Layers skipped on code",
    SPED: "Representation per doubling of tokens",
    DEPTH: "Layers per step",
}
EFFECT_NAMES = {
    CORNERS_NAME: "Llama-like for GPT-2-like",
    "norm": "RMSNorm for LayerNorm",
    "mlp": "SwiGLU for GELU",
    "positions": "rotary for learned positions",
    "heads": "grouped for all key-value heads",
    "residual": "residuals scaled by depth",
    f"{DENSE} - {MIXTURE}": "dense for a mixture of experts",
    f"{MIXTURE} - {MAMBA}": "a mixture for a state space",
    f"{DENSE} - {MAMBA}": "dense for a state space",
    f"{EXIT_LOSS} - {CONTINUED}": "early-exit loss for training on",
    f"{FROZEN} - {CONTINUED}": "trained exits for training on",
    f"{TUNED} - {PLAIN}": "instructions for plain text",
    WIDER: "twice the width",
    DEEPER: "twice the depth",
}
SCORE_NAMES = {
    "eas_logit": "EAS, logit",
    "eas_centred_logit": "EAS, centred logit",
    "eas_hidden": "EAS, hidden state",
    "mean_kl": "mean KL (turned)",
    "block_influence": "block influence (turned)",
    ORACLE: "saturation oracle",
}
NO_TEST = "no test"
"""What stands in the place of a claim's words where it could not be tested."""
number: NumberFormat = signed(thousandths)


def endpoint_name(endpoint: str) -> str:
    """An endpoint in words."""
    return ENDPOINT_NAMES.get(endpoint, endpoint)


def effect_name(name: str) -> str:
    """What is compared, in words: the level with what it takes the place of."""
    return EFFECT_NAMES.get(name, name)


def score_name(name: str) -> str:
    """A score in words."""
    return SCORE_NAMES.get(name, name)


def effect_text(effect: Effect) -> str:
    """ "−0.099 (−0.138 to −0.061)"; without an error of a seed the value alone."""
    limits = interval_text(effect.low, effect.high, thousandths)
    return f"{number(effect.value)}{f' ({limits})' if limits else ''}"


def words_of(judged: Sequence[Judged]) -> list[tuple[str, int]]:
    """Every word that the tests of a claim got, with how often, the surest first; NO_TEST without any."""
    order = ("holds here", "representation", "readout", "opposite here", "does not", "cannot be told")
    counts = [(word, sum(one.word == word for one in judged)) for word in order]
    return [(word, count) for word, count in counts if count] or [(NO_TEST, 0)]


def sentences(judged: Sequence[Judged]) -> list[str]:
    """What a claim's tests say, a sentence for each word."""
    found = []
    for word, _ in words_of(judged):
        here = [one for one in judged if one.word == word]
        if not here:
            continue
        parts = [_test_text(one) for one in here]
        found.append(f"{word.capitalize()}: {'; '.join(parts)}.")
    return found


def _test_text(one: Judged) -> str:
    if one.effect is None:
        return score_name(one.name) if one.name else "no score"
    name = "" if one.endpoint in (SPED, DEPTH) else f"{effect_name(one.name)}, "
    if one.word == "cannot be told" and one.endpoint != one.effect.endpoint:  # a lens beside the own reading
        return f"{name}{in_sentence(endpoint_name(one.endpoint))}"
    text = f"{name}{in_sentence(endpoint_name(one.effect.endpoint))} {effect_text(one.effect)}"
    if one.word == "holds here" or one.word == "opposite here":
        return f"{text}, p {probability(one.effect.adjusted)}"
    if one.word == "cannot be told":
        return f"{text}{_why_untold(one.effect)}"
    return text


def _why_untold(effect: Effect) -> str:
    """Why an effect has no word: also where its interval leaves 0 out, which a reader would take for one."""
    if effect.name.endswith(MAMBA) and effect.endpoint in CACHED:
        return ", a fact about caches: recurrent layers run whatever exits say"
    excludes = effect.low is not None and effect.high is not None and not effect.low <= 0.0 <= effect.high
    why = []
    if effect.adjusted > LEVEL:
        why.append(f"p {probability(effect.adjusted)} among all tests of its family")
    after, p_after = effect.with_loss, effect.p_with_loss
    if after is not None and p_after is not None and (p_after > LEVEL or after * effect.value <= 0):
        why.append(f"{number(after)} (p {probability(p_after)}) with the loss as covariate")
    if excludes and why:
        return f", but {listed(why)}"
    return "" if effect.detectable is None else f", detectable from {thousandths(effect.detectable)}"


def scale(findings: LabFindings, *blocks: str) -> str:
    """The models that a claim is of: "12 layers, 96 wide, 8.0 million tokens"."""
    runs = findings.of(*blocks)
    layers, hidden = ({getattr(run, key) for run in runs} for key in ("layers", "hidden"))
    tokens = max((run.tokens[-1] for run in runs), default=0)
    return f"{_span(layers)} layers, {_span(hidden)} wide, {tokens / 1e6:.3g} million tokens"


def _span(values: set[int]) -> str:
    return listed([str(one) for one in sorted(values)]) if values else "0"
