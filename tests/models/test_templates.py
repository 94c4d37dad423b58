"""Chat templates are rendered by a process with limits, as transformers renders them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from transformers import PreTrainedTokenizerBase

from offramp.errors import ModelError
from offramp.models import templates
from offramp.models.templates import rendered

SOURCE = Path(templates.__file__).parents[1]
TURNS = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "é <b> \U0001f642 w5"}]
FAITHFUL = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]\n  {{ m['content'] | trim }}{% endfor %}"
    "{% if add_generation_prompt %}\n{{ messages | tojson }} A:{% endif %}{{ wanted }}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def tokenizer(template: Any) -> Any:
    made = PreTrainedTokenizerBase(bos_token="<s>", name_or_path="a/model")
    made.chat_template = template
    return made


def worker() -> Any:
    """The process that renders for this one."""
    rendered(tokenizer("ready"), TURNS)
    return templates._worker(os.getpid())


@pytest.mark.parametrize("template", [FAITHFUL, {"tool_use": "{{ 1 }}", "default": FAITHFUL}])
@pytest.mark.parametrize("asked", [{"add_generation_prompt": True, "wanted": [1, None]}, {}])
def test_a_template_writes_what_it_writes_in_transformers(template: Any, asked: dict[str, Any]) -> None:
    made = tokenizer(template)
    assert rendered(made, TURNS, **asked) == made.apply_chat_template(TURNS, tokenize=False, **asked)


def test_one_process_serves_all_prompts() -> None:
    first = worker()
    with pytest.raises(ModelError, match="no system turn"):
        rendered(tokenizer("{{ raise_exception('no system turn') }}"), TURNS)
    assert worker() is first


@pytest.mark.parametrize(
    "template",
    [
        "{{ 10 ** (10 ** 9) }}",  # while it is compiled
        "{{ 10 ** (10 ** (7 + messages | length)) }}",
        ENDLESS,
    ],
)
def test_what_takes_all_time_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    worker()
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    with pytest.raises(ModelError, match=r"chat template .* goes on for more than 0\.2 s") as refused:
        rendered(tokenizer(template), TURNS)
    assert refused.value.where == "a/model"


@pytest.mark.skipif(os.name != "posix", reason="no limit of processor time")
def test_the_process_ends_by_itself_where_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    worker()
    monkeypatch.setattr(templates, "SECONDS", 0.2)
    next_line = templates._next_line
    monkeypatch.setattr(templates, "_next_line", lambda worker, _, request: next_line(worker, 600, request))
    with pytest.raises(ModelError, match=r"goes on for more than 0\.2 s"):
        rendered(tokenizer(ENDLESS), TURNS)


@pytest.mark.skipif(sys.platform != "linux", reason="no limit of memory elsewhere")
@pytest.mark.parametrize(
    "template",
    [
        "{{ 'a' * 10 ** 10 }}",
        "{{ [[]] * 10 ** 9 }}",
        "{{ 'a' | center(10 ** 10) }}",
        "{{ ('a' * 1000) | replace('a', 'b' * 10 ** 7) }}",
        "{% set n = namespace(x='aa') %}{% for a in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    ],
)
def test_what_takes_all_memory_is_refused(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "MEMORY", 2**29)
    with pytest.raises(ModelError, match=r"takes more than 0\.5 GiB of memory"):
        rendered(tokenizer(template), TURNS)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 'a' * 2000000 }}", "it writes 2,000,000 characters"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        (f"{{{{ {'(' * 9999}1{')' * 9999} }}}}", "RecursionError"),
        ("{{ 1 + '' }}", "TypeError"),
        ("{{ '\\ud800' }}", "it writes half of a surrogate pair"),
        ({"tool_use": "{{ 1 }}"}, "multiple chat templates with no default"),
    ],
)
def test_other_failures_are_named(template: Any, said: str) -> None:
    with pytest.raises(ModelError, match=said):
        rendered(tokenizer(template), TURNS)


def test_a_long_conversation_is_no_fault_of_the_template() -> None:
    long = [{"role": "user", "content": "w" * 2_000_000}]
    assert len(rendered(tokenizer("{{ messages[0].content }}"), long)) == 2_000_000


def test_a_process_that_was_killed_is_an_error_and_then_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    first = worker()
    next_line = templates._next_line

    def killed_first(process: Any, *arguments: Any) -> Any:
        process.kill()
        return next_line(process, *arguments)

    monkeypatch.setattr(templates, "_next_line", killed_first)
    with pytest.raises(ModelError, match="ended from outside"):
        rendered(tokenizer(ENDLESS), TURNS)
    monkeypatch.undo()
    second = worker()
    assert second is not first
    second.kill()
    second.wait()
    assert worker() is not second  # one that ended while it was idle is no error


def test_where_no_process_starts_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    worker().kill()
    templates._worker(os.getpid()).wait()
    for program in ("/nowhere/python", "false"):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(ModelError, match="renders chat templates does not start"):
            rendered(tokenizer("w5"), TURNS)


@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), 9)"])
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_no_process_is_left_behind(ending: str) -> None:
    """Also where the process that it renders for is killed: the pipe closes with that."""
    code = (
        "import os; from offramp.models import templates as t\n"
        "print(t._worker(os.getpid()).pid, flush=True)\n" + ending
    )
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == (-signal.SIGKILL if ending else 0)
    deadline = time.monotonic() + 60
    while psutil.pid_exists(int(done.stdout)) and psutil.Process(int(done.stdout)).status() != "zombie":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_class_of_the_users_own_writes_turns_its_own_way() -> None:
    class Own(PreTrainedTokenizerBase):
        def apply_chat_template(self, turns: Any, **asked: Any) -> Any:
            return turns[-1]["content"][: asked["most"]]

    made = Own()
    made.chat_template = "{{ 1 / 0 }}"
    assert rendered(made, TURNS, most=1) == "é"
    with pytest.raises(ModelError, match="most"):
        rendered(made, TURNS)


def test_nothing_else_renders_a_template_of_a_model() -> None:
    calls = re.compile(r"\.apply_chat_template\(|render_jinja_template")
    found = [path for path in SOURCE.rglob("*.py") if calls.search(path.read_text(encoding="utf-8"))]
    assert found == [Path(templates.__file__)]
