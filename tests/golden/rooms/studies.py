"""A study of two models, planned, run and reported, and comparisons of folders."""

from __future__ import annotations

import json
from pathlib import Path

from golden.recorder import Recorder
from golden.rooms.models import MACHINE
from golden.world import TEXTS

MARGIN = "threshold:signal=margin,value=0.02,exits=1+2+3"
POLICIES = (
    "league",
    "tuned",
    "never",
    "static:exit=2",
    "schedule:first=3,last=1,length=16",
    "threshold:signal=max_prob,value=0.05,exits=1+2+3",
    MARGIN,
    "threshold:signal=logit_gap,value=0.5,exits=1+2+3",
    "threshold:signal=entropy,value=4.3,exits=1+2+3",
    "threshold:signal=hidden_cosine,value=0.9,exits=2+3",
    "threshold:signal=kl_to_previous,value=0.3,exits=2+3",
    "threshold:signal=js_to_previous,value=0.05,exits=2+3",
    "threshold:signal=top_k_overlap,value=0.5,exits=2+3",
    "threshold:signal=restricted_margin,value=0.02,exits=1+2+3",
    "threshold:signal=restricted_max_prob,value=0.05,exits=1+2+3",
    "thresholds:signal=margin,values=0.03+0.02+0.01,exits=1+2+3",
    "decaying:signal=margin,value=0.03,exits=1+2+3,length=16",
    "dynamic:signal=margin,value=0.02,exits=1+2+3,complexity=position,slope=-0.0005,centre=16",
    "adaptive:signal=margin,target=0.9,warmup=4,exits=1+2+3",
    "bandit:signal=margin,value=0.02,exits=1+2+3",
    "patience:times=1,exits=1+2+3,fact=restricted_top1",
    "sustained:signal=margin,value=0.02,times=2,exits=1+2+3",
    f"minimum:exit=2,policy=[{MARGIN}]",
    "filtered:signal=hidden_cosine,value=0.9,exit=2,policy=[threshold:signal=margin,value=0.02,exits=3]",
    f"monotone:policy=[{MARGIN}]",
    f"votes:need=all,of=[{MARGIN}]+[threshold:signal=max_prob,value=0.04,exits=1+2+3]",
    "shortlist:policy=[threshold:signal=restricted_max_prob,value=0.05,exits=1+2+3]",
    "oracle:which=first_match",
    "oracle:which=saturation",
)
STUDY = """
models = [
  {{ name = "dense", source = "dense", family = "tiny", generation = 1, released = "2024-01" }},
  {{ name = "mixture", source = "mixture", family = "tiny", generation = 2, released = "2025-01" }},
]
workloads = [{{ name = "words", source = "{texts}" }}]
policies = {policies}
machines = [{{ name = "made up", source = "machine.toml" }}]

[study]
name = "goldens"
title = "A study of the goldens"
tokens = 480
threads = 1
floors = [0.9, 0.8]
draws = 100
signals = ["all"]

[[heads]]
name = "none"

[[heads]]
name = "lens"
fit = ["{other}"]
tokens = 300
classifiers = ["correctness"]

[[exclude]]
kind = "replay"
heads = "lens"

[[exclude]]
kind = "decode"
heads = "lens"

[certify]
seconds = 5

[decode]
best = 2
floor = 0.8
prompts = 4
new_tokens = 8
rounds = 1
seconds = 30
"""
COMBINED = """
models = ["dense"]
workloads = [{{ name = "words", source = "{texts}" }}]
policies = []

[study]
name = "combined"
tokens = 200
threads = 1

[combine]
accelerations = ["prune:drop=3", "prompt_lookup", "exits"]
policy = "static:exit=3"
prompts = 3
new_tokens = 8
rounds = 1
seconds = 60
"""


def record(recorder: Recorder) -> None:
    """A study from its plan to its page, and what is made of its folder."""
    from golden.world import OTHER_TEXTS

    study = Path("goldens.toml")
    study.write_text(STUDY.format(texts=TEXTS, other=OTHER_TEXTS, policies=json.dumps(POLICIES)))
    out = ("-o", "study")
    recorder.command("plan", "study", "plan", study, *out)
    recorder.command("run", "study", "run", study, *out, "--workers", 1, "--json")
    recorder.command("status", "study", "status", study, *out, "--verify", "--json")
    recorder.command("report", "study", "report", study, *out)
    kept(recorder, "study", Path("study"))
    recorder.json_file("study-plan", "study/plan.json")
    recorder.keep("study-graph.txt", recorder.normal.text("\n".join(graph(Path("study")))))
    combined = Path("combined.toml")
    combined.write_text(COMBINED.format(texts=TEXTS))
    recorder.command("combined-run", "study", "run", combined, "-o", "combined", "--json")
    kept(recorder, "combined", Path("combined"))
    compared(recorder)


def graph(folder: Path) -> list[str]:
    """A line for each cell of a study's plan: what it is, by which kind of task, made of which."""
    from offramp.studies.folder import StudyFolder

    plan = StudyFolder(folder).read_plan()
    lines = []
    for cell in plan.cells:
        task = plan.tasks[cell.task]
        needs = (f"{role} by {plan.tasks[key].kind}" for role, key in sorted(task.needs.items()))
        lines.append(f"{cell.name}: {task.kind} of {', '.join(needs) or 'nothing'}")
    return lines


def kept(recorder: Recorder, name: str, folder: Path) -> None:
    """The results of every kind of task, the page and the tables of a study or a comparison."""
    for kind in sorted(path.name for path in folder.glob("tasks/*")):
        results = [
            json.loads(path.read_text()) for path in sorted(folder.glob(f"tasks/{kind}/*/result.json"))
        ]
        if results:
            recorder.keep(f"{name}-{kind}.json", recorder.normal.json_set(results))
    if (folder / "report.html").is_file():
        recorder.page(name, folder / "report.html")
    for path in sorted(folder.glob("*.csv")):
        recorder.text_file(f"{name}-{path.stem}", path)
    for path in sorted(folder.glob("*.parquet")):
        recorder.columns(f"{name}-{path.stem}", path)
    recorder.listing(name, folder)


def compared(recorder: Recorder) -> None:
    """A comparison of a run with the study."""
    run = ("run", "dense", "-w", TEXTS, "--tokens", 480, *MACHINE, "--floor", 0.8, "--no-decode", "-o", "one")
    recorder.command("one-run", *run)
    recorder.command("compare", "compare", "one", "study", "--mixed", "-o", "compared", "--json")
    kept(recorder, "compare", Path("compared"))
    recorder.command("report-of-a-run", "report", "one", "--json")
    recorder.command("report-of-two", "report", "one", "study", "--mixed")
