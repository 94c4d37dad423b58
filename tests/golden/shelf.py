"""The rooms of the shelf: what records each, where it is stored, and how two recordings are compared."""

from __future__ import annotations

import atexit
import difflib
import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from golden.closeness import difference
from golden.normal import Normaliser
from golden.recorder import Recorder
from golden.surroundings import surroundings
from golden.world import MODELS, write_world

SHELF = Path(__file__).parent / "shelf"
Goldens = dict[str, str]


def rooms() -> Mapping[str, Callable[[Recorder], None]]:
    """What records each room, by its name."""
    from golden.rooms import models, refusals, resumed, studies, training, turns, words

    return {
        **{name: functools.partial(models.record, model=name) for name in MODELS},
        "studies": studies.record,
        "training": training.record,
        "resumed": resumed.record,
        "refusals": refusals.record,
        "turns": turns.record,
        "words": words.record,
    }


def recorded(room: str, *, exact: bool) -> Goldens:
    """What the code says and writes in one room now."""
    with tempfile.TemporaryDirectory(prefix="offramp-golden-") as name:
        folder = Path(name).resolve()
        recorder = Recorder(Normaliser(folder, exact))
        shutil.copytree(world(), folder, dirs_exist_ok=True)
        with surroundings(folder):
            rooms()[room](recorder)
        return recorder.goldens


@functools.cache
def world() -> Path:
    """A folder with the models and texts; made once in a process, and removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="offramp-golden-"))
    atexit.register(shutil.rmtree, folder)
    write_world(folder)
    return folder


def stored(room: str, shelf: Path = SHELF) -> Goldens:
    """What lies on a shelf."""
    files = sorted(path for path in (shelf / room).glob("*") if path.is_file())
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def store(room: str, goldens: Goldens, shelf: Path = SHELF) -> None:
    """Put goldens in the place of those of a room."""
    folder = shelf / room
    folder.mkdir(parents=True, exist_ok=True)
    for name in stored(room, shelf).keys() - goldens.keys():
        (folder / name).unlink()
    for name, text in goldens.items():
        (folder / name).write_text(text, encoding="utf-8")


def require_whole(room: str, found: Goldens, shelf: Path = SHELF) -> None:
    """Raises AssertionError for a golden that is missing on the shelf, and for one that nothing makes."""
    lying = stored(room, shelf)
    problems = {
        "not on the shelf": found.keys() - lying.keys(),
        "made by nothing": lying.keys() - found.keys(),
    }
    told = [f"{problem}: {', '.join(sorted(names))}" for problem, names in problems.items() if names]
    assert not told, "; ".join([*told, "make goldens writes the shelf again"])


def nearly(name: str, before: str, now: str) -> str:
    """What differs between two goldens of the tolerant form."""
    return difference(name, before, now)


def exactly(name: str, before: str, now: str) -> str:
    """What differs between two goldens of the exact form."""
    lines = difflib.unified_diff(before.splitlines(), now.splitlines(), "before", "now", lineterm="", n=1)
    return "\n".join(lines)
