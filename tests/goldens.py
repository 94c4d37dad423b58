"""What every command says and writes, kept so that a change of the code can be held against it.

    python tests/goldens.py record FILE      what the checked-out code does
    python tests/goldens.py compare OLD NEW  what differs, line by line; exit code 1 if anything does

Both files must come from one machine: arithmetic differs between processors. To hold a change against an
older commit, record there too: `git worktree add ../old COMMIT`, then `PYTHONPATH=../old/src python
tests/goldens.py record OLD`. Machines are given as profiles, so that no number depends on a stopwatch;
of what is timed all the same (`bench`, a study's run), only the shape is kept: keys, headings, file names.
`--real` adds smollm2 to the tiny models (minutes).
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import html
import io
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
REAL = "smollm2"
PROFILE = """
kind = "roofline"
name = "made up"
description = "a machine of the goldens"
source = "made up"
bytes_per_second = 2e10
launch_seconds = 1e-6
decision_seconds = 2e-6
[flops_per_second]
float32 = 1e11
bfloat16 = 2e11
"""
STUDY = """
models = [{{ name = "one", source = "{one}" }}, {{ name = "two", source = "{two}" }}]
workloads = [{{ name = "words", source = "jsonl:{words}#text" }}]
policies = ["league", "tuned", "static:exit=2"]
transforms = ["none", "int8"]
machines = [{{ name = "made up", source = "{profile}" }}]
pairs = [{{ kind = "seed", first = "one", second = "two" }}]
[study]
name = "goldens"
tokens = 480
threads = 1
floors = [0.9]
draws = 100
"""
CHANGING = (
    (re.compile(r"\b(?=\d*[a-f])[0-9a-f]{12,64}\b"), "<hash>"),
    (re.compile(r"load average [\d., ]+"), "<load>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(\+00:00| UTC)?"), "<time>"),
    (re.compile(r"\b(\d+(\.\d+)? to )?\d+(\.\d+)?(e-\d+)? (s|ms|seconds|minutes|tokens/s)\b"), "<seconds>"),
)
"""What differs from one run to the next although nothing changed."""
UNSTABLE = re.compile(
    r"second|time|date|load|memory|wall|bytes_free|python|versions|pid|inode|mtime|measured_at"
)
"""Keys of JSON objects whose numbers a stopwatch or the machine gives, unless a profile does."""


class Recorder:
    """Runs commands in a folder of its own and keeps what each said and left there, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, str] = {}

    def run(self, name: str, *arguments: object, shape: bool = False, code: int = 0) -> None:
        """Run `offramp` with these arguments. shape: keep only the shape of what is timed."""
        print(f"  {name}", file=sys.stderr)
        ended, out, err = offramp(*arguments)
        if ended != code:
            raise SystemExit(f"{name}: exit code {ended} instead of {code}\n{out}\n{err}")
        lines = out.splitlines()
        if "--json" in arguments:
            self.keep(f"{name}: json", json_text(json.loads(lines[-1]), shape=shape))
        elif not shape:
            self.keep(f"{name}: stdout", out)
        if not shape:
            self.keep(f"{name}: stderr", err)

    def files(self, name: str, path: Path, *, shape: bool = False) -> None:
        """Keep what lies in a folder: text of pages by section, JSON, digests of columns and tensors."""
        found = [
            (f"{name}: {file.relative_to(path)}", content_of(file, shape=shape))
            for file in path.rglob("*")
            if file.is_file() and file.name != ".lock" and "executions" not in file.parts
        ]
        # What lies in folders that are named by a hash of the code, too, comes in the order of its content.
        for key, text in sorted((self.steady(key), self.steady(text)) for key, text in found):
            self.keep(key, text)

    def keep(self, name: str, text: str) -> None:
        """Keep a text without what changes from run to run."""
        key = self.steady(name)
        while key in self.found:
            key += "'"
        self.found[key] = self.steady(text)

    def steady(self, text: str) -> str:
        """A text without what differs from run to run."""
        text = text.replace(str(self.folder), "<folder>")
        for pattern, stands in CHANGING:
            text = pattern.sub(stands, text)
        return text


def offramp(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process."""
    from offramp.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["offramp", *map(str, arguments)]),
        mock.patch.dict(os.environ, COLUMNS="100"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0), out.getvalue(), err.getvalue()
    return 0, out.getvalue(), err.getvalue()


def json_text(value: Any, *, shape: bool) -> str:
    """JSON as lines; of a shape, the keys alone."""
    if shape:
        return "\n".join(sorted(set(key_paths(value))))
    return json.dumps(steady(value), indent=1, sort_keys=True, ensure_ascii=False)


def key_paths(value: Any, path: str = "") -> Iterator[str]:
    """Every key with those above it; entries of lists count as one."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield f"{path}.{key}"
            yield from key_paths(part, f"{path}.{key}")
    elif isinstance(value, list):
        for part in value:
            yield from key_paths(part, f"{path}[]")


def steady(value: Any) -> Any:
    """JSON without the numbers that a stopwatch gave."""
    if isinstance(value, dict):
        return {
            key: "<unsteady>" if UNSTABLE.search(key) and "seconds_per_token" not in key else steady(part)
            for key, part in value.items()
        }
    return [steady(part) for part in value] if isinstance(value, list) else value


def content_of(file: Path, *, shape: bool) -> str:
    """What a file says, in the form that a difference is best read in."""
    if file.suffix == ".html":
        return page_text(file.read_text(encoding="utf-8"), shape=shape)
    if file.suffix == ".json":
        return json_text(json.loads(file.read_text(encoding="utf-8")), shape=shape)
    if file.suffix == ".parquet" and not shape:
        return columns_text(file)
    if file.suffix in (".csv", ".txt", ".md", ".cff", ".toml") and not shape:
        return file.read_text(encoding="utf-8")
    return file.suffix


def columns_text(file: Path) -> str:
    """A digest of every column."""
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    digests = []
    for name in table.column_names:
        digest = hashlib.sha256(repr(table.column(name).to_pylist()).encode()).hexdigest()
        digests.append(f"{name} {table.column(name).type} {digest[:10]}")
    return "\n".join([f"{table.num_rows} rows", *digests])


def page_text(page: str, *, shape: bool) -> str:
    """The words of a page, a line for each element that ends one; of a shape, its headings."""
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    if shape:
        return "\n".join(
            html.unescape(re.sub(r"<[^>]*>", "", one)) for one in re.findall(r"<h[12].*?</h[12]>", page)
        )
    page = re.sub(r"</(p|h\d|li|tr|section|details|summary|figure|figcaption|svg|text)>", "\n", page)
    text = html.unescape(re.sub(r"<[^>]*>", " ", page))
    return "\n".join(line for line in (" ".join(line.split()) for line in text.splitlines()) if line)


def record_model(
    recorder: Recorder, model: object, words: str, tokens: int, exits: tuple[int, int], name: str
) -> None:
    """Every command that takes a model, on one model."""
    folder, run = recorder.folder / name, recorder.run
    folder.mkdir()
    profile = recorder.folder / "machine.toml"
    few, late = exits
    maps = f"{few},{late}" if model == REAL else few  # where one layer follows, there is nothing to map to
    heads, trace = folder / "heads.safetensors", folder / "trace"
    fitting = ("--tokens", tokens // 2, "--classifiers", "--kv-maps", maps)
    run(f"{name} heads", "heads", "fit", model, "-w", words, *fitting, "-o", heads, "--json")
    traced = ("trace", model, "-w", words, "--tokens", tokens, "--heads", heads, "-o", trace)
    run(f"{name} trace", *traced, "--signals", "logit_gap,restricted", "--json")
    recorder.files(f"{name} trace", trace)
    run(f"{name} score", "score", trace)
    run(f"{name} score json", "score", trace, "--json")
    policies = {
        "static": f"static:exit={late}",
        "threshold": f"threshold:signal=max_prob,value=0.5,exits={few}+{late}",
        "patience": f"patience:times=1,exits={few}+{late}",
    }
    for kind, policy in policies.items():
        asked = ("replay", trace, "--policy", policy, "--hardware", profile)
        run(f"{name} replay {kind}", *asked, "--explain")
        for kv in ("propagate", "mapped", "recompute", "speculate"):
            run(f"{name} replay {kind} {kv}", *asked, "--kv", kv, "--json")
    executed = (
        "replay",
        trace,
        "--policy",
        policies["threshold"],
        "--execute",
        "--heads",
        heads,
        "--model",
        model,
    )
    run(f"{name} replay executed", *executed)
    run(f"{name} replay executed json", *executed, "--json")
    floor = ("--floor", "agreement=0.8", "--hardware", profile)
    run(f"{name} tune replayed", "tune", trace, *floor, "-o", folder / "replayed.json", "--heads", heads)
    decoding = (
        "--model",
        model,
        "--heads",
        heads,
        "--new-tokens",
        8,
        "--prompt-tokens",
        8,
        "--documents",
        12,
    )
    run(f"{name} tune", "tune", trace, *floor, *decoding, "-o", folder / "tuned.json", "--json")
    run(
        f"{name} predict",
        "predict",
        folder / "tuned.json",
        "--trace",
        trace,
        "--hardware",
        profile,
        "--unseen",
    )
    run(
        f"{name} predict json",
        "predict",
        policies["static"],
        "--trace",
        trace,
        "--hardware",
        profile,
        "--json",
    )
    answer = (
        "generate",
        model,
        "--prompt",
        "the cat sat on",
        "--max-new-tokens",
        12,
        "--heads",
        heads,
        "--json",
    )
    for kv in ("propagate", "mapped", "recompute", "speculate"):
        run(
            f"{name} generate {kv}",
            *answer,
            "--policy",
            policies["threshold"],
            "--kv",
            kv,
            "--check",
            shape=True,
        )
    bench = (
        "--prompts",
        2,
        "--prompt-tokens",
        8,
        "--new-tokens",
        8,
        "--rounds",
        1,
        "--seconds",
        3,
        "-w",
        words,
    )
    run(
        f"{name} bench",
        "bench",
        model,
        "--policy",
        policies["threshold"],
        *bench,
        "--heads",
        heads,
        "--json",
        shape=True,
    )
    combined = ("--combine", "int8", "--combine", "exits", "--policy", policies["threshold"])
    run(f"{name} combine", "bench", model, *combined, *bench, "--json", shape=True)
    asked = ("run", model, "-w", words, "--tokens", tokens, "--hardware", profile)
    run(f"{name} run", *asked, "--no-decode", "-o", folder / "run")
    recorder.files(f"{name} run", folder / "run")
    run(f"{name} run json", *asked, "--no-decode", "-o", folder / "run", "--json")


def record(target: Path, *, real: bool) -> None:
    """Run everything and write what was found."""
    import torch

    from tiny_models import CHAT_TEMPLATE, write_documents, write_llama

    folder = (
        Path(tempfile.gettempdir()) / "offramp-goldens"
    )  # of one name: workloads are called by their path
    folder.mkdir()
    torch.set_num_threads(1)
    try:
        with mock.patch.dict(
            os.environ, OFFRAMP_CACHE=str(folder / "cache"), HOME=str(folder), OMP_NUM_THREADS="1"
        ):
            recorder = Recorder(folder)
            (folder / "machine.toml").write_text(PROFILE)
            words = write_documents(folder / "words.jsonl")
            one = write_llama(folder / "one", chat_template=CHAT_TEMPLATE)
            two = write_llama(folder / "two", num_hidden_layers=3, initializer_range=0.1)
            record_model(recorder, one, f"jsonl:{words}#text", 960, (2, 3), "tiny")
            if real:
                record_model(recorder, REAL, "prose:short", 1500, (12, 25), "smollm2")
            record_studies(recorder, one, two, words)
            for what in ("models", "workloads", "policies", "signals", "hardware", "transforms"):
                recorder.run(f"list {what}", "list", what)
        target.write_text(json.dumps(recorder.found, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    finally:
        shutil.rmtree(folder)
    print(json.dumps({"benchmark": "goldens", "kept": len(recorder.found), "file": str(target)}))


def record_studies(recorder: Recorder, one: Path, two: Path, words: Path) -> None:
    """A study of two models, its report, and a comparison of run folders."""
    folder = recorder.folder / "studies"
    folder.mkdir()
    study = folder / "goldens.toml"
    profile = recorder.folder / "machine.toml"
    study.write_text(STUDY.format(one=one, two=two, words=words, profile=profile))
    recorder.run("study plan", "study", "plan", study)
    recorder.run("study run", "study", "run", study, "-o", folder / "study", "--workers", 1, shape=True)
    recorder.run("study status", "study", "status", study, "-o", folder / "study", shape=True)
    recorder.run("study report", "study", "report", study, "-o", folder / "study", shape=True)
    recorder.files("study", folder / "study")
    compared = ("compare", recorder.folder / "tiny" / "run", folder / "study", "--mixed")
    recorder.run("compare", *compared, "-o", folder / "compared", "--json")
    recorder.files("compare", folder / "compared")


def compare(old: Path, new: Path) -> int:
    """Print what differs; how many entries do."""
    before, after = (json.loads(path.read_text()) for path in (old, new))
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in differing:
        print(f"=== {name}")
        if name not in before or name not in after:
            print("only in the", "new" if name in after else "old")
            continue
        lines = difflib.unified_diff(before[name].splitlines(), after[name].splitlines(), lineterm="", n=1)
        print("\n".join(line[:300] for line in lines))
    print(
        json.dumps({"benchmark": "goldens", "compared": len({*before, *after}), "differing": len(differing)})
    )
    return len(differing)


def main(words: Sequence[str] | None = None) -> int:
    """Record or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("file", type=Path)
    recording.add_argument("--real", action="store_true")
    comparing = commands.add_parser("compare")
    comparing.add_argument("old", type=Path)
    comparing.add_argument("new", type=Path)
    asked = parser.parse_args(words)
    if asked.command == "record":
        record(asked.file, real=asked.real)
        return 0
    return int(compare(asked.old, asked.new) > 0)


if __name__ == "__main__":
    sys.exit(main())
