"""The engine that runs jobs on a Ray cluster: Ray places them by cores and memory on nodes that have both.

Every node needs offramp; what the study reads and the study's folder must lie where all nodes have them under
the same paths.
"""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.kit.typed import from_json, to_json
from offramp.studies.engines.engine import Ending, EngineOptions, MemoryLimit, StudyEngine
from offramp.studies.engines.local import WorkerProcess
from offramp.studies.folder import StudyFolder
from offramp.studies.task import StudyJob

CONNECT_SECONDS = 5.0


@dataclass(frozen=True)
class Nodes:
    """What a cluster has to give."""

    resources: Mapping[str, Mapping[str, float]]
    """Of every node, by its id."""
    own: str
    """The id of the node that this process is on."""

    @classmethod
    def of_cluster(cls, ray: Any) -> Nodes:
        """The living nodes of the cluster that Ray is connected to."""
        alive = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}
        return cls(alive, ray.get_runtime_context().get_node_id())

    def _for(self, job: StudyJob) -> list[Mapping[str, float]]:
        """Where a job may run: timings, which are of this machine, nowhere else."""
        return [self.resources[self.own]] if job.exclusive else list(self.resources.values())

    def memory_bytes(self, job: StudyJob) -> int:
        """The memory of the largest node on which a job may run."""
        return int(max(node.get("memory", 0) for node in self._for(job)))

    def options(self, job: StudyJob) -> dict[str, Any]:
        """What Ray is to give a job. More threads than any node has cores take all cores of one."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        cores = max(node.get("CPU", 0) for node in self._for(job))
        placed: dict[str, Any] = {
            "num_cpus": cores if job.exclusive else min(job.threads, cores),
            "memory": min(job.memory_bytes, self.memory_bytes(job)),
            "name": f"offramp {job.name}",
        }
        if job.exclusive:
            placed["scheduling_strategy"] = NodeAffinitySchedulingStrategy(self.own, soft=False)
        return placed


class Submissions:
    """The jobs that Ray has now, running or waiting for room. At the end of the block they are cancelled."""

    def __init__(self, ray: Any, folder: StudyFolder, program: Sequence[str], options: EngineOptions) -> None:
        self._ray = ray
        self._nodes = Nodes.of_cluster(ray)
        # Ray itself would retry for ever what runs out of memory; the backlog counts instead.
        self._remote = ray.remote(max_retries=0)(run_on_node)
        self._arguments = (str(folder.path.resolve()), folder.journal.append("run", engine="ray").number)
        self._program = tuple(program)
        self._options = options
        self._waiting: dict[Any, StudyJob] = {}

    @property
    def running(self) -> set[str]:
        """Keys of the jobs that Ray has."""
        return {job.key for job in self._waiting.values()}

    def limit(self, job: StudyJob) -> MemoryLimit:
        """The memory that a job can have at most."""
        return MemoryLimit(self._nodes.memory_bytes(job), "the largest node for it has")

    def may_start(self, job: StudyJob) -> bool:
        """Whether a job may be handed to Ray, which knows what has room."""
        most = self._options.workers
        return most is None or len(self.running) < most

    def start(self, job: StudyJob) -> None:
        """Hand a job to Ray."""
        remote = self._remote.options(**self._nodes.options(job))
        asked = (to_json(job), *self._arguments, self._program, self._options.stall_seconds)
        self._waiting[remote.remote(*asked)] = job

    def wait(self, seconds: float) -> list[tuple[StudyJob, Ending]]:
        """Wait until a job ends, or for so many seconds; the jobs that have ended, and how."""
        if not self._waiting:
            time.sleep(seconds)
            return []
        done, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=seconds)
        return [(self._waiting.pop(reference), self._ending(reference)) for reference in done]

    def _ending(self, reference: Any) -> Ending:
        from ray.exceptions import RayError, RayTaskError

        try:
            ending: Ending = self._ray.get(reference)
        except RayTaskError as error:
            if isinstance(error.cause, InputError):
                raise error.cause from None
            return Ending(None, last_line=str(error.cause))
        except RayError as error:
            said = str(error).strip().split("\n")[0]
            return Ending(None, killed=f"its Ray worker was lost ({type(error).__name__}: {said})")
        return ending

    def __enter__(self) -> Submissions:
        return self

    def __exit__(self, *unused: object) -> None:
        for reference in self._waiting:
            self._ray.cancel(reference, force=True)


class RayEngine(StudyEngine):
    """Processes on the nodes of a Ray cluster."""

    name = "ray"

    @contextlib.contextmanager
    def workers(self, folder: StudyFolder, options: EngineOptions) -> Iterator[Submissions]:
        """The nodes of the cluster. Raises InputError if Ray is not installed, there is no cluster at the
        address, or, in waiting, a node does not see the study's folder.
        """
        with (
            connected(options.address) as ray,
            Submissions(ray, folder, self.program, options) as submissions,
        ):
            yield submissions


def run_on_node(
    job: Mapping[str, Any], path: str, event: int, program: Sequence[str], stall_seconds: float
) -> Ending:
    """Run a job in a process of its own on the node where Ray calls this.

    path: of the study's folder. event: number of an event that its journal holds if it is the same folder.
    stall_seconds: as `WorkerProcess` takes them.

    Raises InputError if it is not.
    """
    folder = StudyFolder(Path(path))
    if not any(past.number == event for past in folder.journal.read().events):
        raise InputError(
            f"the study's folder is not there on {platform.node()}, a node of the Ray cluster",
            where=path,
            fix="give a folder on a file system that all nodes share under one path, with -o",
        )
    return WorkerProcess(from_json(StudyJob, job), folder, program, stall_seconds).wait()


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to the cluster at an address inside the block; None: to this machine's, or to a new one.

    Raises InputError if Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise InputError(
            "the Ray engine needs Ray, which is not installed",
            where="--engine ray",
            fix="install it: pip install 'offramp[ray]'",
        ) from error
    if address is not None:
        _require_reachable(address)
    if ray.is_initialized():
        # Whoever connected this process uses Ray for other things too, and disconnects it.
        yield ray
        return
    _connect(ray, address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    stops = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address or "auto", **quiet)
    except ConnectionError:
        if address is not None:
            raise
        ray.init(num_cpus=len(os.sched_getaffinity(0)), include_dashboard=False, **quiet)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stops)  # Ray puts its own there, which says nothing


def _require_reachable(address: str) -> None:
    """Knock at a cluster's door: Ray itself waits for minutes where there is none.

    Raises InputError if nobody answers, or the address is not one of a cluster that this machine is part of.
    """
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"no Ray cluster can be reached at {address!r}",
            where="--address",
            fix="give HOST:PORT as `ray start --head` prints it; this machine must be one of its nodes",
        ) from error
