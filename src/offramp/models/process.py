"""What this process may use, and what libraries say in it: memory, threads of torch, loggers."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.kit.numbers import LARGEST_COUNT

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "inactive_file")
"""Of control groups: the files of the limit and of what is used, and what the statistics call idle pages."""

WORKING_SHARE = 1.1
"""Of its weights' bytes, what a loaded model takes: with activations, logits and Python itself."""


def available_memory(groups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Bytes that this process can still use: what the machine has free, or what its control groups leave it.

    groups, own: where Linux lists the limits of control groups (containers), and the groups of this process.
    Idle pages of files count as free: the system gives them up when memory is asked for.
    """
    import psutil  # which takes a while

    left = [int(psutil.virtual_memory().available)]
    for group, (_, used, idle), limit in _limited_groups(groups, own):
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        left.append(limit - int((group / used).read_text()) + int(statistics.get(idle, 0)))
    return max(min(left), 0)


def machine_memory(groups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Bytes that there are for all processes here: the machine's, or what its control groups allow."""
    import psutil

    return min([int(psutil.virtual_memory().total), *(limit for *_, limit in _limited_groups(groups, own))])


def _limited_groups(groups: Path, own: Path) -> Iterator[tuple[Path, tuple[str, str, str], int]]:
    """The control groups around this process that state a limit: folder, names of its files, the limit."""
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, files = (groups / "memory", VERSION_1) if controllers else (groups, VERSION_2)
        inner = root / path.strip("/")
        for group in (inner, *inner.parents):
            file = group / files[0]
            if group.is_relative_to(root) and file.is_file() and file.read_text().strip() != "max":
                yield group, files, int(file.read_text())


UNITS = {
    "": 1,
    "b": 1,
    **{unit: 1000**power for power, unit in enumerate(("kb", "mb", "gb", "tb"), start=1)},
    **{unit: 1024**power for power, unit in enumerate(("kib", "mib", "gib", "tib"), start=1)},
    **{unit: 1000**power for power, unit in enumerate(("k", "m", "g", "t"), start=1)},
}


def parse_size(text: str, option: str) -> int:
    """Bytes of "4GB", "1.5 GiB", "800MB" or "4000000000"; GB is 10^9 bytes, GiB 2^30.

    Raises InputError that names the option.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    unit = None if found is None else UNITS.get(found[2].lower())
    size = 0.0 if found is None or unit is None else float(found[1]) * unit
    if not 0.5 < size <= LARGEST_COUNT:
        raise InputError(
            f"{text!r} is not an amount of memory", where=option, fix="write 4GB, 800MB or 1.5GiB"
        )
    return round(size)


_most_threads: dict[int, int] = {}
"""By the threads that `use_threads` set: the most that there were before."""


def use_threads(count: int) -> None:
    """Let torch compute with so many threads from now on: the order of its sums depends on them."""
    import torch

    before = torch.get_num_threads()
    most = max(count, _most_threads.get(before, before))
    _most_threads.clear()
    _most_threads[count] = most
    torch.set_num_threads(count)


def with_most_threads() -> contextlib.AbstractContextManager[None]:
    """All the threads that torch had since `use_threads` lowered them, for a while: many tokens at once are
    computed, where one alone waits for memory."""
    import torch

    now = torch.get_num_threads()
    return with_threads(_most_threads.get(now, now))


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    """The same for a while."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


TORCHAO_LOGGERS = ("torchao", "torch.utils._pytree")
"""They warn, at the import of torchao, of its kernels for accelerators that are not there."""
TORCHAO_NOISE = ("Failed to load ", "is an Enum subclass and is now natively supported by torch.compile")
"""What these warnings have in them."""


def silence_torchao() -> None:
    """Leave out from now on, by what they say, the warnings of torchao's import; it has no other effect."""
    for name in TORCHAO_LOGGERS:
        logging.getLogger(name).addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return not any(part in str(record.msg) for part in TORCHAO_NOISE)


@contextmanager
def quiet_loggers(*names: str) -> Iterator[None]:
    """Run with only the errors of some loggers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def quiet_downloads() -> Iterator[None]:
    """Run without the Hub's progress bars where standard error is no terminal."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    as_it_is = sys.stderr.isatty() or are_progress_bars_disabled()
    if not as_it_is:
        disable_progress_bars()
    try:
        yield
    finally:
        if not as_it_is:
            enable_progress_bars()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Run without transformers' progress bars and warnings, and those of torchao, which it may import."""
    import transformers

    silence_torchao()

    logging: Any = transformers.utils.logging
    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
