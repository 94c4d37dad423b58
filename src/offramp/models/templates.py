"""Chat templates, rendered by a process of their own.

A template is a program that came with a model's files: one expression of it may take all time or memory. That
process has limits for both, serves all prompts of this one, and ends with it.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from offramp.errors import ModelError, refused_as

SECONDS = 10.0
"""A template may take so long, of processor time and of the clock, for what takes milliseconds."""
MEMORY = 2 * 1024**3
"""Bytes of address space, where the system limits it (Linux does, macOS does not)."""
LONGEST = 1_000_000
"""Characters that a template may write beyond those of the conversation."""
START_SECONDS = 120.0
LONGEST_ERROR = 1_000
"""Characters of an error that are handed on."""

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""Numerical libraries reserve memory for each of their threads, and rendering needs none."""

CANNOT_WRITE = "the model's chat template cannot write these turns"
OTHER_TEMPLATE = "leave --chat out, trace a workload of given texts, or repair the chat template there"

_ONE_AT_A_TIME = threading.Lock()


def rendered(maker: Any, turns: Sequence[Mapping[str, Any]], **asked: Any) -> str:
    """What the chat template of a tokenizer or processor writes of a conversation.

    asked: what else `apply_chat_template` of transformers takes, such as `add_generation_prompt`.

    Raises ModelError where the template fails, and where it takes more than SECONDS, MEMORY or LONGEST.
    """
    tokenizer = maker if hasattr(maker, "special_tokens_map") else getattr(maker, "tokenizer", maker)
    where = str(getattr(tokenizer, "name_or_path", type(tokenizer).__name__))
    if not type(maker).apply_chat_template.__module__.startswith("transformers."):
        from jinja2 import TemplateError

        # A class of the user's own, or of a checkpoint whose code is trusted: it may write turns its own way.
        failures = (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RuntimeError)
        with refused_as(ModelError, CANNOT_WRITE, *failures, where=where, fix=OTHER_TEMPLATE):
            return str(maker.apply_chat_template(turns, tokenize=False, **asked))
    given = {"chat_template": maker.chat_template, "special_tokens_map": tokenizer.special_tokens_map}
    limits = {"seconds": SECONDS, "memory": MEMORY, "longest": LONGEST}
    request = {"given": given, "turns": list(turns), "asked": asked, "limits": limits}
    answer = _answer(json.dumps(request, default=_plain))
    if "error" in answer:
        raise ModelError(f"{CANNOT_WRITE}: {answer['error']}", where=where, fix=OTHER_TEMPLATE)
    return answer["text"]


def _plain(value: object) -> Any:
    """What transformers shows a template of a value that JSON does not know."""
    return dict(value) if isinstance(value, Mapping) else f"<{type(value).__name__}>"


def _answer(request: str) -> dict[str, str]:
    """The "text" or the "error" of a request, which is a line of JSON."""
    with _ONE_AT_A_TIME:
        if (process := _worker(os.getpid())).poll() is not None:  # something ended it between two prompts
            _worker.cache_clear()
            process = _worker(os.getpid())
        line = _next_line(process, SECONDS, request)
        if not line:
            _worker.cache_clear()
    if line:
        answer: dict[str, str] = json.loads(line)
        return answer
    if line is None or process.returncode == -getattr(signal, "SIGXCPU", 0):
        return {"error": f"it goes on for more than {SECONDS:g} s"}
    return {"error": f"the process that rendered it was ended from outside (code {process.returncode})"}


@functools.cache
def _worker(parent: int) -> subprocess.Popen[str]:
    """The process that renders for this one. parent: the id of this one: a fork of it has its own.

    Raises ModelError if it does not start.
    """
    failed = ModelError(
        "the process that renders chat templates does not start",
        where=f"{sys.executable} -m {__name__}",
        fix="run that to see why",
    )
    try:
        process = subprocess.Popen(
            [sys.executable or "python", "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env={**os.environ, **ONE_THREAD, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
            start_new_session=True,  # what is interrupted at the terminal is this process
        )
    except OSError as error:
        raise failed from error
    if not _next_line(process, START_SECONDS):
        raise failed
    atexit.register(_end, process)
    return process


def _next_line(process: subprocess.Popen[str], seconds: float, request: str = "") -> str | None:
    """What the worker says next, to a request if there is one; None if that takes longer, "" if it ended.

    A worker that did not answer in full, or whose answer was not awaited, is ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    late, line = threading.Event(), ""

    def give_up() -> None:
        late.set()
        process.kill()

    deadline = threading.Timer(seconds, give_up)
    deadline.daemon = True
    deadline.start()
    try:
        if request:
            process.stdin.write(f"{request}\n")
            process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        pass
    finally:
        deadline.cancel()
        if late.is_set() or not line.endswith("\n"):
            process.kill()
            _end(process)
            line = ""
    return None if late.is_set() else line


def _end(process: subprocess.Popen[str]) -> None:
    """Close its input, on which a worker ends, and wait for it."""
    with contextlib.suppress(BrokenPipeError), process:
        pass


def _serve() -> None:
    """Render what comes in lines, until there are no more."""
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    print(flush=True)  # ready
    memory = None
    for line in sys.stdin:
        request = json.loads(line)
        limits = request["limits"]
        if limits["memory"] != memory:
            memory = limits["memory"]
            _limit("RLIMIT_AS", memory)
            _limit("RLIMIT_CORE", 0)
        _limit("RLIMIT_CPU", math.ceil(time.process_time() + limits["seconds"]))
        tokenizer: Any = SimpleNamespace(**request["given"])
        tokenizer.get_chat_template = functools.partial(PreTrainedTokenizerBase.get_chat_template, tokenizer)
        try:
            text: Any = PreTrainedTokenizerBase.apply_chat_template(
                tokenizer, request["turns"], tokenize=False, **request["asked"]
            )
            text.encode()
            if len(text) <= len(line) + limits["longest"]:
                answer = {"text": text}
            else:
                answer = {"error": f"it writes {len(text):,} characters"}
        except UnicodeEncodeError:
            answer = {"error": "it writes half of a surrogate pair"}
        except MemoryError:
            answer = {"error": f"it takes more than {limits['memory'] / 1024**3:g} GiB of memory"}
        except Exception as error:  # noqa: BLE001 - a template raises what it likes, and that is the answer
            answer = {"error": f"{type(error).__name__}: {error}"[:LONGEST_ERROR]}
        print(json.dumps(answer), flush=True)


def _limit(name: str, value: int) -> None:
    """Set a limit of this process, where the system has it and lets it be set."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return
    which = getattr(resource, name)
    _, hard = resource.getrlimit(which)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(which, (value if hard < 0 else min(value, hard), hard))


if __name__ == "__main__":
    _serve()
