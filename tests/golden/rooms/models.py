"""Every command that takes a model or a trace, on one tiny model."""

from __future__ import annotations

import dataclasses
from typing import Any

from golden.recorder import Recorder
from golden.world import FEW_TEXTS, MODELS, OTHER_TEXTS, TEXTS

MACHINE = ("--hardware", "machine.toml")
POLICIES = {
    "static": "static:exit=3",
    "threshold": "threshold:signal=max_prob,value=0.05,exits=1+2+3",
    "thresholds": "thresholds:signal=entropy,values=4.1+4.4,exits=1+3",
    "patience": "patience:times=1,exits=1+2+3",
}
STRATEGIES = ("propagate", "recompute", "speculate")
DECODED = ("--prompt-tokens", 8, "--new-tokens", 8)
RUN = ("-w", TEXTS, "--tokens", 960, *MACHINE, "--floor", 0.9, "--floor", 0.8)
TIMED = ("-w", TEXTS, *DECODED, "--prompts", 3, "--rounds", 1, "--seconds", 60)


def record(recorder: Recorder, model: str) -> None:
    """All of it: what is measured, replayed, tuned, decoded, timed, and found by a run.

    What is the same for every kind of model is done for the first one only.
    """
    heads, trace = measured(recorder, model)
    replayed(recorder, model, heads, trace)
    tuned(recorder, model, heads, trace)
    decoded(recorder, model, heads, trace)
    found_by_a_run(recorder, model)
    if model == MODELS[0]:
        more(recorder, model, trace)


def measured(recorder: Recorder, model: str) -> tuple[str, str]:
    """Exit heads and a trace, in memory and layer by layer."""
    heads, trace = "heads.safetensors", "trace"
    fitting = ("--tokens", 600, "--kv-maps", 2, "--short-list", 64)
    recorder.command("heads-fit", "heads", "fit", model, "-w", OTHER_TEXTS, *fitting, "-o", heads, "--json")
    recorder.tensors("heads-file", heads)
    sizes = ("-w", TEXTS, "--tokens", 640, "--signals", "all")
    recorder.command("trace", "trace", model, *sizes, "--heads", heads, "-o", trace, "--json")
    recorder.trace("trace", trace)
    recorder.listing("trace", trace)
    plain = ("-w", FEW_TEXTS, "--tokens", 200, "--exits", "1,3", "--context", 32)
    recorder.command("trace-streamed", "trace", model, *plain, "--stream", "-o", "streamed")
    recorder.trace("trace-streamed", "streamed")
    recorder.command("score", "score", trace, "--json")
    return heads, trace


def replayed(recorder: Recorder, model: str, heads: str, trace: str) -> None:
    """Policies on the trace: replayed, priced, and run again on the same text."""
    for kind, policy in POLICIES.items():
        asked = ("replay", trace, "-p", policy)
        recorder.command(f"replay-{kind}", *asked, *MACHINE, "--explain")
        for kv in STRATEGIES:
            recorder.command(f"replay-{kind}-{kv}", *asked, *MACHINE, "--kv", kv, "--json")
    mapped = ("replay", trace, "-p", "static:exit=2", "--kv", "mapped")
    recorder.command("replay-mapped", *mapped, "--json")
    batched = ("replay", trace, "-p", POLICIES["threshold"], *MACHINE, "--batch", 4)
    recorder.command("replay-batched", *batched, "--json")
    oracle = ("replay", trace, "-p", "oracle:which=first_match", "--json")
    recorder.command("replay-oracle", *oracle)
    executed = ("replay", trace, "-p", POLICIES["threshold"], "--execute", "--heads", heads, "--model", model)
    recorder.command("rerun", *executed, "--json")
    recorder.command("rerun-recompute", *executed, "--kv", "recompute", "--json")
    ranked(recorder, trace)


def ranked(recorder: Recorder, trace: str) -> None:
    """The ranking of all policies on a trace, and its frontier, by the public functions."""
    import numpy as np

    import offramp

    loaded = offramp.Trace.load(trace)
    machine = offramp.find_machine("machine.toml")
    ranking = offramp.ranking(loaded, machine, floors=(0.9, 0.8))
    recorder.keep("ranking.json", recorder.normal.json(plain(ranking)))
    frontier = offramp.frontier(loaded, "max_prob")
    # How many points it has depends on which floats are equal: what holds at some thresholds does not.
    places = np.searchsorted(-frontier.threshold, -np.linspace(0.2, 0.02, 19), side="right") - 1
    names = ("agreement", "skip_ratio", "speedup", "speedup_without_probes")
    recorder.arrays("frontier", {name: getattr(frontier, name)[places] for name in names})


def tuned(recorder: Recorder, model: str, heads: str, trace: str) -> None:
    """Floors: searched, certified on replays and on decoded documents, and predicted for another text."""
    floor = ("--floor", "agreement=0.8")
    recorder.command(
        "tune-replayed", "tune", trace, *floor, *MACHINE, "--model", "none", "-o", "replayed.json"
    )
    recorder.json_file("tune-replayed", "replayed.json")
    decoding = ("--model", model, "--heads", heads, *DECODED, "--documents", 12, "-o", "tuned.json")
    recorder.command("tune", "tune", trace, *floor, *MACHINE, *decoding, "--json")
    recorder.json_file("tuned", "tuned.json")
    recorder.command("predict-tuned", "predict", "tuned.json", "--trace", trace, *MACHINE, "--unseen")
    other = ("--trace", "streamed", *MACHINE, "--json")
    recorder.command("predict", "predict", POLICIES["static"], *other)


def decoded(recorder: Recorder, model: str, heads: str, trace: str) -> None:
    """Answers, and the time they take by the clock of the goldens."""
    asked = ("generate", model, "--max-new-tokens", 10, "--heads", heads)
    one = (*asked, "--prompt", "the cat sat on", "--check", "--json")
    for kv in STRATEGIES:
        recorder.command(f"generate-{kv}", *one, "-p", POLICIES["threshold"], "--kv", kv)
    recorder.command("generate-mapped", *one, "-p", "static:exit=2", "--kv", "mapped")
    two = ("--prompt", "the cat", "--prompt", "a model reads one", "-p", POLICIES["patience"])
    recorder.command("generate-two", *asked, *two)
    drawn = ("--prompt", "deep layers", "--temperature", 0.8, "--top-k", 20, "--seed", 3, "--json")
    recorder.command("generate-drawn", *asked, *drawn, "-p", POLICIES["threshold"])
    bench = ("bench", model, "-p", POLICIES["threshold"], *TIMED, "--heads", heads)
    recorder.command("bench", *bench, "--trace", trace, *MACHINE, "-o", "bench.json", "--json")
    recorder.json_file("bench-file", "bench.json")


def found_by_a_run(recorder: Recorder, model: str) -> None:
    """A run that decodes for real, and what is done with its folder."""
    asked = ("run", model, *RUN)
    recorder.command("run", *asked, "--minutes", 1, "-o", "run", "--json")
    recorder.json_file("run-summary", "run/summary.json")
    recorder.listing("run", "run")
    recorder.command("run-again", *asked, "--minutes", 1, "-o", "run")
    recorder.command("score-of-a-run", "score", "run")


def more(recorder: Recorder, model: str, trace: str) -> None:
    """Another floor, another search, accelerations together, and a run without decoding."""
    nll = ("--floor", "nll=0.3", *MACHINE, "--model", "none", "--search", "evolution", "-o", "nll.json")
    recorder.command("tune-nll", "tune", trace, *nll, "--json")
    combined = ("--combine", "prune:drop=3", "--combine", "exits", "-p", "static:exit=3")
    recorder.command("combine", "bench", model, *TIMED, *combined, "-o", "combined.json", "--json")
    recorder.page("combine", "combined.html")
    recorder.page("run", "run/report.html")
    recorder.command("score-of-two", "score", trace, "streamed", "--json")
    asked = ("run", model, *RUN)
    recorder.command("run-predicted", *asked, "--no-decode", "-o", "predicted")
    recorder.json_file("run-predicted-summary", "predicted/summary.json")


def plain(value: Any) -> Any:
    """A result as JSON: records by their fields, arrays as lists."""
    import numpy as np

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
