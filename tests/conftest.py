"""What tests of the command line and of the public interface share: a tiny model and its texts on disk."""

from __future__ import annotations

import fcntl
import gc
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

from offramp.models.gguf_file import CACHE_VARIABLE, cache_folder
from tiny_models import (
    CHAT_TEMPLATE,
    write_bart,
    write_documents,
    write_llama,
    write_llava,
    write_pictures,
    write_sounds,
    write_whisper,
)

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.models.model import Model
    from offramp.studies.work.league import Ranking
    from offramp.tracing.trace import Trace

ANSWERS: dict[tuple[object, ...], Ranking] = {}

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("any load", deadline=None)
hypothesis.settings.load_profile("any load")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As the command line does, but here torch is loaded before it: spinning threads are slow on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_configure(config: pytest.Config) -> None:
    """A cache folder of the tests' own, so that timings of tiny models do not end up in the user's.

    The converted default model is shared: converting takes ten seconds.
    """
    dense = cache_folder() / "dense"
    dense.mkdir(parents=True, exist_ok=True)
    own = Path(tempfile.mkdtemp(prefix="offramp-cache-"))
    (own / "dense").symlink_to(dense.absolute(), target_is_directory=True)
    os.environ[CACHE_VARIABLE] = str(own)
    config.add_cleanup(lambda: shutil.rmtree(own))


@pytest.fixture(scope="session", autouse=True)
def any_load() -> Iterator[None]:
    """Profiles are kept whatever else the machine does: tests share it with each other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.costs.timings.TOLERABLE_LOAD", math.inf)
        yield


@pytest.fixture
def any_load_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in the processes that a test starts."""
    patch = "import math, offramp.costs.timings\nofframp.costs.timings.TOLERABLE_LOAD = math.inf\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of all processes that share the tests."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """What the first process that needs it makes, and the others wait for. Tests that change it copy it."""
    done = path.with_name(f".{path.name}.done")
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            make(path)
            done.touch()
    return path


@pytest.fixture(scope="session")
def tiny_model(shared: Path) -> Path:
    """A folder with a random Llama of 4 layers, with a chat template."""
    return made_once(shared / "tiny", lambda path: write_llama(path, chat_template=CHAT_TEMPLATE))


@pytest.fixture(scope="session")
def bart(shared: Path) -> Path:
    """A folder with a random BART of 4 decoder layers."""
    return made_once(shared / "bart", write_bart)


@pytest.fixture(scope="session")
def whisper(shared: Path) -> Path:
    """A folder with a random Whisper of 4 decoder layers."""
    return made_once(shared / "whisper", write_whisper)


@pytest.fixture(scope="session")
def llava(shared: Path) -> Path:
    """A folder with a random LLaVA of 4 layers, and its processor."""
    return made_once(shared / "llava", write_llava)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt to load weights fails the test."""

    def load(*anything: object, **further: object) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("offramp.models.loading._load_weights", load)


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """The bundled model in float32. Tests leave it as it is."""
    from offramp.tracing.loading import load_model

    return load_model("smollm2")


@pytest.fixture(scope="session")
def documents(shared: Path) -> Path:
    """A JSON-lines file of 48 short documents in the field "text"."""
    return made_once(shared / "documents.jsonl", write_documents)


@pytest.fixture(scope="session")
def sounds(shared: Path) -> Path:
    """A folder of 12 short sounds, each beside a text."""
    return made_once(shared / "spoken", write_sounds)


@pytest.fixture(scope="session")
def pictures(shared: Path) -> Path:
    """A JSON-lines file of 60 pictures, each with a question and an answer of some words."""
    return made_once(shared / "pictures", write_pictures) / "all.jsonl"


@pytest.fixture(scope="session")
def finished_run(shared: Path, tiny_model: Path, documents: Path) -> Path:
    """The folder of a finished `offramp run` on two workloads, whose timings are in the cache afterwards."""
    from command_line import run_arguments, run_offramp
    from offramp.costs.machine_registry import FOLDER

    def make(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            forget_the_load(patch)
            remember_answers(patch)
            run_offramp(*run_arguments(tiny_model, documents), "-o", folder).require(0)
        shutil.copytree(cache_folder() / FOLDER, timings)

    timings = shared / "timings"
    folder = made_once(shared / "finished", make)
    shutil.copytree(timings, cache_folder() / FOLDER, dirs_exist_ok=True)
    return folder


def forget_the_load(patch: pytest.MonkeyPatch) -> None:
    """Else a run on a busy machine ends tests of candidates early, and the next one, on a quieter machine,
    goes on with the first. One round."""
    from offramp.runs import stages as run_study

    patch.setattr(run_study, "DECODE_MINUTES", 20.0)
    patch.setattr(run_study, "ROUNDS", 1)


@pytest.fixture
def forgotten_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run certifies and keeps as much as the finished run did."""
    forget_the_load(monkeypatch)


@pytest.fixture
def remembered_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process search a trace once, and those that the finished run searched not at all."""
    remember_answers(monkeypatch)


def remember_answers(patch: pytest.MonkeyPatch) -> None:
    """Searching the same trace again would give the same answers."""
    from offramp.studies.work import league

    def answers(trace: Trace, machine: Machine | None, *rest: Any, **options: Any) -> Ranking:
        name = None if machine is None else machine.name
        key = (trace.provenance["request_fingerprint"], trace.top1.tobytes(), name, rest, tuple(options))
        if key not in ANSWERS:
            ANSWERS[key] = computed(trace, machine, *rest, **options)
        return ANSWERS[key]

    computed = league.ranking_of
    patch.setattr(league, "ranking_of", answers)


@pytest.fixture(scope="module")
def uncollected() -> Iterator[None]:
    """No garbage collections: each takes a tenth of a second, and these modules hold nothing large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda *_: 0)
        yield
