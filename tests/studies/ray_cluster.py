"""A Ray cluster of two nodes on this machine, for the tests that need a real one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# A token that Ray keeps in the user's folder may not be taken up by both nodes.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
START_SECONDS = 60
# Ray gives its own processes 30 seconds to start, which a machine with much else to do may not keep.
ATTEMPTS = 3


@dataclass(frozen=True)
class Cluster:
    """A running cluster. address: to connect to. raylets: process ids of the first and the second node's."""

    address: str
    raylets: tuple[int, int]


class NotStartedError(Exception):
    """A node that ended, or said nothing for too long, and what it printed."""


@contextlib.contextmanager
def two_nodes(memory: tuple[int, int]) -> Iterator[Cluster]:
    """Start a head and a second node, of one core and so many bytes of memory each; stop them at the end."""
    with contextlib.ExitStack() as stack:
        for attempt in range(ATTEMPTS):
            # Not in pytest's folder: the paths of Ray's sockets may not be longer than 107 bytes.
            folder = Path(tempfile.mkdtemp(prefix="offramp-ray-"))
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            try:
                cluster = start_cluster(folder, memory, stack)
                break
            except NotStartedError:
                stack.close()
                if attempt == ATTEMPTS - 1:
                    raise
        yield cluster


def start_cluster(folder: Path, memory: tuple[int, int], stack: contextlib.ExitStack) -> Cluster:
    """Start both nodes, which the stack stops. Raises NotStartedError."""
    written = folder / "ray_current_cluster"
    log = folder / "start.log"
    head = ["--head", "--port", "0", "--temp-dir", str(folder), "--include-dashboard", "false"]
    first = stack.enter_context(node(memory[0], log, *head))
    address = wait_for(lambda: written.read_text() if written.exists() else "", first, log)
    second = stack.enter_context(node(memory[1], log, "--address", address))
    raylets = [int(wait_for(lambda node=node: raylet_of(node), node, log)) for node in (first, second)]
    return Cluster(address, (raylets[0], raylets[1]))


@contextlib.contextmanager
def node(memory: int, log: Path, *options: str) -> Iterator[psutil.Popen]:
    """One node, until the end of the block."""
    limits = ["--num-cpus", "1", "--memory", str(memory), "--object-store-memory", str(100 * 2**20)]
    command = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--disable-usage-stats"]
    spared = ["--no-monitor", "--include-log-monitor", "false"]
    with log.open("ab") as file:
        process = psutil.Popen(
            [*command, *limits, *spared, *options],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **SETTINGS},
            process_group=0,
        )
    try:
        yield process
    finally:
        # Nothing of it is kept, so it need not end in order, which takes many seconds.
        for child in children_of(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)


def raylet_of(node: psutil.Popen) -> str:
    """The process id of a node's raylet, as text; "" if it is not there yet."""
    for child in children_of(node):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.name() == "raylet":
                return str(child.pid)
    return ""


def children_of(node: psutil.Popen) -> list[psutil.Process]:
    """What a node has started; nothing if it has ended."""
    try:
        return list(node.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def wait_for(look: Callable[[], str], node: psutil.Popen, log: Path) -> str:
    """What `look` gives, once that is not empty. Raises NotStartedError."""
    began = time.monotonic()
    while not (found := look()):
        if node.poll() is not None or time.monotonic() > began + START_SECONDS:
            raise NotStartedError(log.read_text(errors="replace"))
        time.sleep(0.05)
    return found
