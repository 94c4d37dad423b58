"""Every kind of training of exits, and what reads what it leaves."""

from __future__ import annotations

from pathlib import Path

from golden.recorder import Recorder
from golden.world import FEW_TEXTS, TEXTS

LEARNING = ("-w", TEXTS, "--steps", 10, "--tokens", 1200)
KINDS: dict[str, tuple[object, ...]] = {
    "lens": ("--kind", "lens", "--at", "1,3", "--kv-maps"),
    "lens-of-a-rank": ("--kind", "lens", "--at", "1,3", "--rank", 4, "--no-classifiers", "--no-kv-maps"),
    "block": ("--kind", "block", "--at", "1,3", "--units", 16, "--no-kv-maps"),
    "shared": ("--kind", "block", "--at", "1,2,3", "--shared", "--no-classifiers", "--no-kv-maps"),
    "executed": ("--kind", "executed", "--from", "lens", "--leave", 0.4),
    "gate": ("--kind", "gate", "--from", "block", "--floor", 0.6, "--hardware", "machine.toml"),
    "regularised": ("--kind", "regularised", "--at", "2,3", "--lora", 4, "--keep", 2),
}


def record(recorder: Recorder) -> None:
    """Each kind of exits: what is said, the weights, and the record."""
    for name, options in KINDS.items():
        recorder.command(name, "exits", "train", "dense", *LEARNING, *options, "-o", name, "--json")
        for path in sorted(Path(name).rglob("*.safetensors")):
            recorder.tensors(f"{name}-{path.stem}-file", path)
        recorder.json_file(f"{name}-record", f"{name}/training.json")
        recorder.listing(name, name)
    recorder.command("lens-again", "exits", "train", "dense", *LEARNING, *KINDS["lens"], "-o", "lens")
    for name in ("block", "gate"):
        traced = ("--tokens", 200, "--heads", name, "-o", f"{name}-trace")
        recorder.command(f"{name}-trace", "trace", "dense", "-w", FEW_TEXTS, *traced)
        recorder.trace(f"{name}-trace", f"{name}-trace")
    recorder.command(
        "model-trace", "trace", "regularised", "-w", FEW_TEXTS, "--tokens", 200, "-o", "model-trace"
    )
    recorder.trace("model-trace", "model-trace")
