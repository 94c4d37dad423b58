"""The golden shelf from a command line; see README.md beside this file."""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

# As in the tests: before torch is loaded.
os.environ.update(OMP_WAIT_POLICY="passive", OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
ROOT = Path(__file__).parents[2]
PYTEST = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
sys.path[:0] = [str(ROOT / path) for path in PYTEST["pythonpath"]]

from golden.shelf import SHELF, exactly, nearly, recorded, rooms, store, stored


def main(words: Sequence[str] | None = None) -> int:
    """Write, record or compare. Exit code 1 if something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.golden", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    writing = commands.add_parser("write", help="write the shelf again (tolerant form)")
    recording = commands.add_parser("record", help="record every bit of what the code does, on this machine")
    recording.add_argument("--to", type=Path, required=True, metavar="DIR")
    comparing = commands.add_parser("compare", help="record again, and compare with a recording, bit for bit")
    comparing.add_argument("recording", type=Path, metavar="DIR")
    for command in (writing, recording, comparing):
        command.add_argument("--room", action="append", choices=list(rooms()), help="by default all")
    asked = parser.parse_args(words)
    different = 0
    for room in asked.room or rooms():
        now = recorded(room, exact=asked.command != "write")
        shelf = {"write": SHELF, "record": getattr(asked, "to", None)}.get(asked.command)
        before = stored(room, shelf or asked.recording)
        different += shown(room, before, now, exact=asked.command != "write")
        if shelf is not None:
            store(room, now, shelf)
    print(f"{different} goldens differ")
    return int(asked.command == "compare" and different > 0)


def shown(room: str, before: dict[str, str], now: dict[str, str], *, exact: bool) -> int:
    """Say what differs; how many goldens do."""
    compare, different = exactly if exact else nearly, 0
    for name in sorted(before.keys() | now.keys()):
        if name not in before or name not in now:
            problem = "new" if name in now else "gone"
        else:
            problem = compare(name, before[name], now[name])
        if problem:
            different += 1
            print(f"=== {room}/{name}\n{problem}")
    return different


if __name__ == "__main__":
    sys.exit(main())
