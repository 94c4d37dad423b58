"""Each kind of folder, written by a process that is killed, and by the same command again.

The work is done by a process of its own (`python -m golden.rooms.resumed`, started by `record`): it forks,
and forking a process that also runs other tests is unsafe.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from golden.normal import MACHINE_FACTS, Normaliser
from golden.recorder import Recorder, files_below, told
from golden.surroundings import offramp, surroundings
from tiny_models import write_documents

TEXTS = "jsonl:../many.jsonl#text"
LEARNING = ("exits", "train", "../dense", "-w", TEXTS, "--steps", 10, "--tokens", 2000, "-o", "out")
MACHINE = ("--hardware", "../machine.toml")
KINDS: dict[str, tuple[object, ...]] = {
    "trace": ("trace", "../dense", "-w", TEXTS, "--tokens", 3000, "-o", "out"),
    "streamed-trace": ("trace", "../dense", "-w", TEXTS, "--tokens", 3000, "--stream", "-o", "out"),
    "run": (
        "run",
        "../dense",
        "-w",
        TEXTS,
        "--tokens",
        6000,
        *MACHINE,
        "--floor",
        0.8,
        "--no-decode",
        "-o",
        "out",
    ),
    "study": ("study", "run", "../study.toml", "-o", "out"),
    "training-lens": (*LEARNING, "--kind", "lens", "--at", "1,3", "--no-kv-maps"),
    "training-block": (
        *LEARNING,
        "--kind",
        "block",
        "--at",
        "2",
        "--units",
        16,
        "--no-classifiers",
        "--no-kv-maps",
    ),
    "training-model": (*LEARNING, "--kind", "regularised", "--at", "2,3", "--lora", 4),
}
STUDY = f"""
models = [{{ name = "dense", source = "dense" }}]
workloads = [{{ name = "many", source = "{TEXTS.replace("../", "")}" }}]
policies = ["league", "tuned", "static:exit=2"]
machines = [{{ name = "made up", source = "machine.toml" }}]
[study]
name = "killed"
tokens = 3000
threads = 1
floors = [0.8]
draws = 50
"""
MOMENTS = ((1, 3), (5, 6))
"""After which share of the files that it puts in place a process is killed."""
SEALS = frozenset(("sha256",))
"""Keys of hashes of what else is in a file, times included."""
OF_A_PROCESS = frozenset(("journal.jsonl", "fingerprints.json", "locks"))
"""Files, and folders of them, that say when and in which process things were done."""


def record(recorder: Recorder) -> None:
    """Let a process of its own do it, in the same folder."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = [sys.executable, "-m", __name__, str(recorder.folder), str(int(recorder.normal.exact))]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise AssertionError(ended.stderr)
    for name, text in json.loads((recorder.folder / "goldens.json").read_text(encoding="utf-8")).items():
        recorder.keep(name, text)


def record_here(recorder: Recorder) -> None:
    """Every kind of folder, without a kill, and killed twice."""
    write_documents(recorder.folder / "many.jsonl", documents=96, words=60)
    (recorder.folder / "study.toml").write_text(STUDY)
    for name, words in KINDS.items():
        lines = [*killed_and_resumed(recorder, name, words)]
        recorder.keep(f"{name}.txt", recorder.normal.text("\n".join(lines)))


def killed_and_resumed(recorder: Recorder, name: str, words: tuple[object, ...]) -> Iterator[str]:
    """What a folder held after each kill, what the same command then said, and what became of the folder."""
    place, whole = recorder.folder / name, recorder.folder / f"{name}-whole"
    counted: list[Path] = []
    at_each_file(counted.append)
    finish(place, words)
    at_each_file(None)
    out = (place / "out").rename(whole)  # in the same place, since traces keep where their model lay
    for part, of in MOMENTS:
        moment = max(1, len(counted) * part // of)
        yield f"=== killed after {part}/{of} of its files, at {counted[moment - 1].name}"
        kill_at(moment, place, words)
        yield from files_below(place / "out")
        yield from (finish(place, words), "--- against a folder that was never interrupted")
        yield from compared(out, place / "out", recorder.normal)
        shutil.rmtree(place / "out")


def at_each_file(told_of: Callable[[Path], Any] | None) -> None:
    """Call something after each file that is put in place; None: nothing any more."""

    def replace(source: Any, target: Any, **options: Any) -> None:
        REPLACE(source, target, **options)
        assert told_of is not None
        told_of(Path(target))

    os.replace = REPLACE if told_of is None else replace


REPLACE = os.replace


def kill_at(moment: int, place: Path, words: tuple[object, ...]) -> None:
    """Run a command in a child that dies right after so many files are in place."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(target: Path) -> None:
            nonlocal seen
            seen += 1
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        at_each_file(count)
        finish(place, words)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        raise AssertionError(f"{words} ended before it was killed")


def finish(place: Path, words: tuple[object, ...]) -> str:
    """Run a command to its end in a folder; what it says."""
    place.mkdir(exist_ok=True)
    os.chdir(place)
    said = offramp(*words)
    if said.code != 0:
        raise AssertionError(f"{words}\n{said.out}\n{said.err}")
    return told(" ".join(["offramp", *map(str, words)]), said.code, said.out, said.err)


def compared(whole: Path, resumed: Path, normal: Normaliser) -> Iterator[str]:
    """For each file whether it is the same. Raises AssertionError unless all but durations are."""
    before, now = files_below(whole), files_below(resumed)
    if before != now:
        raise AssertionError(f"other files: {sorted({*before} ^ {*now})}")
    for name in before:
        first, second = whole / name, resumed / name
        if {first.name, first.parent.name} & OF_A_PROCESS or first.read_bytes() == second.read_bytes():
            continue
        if first.suffix == ".html":
            yield from pages_differing(name, *(normal.page(path.read_text()) for path in (first, second)))
            continue
        if first.suffix != ".json":
            raise AssertionError(f"{name} is another file than without a kill")
        keys = differing(first, second)
        if keys:
            yield f"{name}: other than without a kill in {', '.join(keys)}"
    yield f"{len(before)} files, and no others than without a kill"


def pages_differing(name: str, whole: str, resumed: str) -> Iterator[str]:
    """Lines of a page that are other ones."""
    if len(whole.splitlines()) != len(resumed.splitlines()):
        raise AssertionError(f"{name} has other lines than without a kill")
    for before, now in zip(whole.splitlines(), resumed.splitlines(), strict=True):
        if before != now:
            yield f"{name}: without a kill: {before}"
            yield f"{name}: now: {now}"


def differing(first: Path, second: Path) -> list[str]:
    """Keys whose values differ between two JSON files."""
    return sorted({*keys_differing(json.loads(first.read_text()), json.loads(second.read_text()))})


def keys_differing(first: Any, second: Any, where: str = "") -> Iterator[str]:
    """Paths of keys, without places in lists."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        for key in first.keys() - MACHINE_FACTS - SEALS:
            yield from keys_differing(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        for one, other in zip(first, second, strict=True):
            yield from keys_differing(one, other, f"{where}[]")
    elif first != second:
        yield where


def main(folder: Path, exact: bool) -> None:
    """Record in a folder with the world in it, and leave the goldens there as JSON."""
    recorder = Recorder(Normaliser(folder, exact))
    with surroundings(folder):
        record_here(recorder)
    (folder / "goldens.json").write_text(json.dumps(recorder.goldens), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), bool(int(sys.argv[2])))
