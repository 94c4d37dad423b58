"""The inside of the sandbox: run as a script, it limits itself and then runs the program it is given.

Only the standard library, and as little of it as possible: what is imported here, the program finds.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

REFUSED = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.kill",
    "os.posix_spawn",
    "os.putenv",
    "os.spawn",
    "os.startfile",
    "os.system",
    "pty.spawn",
    "resource.",
    "gc.get_objects",
    "gc.get_referrers",
    "signal.pthread_kill",
    "sys.addaudithook",
    "syslog.",
)
"""Beginnings of audit events (PEP 578) that no program may cause."""

MODULES = frozenset({"_ctypes", "_multiprocessing", "_posixshmem", "_posixsubprocess", "_socket", "ctypes"})
"""Modules with ways out that cause no event of their own."""

CHANGES: dict[str, int] = {
    "os.chflags": 1,
    "os.chmod": 1,
    "os.chown": 1,
    "os.link": 2,
    "os.mkdir": 1,
    "os.remove": 1,
    "os.removexattr": 1,
    "os.rename": 2,
    "os.rmdir": 1,
    "os.setxattr": 1,
    "os.symlink": 2,
    "os.truncate": 1,
    "os.utime": 1,
}
"""Events that change files, by how many of their first arguments are paths."""

LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
NO_NEW_PRIVILEGES = 38
# Rights of linux/landlock.h: execute, write a file; remove and make every kind of entry; later refer,
# truncate.
EXECUTE, WRITE_FILE, ENTRIES, REFER, TRUNCATE = 1 << 0, 1 << 1, 0b1_1111_1111 << 4, 1 << 13, 1 << 14


def main() -> None:
    """Read the job from standard input, close the doors, run it, and print its word at the end."""
    job = json.load(sys.stdin)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    write, leave = os.write, os._exit
    folder = os.path.realpath(os.getcwd())
    _set_limits(job)
    _restrict_files(folder)
    sys.addaudithook(_guard(folder))
    try:
        exec(compile(job["program"], "<program>", "exec"), {"__name__": "program"})
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - whatever it is, SystemExit too, the program did not end
        said = f"\n{type(error).__name__}: {str(error)[:500]}\n"
        write(1, said.encode("utf-8", errors="replace"))
        leave(1)
    write(1, b"\n" + job["word"].encode())
    leave(0)


def _set_limits(job: dict[str, Any]) -> None:
    limits = {
        resource.RLIMIT_CPU: job["seconds"],
        resource.RLIMIT_AS: job["memory_bytes"],
        resource.RLIMIT_FSIZE: job["file_bytes"],
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
    }
    for kind, limit in limits.items():
        # At the hard limit of time the system kills without saying why; a second before, it says so.
        hard = limit + 1 if kind == resource.RLIMIT_CPU else limit
        resource.setrlimit(kind, (limit, hard))


def _guard(folder: str) -> Callable[[str, tuple[Any, ...]], None]:
    """The audit hook: refuses whatever leaves the process, or changes files outside the folder."""
    realpath, join, separator, is_folder = os.path.realpath, os.path.join, os.sep, os.path.isdir
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def require_inside(path: Any) -> None:
        if isinstance(path, int):
            raise PermissionError("changing a file by its descriptor is not allowed here")
        found = realpath(os.fsdecode(path))
        if not found.startswith(join(folder, "")) and found != folder.rstrip(separator):
            raise PermissionError(f"changing {found} is not allowed here")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(REFUSED):
            raise PermissionError(f"{event} is not allowed here")
        if event == "import" and arguments[0] in MODULES:
            raise PermissionError(f"importing {arguments[0]} is not allowed here")
        # A folder's descriptor would let later calls name files relative to it, which no event tells.
        named = event == "open" and not isinstance(arguments[0], int)
        if named and (arguments[2] & writing or is_folder(arguments[0])):
            require_inside(arguments[0])
        for path in arguments[: CHANGES.get(event, 0)]:
            require_inside(path)

    return hook


def _restrict_files(folder: str) -> None:
    """Where Linux has Landlock, let this process change files in its folder only, and start no program."""
    if not sys.platform.startswith("linux"):
        return
    system = ctypes.CDLL(None, use_errno=True)
    version = system.syscall(LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return
    changes = WRITE_FILE | ENTRIES | (REFER if version >= 2 else 0) | (TRUNCATE if version >= 3 else 0)
    handled = ctypes.c_uint64(EXECUTE | changes)
    rules = system.syscall(LANDLOCK_CREATE, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    inside = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    rule = changes.to_bytes(8, sys.byteorder) + inside.to_bytes(4, sys.byteorder)
    system.syscall(LANDLOCK_ADD, rules, 1, rule, 0)
    system.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    system.syscall(LANDLOCK_RESTRICT, rules, 0)
    os.close(inside)
    os.close(rules)


if __name__ == "__main__":
    main()
