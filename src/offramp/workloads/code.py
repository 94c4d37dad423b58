"""`code`: source files of the running Python's standard library."""

from __future__ import annotations

import hashlib
import platform
import re
import sysconfig
from pathlib import Path

from offramp.errors import WorkloadError
from offramp.workloads.reading import read_text
from offramp.workloads.source import WorkloadSize, WorkloadSource
from offramp.workloads.standard_library import FEWEST_ITEMS, Piece, short_items
from offramp.workloads.workload import Document, Workload

LICENCE = "PSF-2.0"
ORDER_SEED = "offramp code 1"
SHORTEST_FUNCTION = 400
SHORT_PER_FILE = 4
SHORT_ORDER_SEED = "offramp code short 1"
# Files that Python 3.11 and every later version have under the same name.
FILES = (
    "argparse",
    "ast",
    "asyncio/base_events",
    "asyncio/events",
    "asyncio/locks",
    "asyncio/queues",
    "asyncio/streams",
    "asyncio/tasks",
    "base64",
    "bdb",
    "bisect",
    "calendar",
    "cmd",
    "code",
    "codecs",
    "collections/__init__",
    "colorsys",
    "concurrent/futures/process",
    "concurrent/futures/thread",
    "configparser",
    "contextlib",
    "copy",
    "csv",
    "dataclasses",
    "difflib",
    "dis",
    "doctest",
    "email/header",
    "email/message",
    "email/utils",
    "enum",
    "filecmp",
    "fileinput",
    "fnmatch",
    "fractions",
    "ftplib",
    "functools",
    "getopt",
    "gettext",
    "glob",
    "graphlib",
    "gzip",
    "heapq",
    "hmac",
    "html/parser",
    "http/client",
    "http/cookies",
    "http/server",
    "imaplib",
    "inspect",
    "ipaddress",
    "json/decoder",
    "json/encoder",
    "linecache",
    "logging/__init__",
    "logging/config",
    "logging/handlers",
    "mailbox",
    "mimetypes",
    "modulefinder",
    "multiprocessing/pool",
    "netrc",
    "ntpath",
    "numbers",
    "optparse",
    "os",
    "pickle",
    "pickletools",
    "pkgutil",
    "platform",
    "plistlib",
    "poplib",
    "posixpath",
    "pprint",
    "pstats",
    "pyclbr",
    "queue",
    "quopri",
    "random",
    "reprlib",
    "sched",
    "selectors",
    "shelve",
    "shlex",
    "shutil",
    "smtplib",
    "socket",
    "socketserver",
    "ssl",
    "statistics",
    "subprocess",
    "symtable",
    "tabnanny",
    "tarfile",
    "tempfile",
    "textwrap",
    "threading",
    "timeit",
    "tokenize",
    "trace",
    "traceback",
    "types",
    "typing",
    "unittest/case",
    "unittest/mock",
    "urllib/parse",
    "urllib/request",
    "uuid",
    "wave",
    "weakref",
    "webbrowser",
    "wsgiref/handlers",
    "xml/dom/minidom",
    "xml/etree/ElementTree",
    "xmlrpc/client",
    "zipapp",
)
FIRST_DEFINITION = re.compile(r"^(?:@\w|(?:async )?def \w+\(|class \w+[:(])", flags=re.MULTILINE)


def load_code(argument: str = "") -> Workload:
    """One document per file of a fixed list, from its first function or class on, in a fixed shuffled order.

    Licence header, module docstring and imports are left out: they would be prose and lists at the very place
    that a short document is cut from. The text, and so the fingerprint, is the running Python version's.

    Raises WorkloadError if this Python comes without the sources of its standard library.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    names = sorted(FILES, key=lambda name: hashlib.sha256(f"{ORDER_SEED} {name}".encode()).hexdigest())
    missing = [name for name in names if not (folder / f"{name}.py").is_file()]
    if missing:
        raise WorkloadError(
            f"this Python's standard library lacks {len(missing)} source files, {missing[0]}.py for one",
            where=str(folder),
            fix="use a Python that is installed with its library's sources",
        )
    return Workload(
        name="code",
        mode="text",
        documents=tuple(
            Document(f"{name}.py", from_first_definition(read_text(folder / f"{name}.py"))) for name in names
        ),
        licence=LICENCE,
        source=f"standard library of Python {platform.python_version()}",
    )


def from_first_definition(text: str) -> str:
    """A module's text from its first function, class or decorator on; all of it if there is none."""
    match = FIRST_DEFINITION.search(text)
    return text[match.start() :] if match else text


def load_short_code() -> Workload:
    """One document per function or method with a docstring, at most four of one file, in a mixed order.

    Without decorators, and at least 400 characters. A guarantee takes the items as independent; functions of
    one file share names and style, which four of a file at most keeps small beside some 260 files.

    Raises WorkloadError if this Python comes without its library's sources.
    """
    return Workload(
        name="code:short",
        mode="text",
        documents=short_items("code:short", _function, seed=SHORT_ORDER_SEED, per_file=SHORT_PER_FILE),
        licence=LICENCE,
        source=f"functions of the standard library of Python {platform.python_version()}",
    )


def _function(piece: Piece) -> str | None:
    return piece.source + "\n" if len(piece.source) >= SHORTEST_FUNCTION else None


CODE = WorkloadSource(
    name="code",
    load=load_code,
    mode="text",
    documents=f"{len(FILES)} files",
    licence=LICENCE,
    description="Python code: the standard library's sources",
    sizes=(
        WorkloadSize(
            "short",
            load_short_code,
            documents=f"one per function (more than {FEWEST_ITEMS})",
            description="Python code in short items, enough to certify agreement 0.99: functions of the "
            f"standard library, at most {SHORT_PER_FILE} of one file; they are taken as independent",
        ),
    ),
)
