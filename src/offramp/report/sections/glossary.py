"""What the words on the pages mean."""

from __future__ import annotations

from markupsafe import Markup

from offramp.report.html import fragment
from offramp.scoring.reference import STUDY
from offramp.studies.comparison.results import Comparison

TERMS: dict[str, str] = {
    "Exit": (
        "The point after a decoder layer where the model could stop and answer. The last exit is the "
        "full model."
    ),
    "Exit head": (
        "What turns the hidden state at an exit into a prediction: the logit lens, which is the model's "
        "own final norm and output head, a linear lens before them, or an output head of the exit's own."
    ),
    "Agreement": (
        "The share of tokens for which an exit's most probable token is the full model's. It is not "
        "accuracy: the full model may be wrong."
    ),
    "Transform, untransformed": (
        "What was done to the model at load, such as 8-bit weights or layers left out, and the model as it "
        "was before. Agreement with the untransformed model counts both losses, by transform and by exit."
    ),
    "Policy": (
        "A rule that decides at each checked exit whether to stop: a signal, a threshold, and the "
        "exits it checks."
    ),
    "Linear lens": (
        "A linear map from the hidden state at an exit to an estimate of the last one, fitted on "
        "documents of its own and applied before the output head."
    ),
    "Probe": (
        "One check at one exit. It is paid for whether or not the token leaves there. Its kind says what is "
        "computed."
    ),
    "Probe kinds": (
        "Full head: the whole output head, which on small models costs as much as several layers. Restricted "
        "head: only its columns for a short list of frequent tokens. Candidates: only a few likely tokens. "
        "Cosine: how little the layer changed the hidden state. Classifier and network: a fitted guess from "
        "the hidden state whether the exit agrees."
    ),
    "Where a gain comes from": (
        "What a policy saves of plain decoding's cost of a token, in three parts: layers (less the repair of "
        "keys and values), output head, probes. They sum to 1 − policy / plain. Early exit is credited only "
        "with what it adds to the fastest decoder at the same floor that leaves no layer out."
    ),
    "Family": "All policies of one signal or rule on one kind of exit set; only its fastest member is shown.",
    "Oracle": (
        "A policy that knows the full model's answer. No decoder can follow it; it shows the limit at 100 % "
        "agreement. A policy that may change some answers can skip more."
    ),
    "Skip ratio": "The share of decoder layers not executed.",
    "Net speedup": (
        "Plain cost over the policy's cost per token: layers, probes, repair of keys and values, and head "
        "included. The page says whether it is predicted from times on a machine or from bytes moved."
    ),
    "Decoded for real": (
        "Text was generated with the policy and the layers it skipped were not executed; the time is the "
        "stopwatch's, taken in short blocks that alternate with plain decoding."
    ),
    "Faster, slower, equivalent, unresolved, defect": (
        "What a timing answers of a policy against the fastest plain decoder. Equivalent: within the gain "
        "that counts as worth it, either way. Unresolved at ± x %: the interval is too wide to say. All "
        "contenders take turns in blocks of a few tokens, so that a busy machine slows all of them alike; "
        "intervals are over prompts, and hold however the timing was stopped. Defect: a wrong output, other "
        "layers than were claimed, or the same decoder twice that comes out unequal; it changes no verdict."
    ),
    "Replayed, rerun, executed": (
        "Replayed: decisions on a given text with the full model's own keys and values, from the measurement "
        "alone. Rerun: the same with the keys and values that the policy leaves. Executed: the policy's own "
        "text, decoded freely; each token is judged by the full model on the same prefix. Only executed "
        "agreement is certified."
    ),
    "Short list": (
        "Some 2,048 frequent tokens: those that follow most often in the documents that exit heads were "
        "fitted on, or without such heads the first ids of the vocabulary. An output read off it costs that "
        "many columns of the output head instead of all, and is wrong where the full model's token is not on "
        "it. That needs no early exit: “shortlist:policy=[never],at=all” is plain decoding with a smaller "
        "head, and early exit is credited only with what it adds to that."
    ),
    "Propagate, mapped, recompute, speculate": (
        "Ways to supply keys and values of skipped layers. Propagate projects them from the state at the "
        "exit (approximate). Mapped first maps that state to what each skipped layer would have been given "
        "(approximate, closer). Recompute runs the layers later (exact for deep tokens). Speculate treats "
        "early answers as drafts that the full model verifies: the output is the full model's."
    ),
    "Repair of keys and values": (
        "What later tokens need from the layers that a token skipped has to be supplied, and is charged."
    ),
    "Document": (
        "One text, or one prompt with its answer. Tokens of one document depend on each other, so documents "
        "are what intervals and guarantees count."
    ),
    "Certificate": (
        "A policy decoded documents that the search never saw, and the share of generated tokens that are "
        "not the full model's choice on the same prefix stays within the floor, for documents like these. "
        "Too few documents: not certifiable, whatever the policy."
    ),
    "Replay bound": (
        "The same statement of a replay, where later tokens read the full model's own keys and values: it "
        "says nothing of decoding, where they read what the policy leaves."
    ),
    "δ (delta)": "The chance that a certificate is wrong. 10 % means 90 % confidence.",
    "Betting bound, Hoeffding–Bentkus, conformal risk control": (
        "Ways to bound the loss on documents not seen from those seen, without assuming how losses are "
        "spread."
    ),
    "Pareto front": "The candidates that no other one beats in both loss and time.",
    "Roofline": (
        "A machine reduced to arithmetic per second, bytes per second and a fixed cost per step; each "
        "part of a step takes as long as the slower of the first two needs."
    ),
    "Lockstep": (
        "In a batch all sequences run the same layers: a step may stop early only when every one of them may."
    ),
    "Break-even": "The price of one part of a step at which early exit would just be worth its trouble.",
    "First-match oracle": (
        "Stops at the first layer that agrees with the full model. It overstates what can be saved, "
        "since later layers may disagree again. At 100 % agreement."
    ),
    "Saturation oracle": (
        "Stops at the first layer from which all later layers agree, at 100 % agreement. No policy can know "
        "this."
    ),
    "Representation quality": (
        "Area under agreement over the share of layer work done. High: early layers are already right."
    ),
    "Information increment": (
        "How early the information about the final prediction arrives. High: nearly all of it early."
    ),
    "Calibration": (
        "How much an exit's confidence tells about its own agreement, after recalibration on other documents."
    ),
    "EAS": (
        "Early-exit Adaptability Score of the study “The Diminishing Returns of Early-Exit Decoding "
        f"in Modern LLMs” ({STUDY}), in several variants since its similarity is not published."
    ),
    "Interval": (
        "95 % interval from resampling whole documents, because tokens of one document depend on each other."
    ),
    "Pays, does not pay, too close to call": (
        "Pays: executed agreement is certified at the floor, and the lower limit of the measured speed lies "
        "above what counts as worth it (5 % unless you say otherwise). Does not pay: the upper limit lies "
        "below that, or nothing faster than plain decoding can be certified. Too close to call: else; what "
        "would settle it is named."
    ),
}


OWN: dict[str, str] = {
    "Cell": "One model on one workload through one kind of exit heads, with a machine where time is asked.",
    "Independently trained model": (
        "A training run of its own. Quantised, pruned or tuned variants of it are the same model read again, "
        "so they are no further evidence about models in general."
    ),
    "Bits per byte": (
        "The full model's surprise at the text, in bits, over the size of the text. It does not depend on "
        "how a model cuts text into tokens."
    ),
}
OF_PAIRS: dict[str, str] = {
    "Matched pair": (
        "Two models that differ in one thing, on the same documents: base and tuned, dense and mixture of "
        "experts, one generation and the next."
    ),
    "p, adjusted after Holm": (
        "The chance of so large a difference if there were none, made larger for the number of differences "
        "that were looked at."
    ),
}
OF_TRENDS: dict[str, str] = {
    "Theil–Sen slope": "The median of the slopes through all pairs of points (Theil 1950, Sen 1968).",
}
OF_VALIDITY: dict[str, str] = {
    "Kendall τ-b, Spearman ρ": (
        "How far two orders agree: by pairs that stand the same way round, and by ranks. From −1 to 1."
    ),
    "Error, model left out": (
        "How far the saving of a model is from what the score says, when the relation was fitted without it; "
        "the median, as a share of plain decoding's time."
    ),
}
SHARED = (
    "Exit",
    "Exit head",
    "Agreement",
    "Policy",
    "Family",
    "Oracle",
    "Skip ratio",
    "Net speedup",
    "Probe",
    "Faster, slower, equivalent, unresolved, defect",
    "Document",
    "Certificate",
    "First-match oracle",
    "Saturation oracle",
    "Representation quality",
    "Information increment",
    "Calibration",
    "EAS",
    "Interval",
)


def run_glossary() -> Markup:
    """The definitions as a list."""
    return fragment("macros", "glossary", TERMS)


def comparison_glossary(comparison: Comparison) -> Markup:
    """The definitions as a list; those of a part that the page lacks are left out."""
    terms = dict(OWN)
    terms |= OF_PAIRS if comparison.pairs else {}
    terms |= OF_TRENDS if comparison.trends else {}
    terms |= OF_VALIDITY if comparison.validity else {}
    terms |= {name: TERMS[name] for name in SHARED}
    return fragment("macros", "glossary", terms, "part")
