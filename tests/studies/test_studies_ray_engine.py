"""The Ray engine on a real cluster of two nodes, which these tests start and stop."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fake_works import FAKE_WORKER, events_of, files_under, job_of, task_of, value
from ray_cluster import SETTINGS, Cluster, two_nodes

from offramp.errors import DiskFullError, InputError
from offramp.kit.typed import to_json
from offramp.studies.engines.engine import EngineOptions
from offramp.studies.engines.local import LocalEngine
from offramp.studies.engines.ray import RayEngine, run_on_node
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import is_held
from offramp.studies.task import StudyJob

ray = pytest.importorskip("ray", reason="Ray is not installed")

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made")]

GIGABYTE = 10**9
MEMORY = (GIGABYTE, 3 * GIGABYTE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch, two_nodes(MEMORY) as cluster:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        yield cluster


@pytest.fixture(scope="module")
def connection(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, connected to already, as by whoever uses Ray for other things too: it saves seconds."""
    ray.init(address=cluster.address, log_to_driver=False, logging_level="warning")
    began = time.monotonic()
    while sum(node["Alive"] for node in ray.nodes()) < 2:
        assert time.monotonic() < began + 60
        time.sleep(0.05)
    yield cluster
    ray.shutdown()


def run(folder: StudyFolder, *jobs: StudyJob, **options: Any) -> None:
    RayEngine(FAKE_WORKER).run(jobs, folder, EngineOptions(**options), lambda: None)


def jobs_of() -> list[StudyJob]:
    """Jobs that need one another, one of more threads than any node has cores, and one timed alone."""
    trace, profile = task_of(1, "trace"), task_of(5, "profile", exclusive=True)
    scores = [task_of(number, needs={"trace": trace}) for number in (10, 20)]
    end = task_of(100, "replay", needs={"first": scores[0], "second": scores[1], "profile": profile})
    return [job_of(trace, threads=7), job_of(profile), job_of(scores[0]), job_of(scores[1]), job_of(end)]


def test_a_study_gives_the_same_bytes_as_with_the_local_engine(
    cluster: Cluster, folder: StudyFolder, tmp_path: Path
) -> None:
    local = StudyFolder(tmp_path / "local")
    LocalEngine(FAKE_WORKER).run(jobs_of(), local, EngineOptions(), lambda: None)
    moments: list[float] = []
    engine = RayEngine(FAKE_WORKER)
    options = EngineOptions(address=cluster.address)
    engine.run(jobs_of(), folder, options, lambda: moments.append(time.monotonic()))
    assert not ray.is_initialized()
    assert files_under(folder.path) == files_under(local.path)
    assert value(folder, jobs_of()[-1].tasks[0]) == 137
    assert all(events_of(folder, job.tasks[0]) == ["started", "finished"] for job in jobs_of())
    assert len(moments) >= 3


def where(marks: Path) -> int:
    """The process id of the raylet of the node on which a "say who" task ran."""
    return int((marks / "who").read_text().split()[1])


def test_a_task_is_placed_where_its_memory_is(
    connection: Cluster, folder: StudyFolder, tmp_path: Path
) -> None:
    task = task_of(1, deed="say who", marks=tmp_path, memory_bytes=2 * GIGABYTE)
    never = task_of(2, memory_bytes=4 * GIGABYTE)
    needy = task_of(3, needs={"trace": never})
    run(folder, job_of(task), job_of(never), job_of(needy))
    assert folder.failure(task) is None
    assert where(tmp_path) == connection.raylets[1]
    failure = folder.failure(never)
    assert failure is not None
    assert failure.what == "it needs about 4.0 GB of memory; the largest node for it has 3.0 GB"
    assert folder.condition(needy) == "unfinished"
    assert ray.is_initialized()


def test_both_nodes_work_at_once(connection: Cluster, folder: StudyFolder, tmp_path: Path) -> None:
    tasks = [task_of(number, deed="meet", marks=tmp_path) for number in (1, 2)]
    run(folder, *map(job_of, tasks))
    assert all(map(folder.is_done, tasks))


def test_the_task_of_a_killed_ray_worker_is_done_again(
    connection: Cluster, folder: StudyFolder, tmp_path: Path
) -> None:
    before = task_of(2, "trace")
    task = task_of(1, deed="say who", marks=tmp_path, seconds=1, needs={"trace": before})
    killed = []

    def kill() -> None:
        while not (tmp_path / "who").exists():
            time.sleep(0.02)
        worker = int((tmp_path / "who").read_text().split()[0])
        assert psutil.Process(worker).name().startswith("ray::")
        os.kill(worker, signal.SIGKILL)
        killed.append(worker)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    run(folder, job_of(before, task))
    thread.join(timeout=1)
    assert len(killed) == 1
    assert value(folder, task) == 3
    assert events_of(folder, before) == ["started", "finished"]
    assert events_of(folder, task) == ["started", "killed", "started", "finished"]


def test_a_task_that_dies_twice_fails_alone(connection: Cluster, folder: StudyFolder) -> None:
    task, after = task_of(1, deed="die"), task_of(2)
    run(folder, job_of(task, after), workers=1)
    failure = folder.failure(task)
    assert failure is not None
    assert failure.what.startswith("its process was killed by signal 9")
    assert value(folder, after) == 2


def test_an_engine_that_stops_leaves_no_work_behind(connection: Cluster, folder: StudyFolder) -> None:
    long, full = task_of(1, seconds=60), task_of(2, deed="disk full")
    with pytest.raises(DiskFullError):
        run(folder, job_of(long), job_of(full))
    began = time.monotonic()
    while is_held(folder.lock_path(long)):
        assert time.monotonic() < began + 20
        time.sleep(0.05)
    assert folder.condition(long) == "unfinished"


# --- bad input


def test_a_node_that_does_not_see_the_folder_says_so(folder: StudyFolder) -> None:
    with pytest.raises(InputError, match="the study's folder is not there on") as caught:
        run_on_node(to_json(job_of(task_of(1))), str(folder.path), 1, FAKE_WORKER, 300.0)
    assert caught.value.where == str(folder.path)
    assert list(folder.path.iterdir()) == []


def test_the_error_of_a_node_reaches_the_user(
    connection: Cluster, folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = folder.journal.append
    monkeypatch.setattr(
        folder.journal,
        "append",
        lambda *event, **more: (append(*event, **more), folder.journal.path.unlink())[0],
    )
    with pytest.raises(InputError, match="the study's folder is not there on"):
        run(folder, job_of(task_of(1)))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_refused(folder: StudyFolder, address: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="no Ray cluster can be reached at"):
        run(folder, job_of(task_of(1)), address=address)
    assert time.monotonic() < began + 20


def test_ray_must_be_installed(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="Ray, which is not installed") as caught:
        run(folder, job_of(task_of(1)))
    assert "offramp[ray]" in caught.value.fix
