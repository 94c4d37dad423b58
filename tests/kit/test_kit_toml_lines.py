"""Lines of keys in TOML files."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import InputError
from offramp.kit.given_file import Location, line_at, read_toml, shown_location

TEXT = '''# a comment with [brackets] and = signs
models = ["a", {name = "b", source = "x # y"}]   # 2
policies = [
  "league",   # 4
  """a
["b"]""",
  'x:[y]',    # 7
]
[study]       # 9
name = "it's"
exits = [1,
  2]          # 12
a."b c".d = 3
[[workloads]] # 14
name = "prose"
[[workloads]] # 16
name = "code"
  [workloads.more]
  deep = {er = [true, 1.5e3, 1979-05-27]}
[[workloads]] # 20
'''


def test_every_key_and_entry_has_its_line() -> None:
    expected: dict[Location, int] = {
        ("models", 1, "source"): 2,
        ("policies", 0): 4,
        ("policies", 1): 5,
        ("policies", 2): 7,
        ("study",): 9,
        ("study", "exits", 1): 12,
        ("study", "a", "b c", "d"): 13,
        ("workloads", 0): 14,
        ("workloads", 1, "name"): 17,
        ("workloads", 1, "more", "deep", "er", 2): 19,
        ("workloads", 2): 20,
    }
    assert {location: line_at(TEXT, location) for location in expected} == expected


def test_keys_may_be_quoted_and_escaped() -> None:
    text = 'a."x\\"y\\u0041".\'z"\' = 1\n"" = 2\n'
    assert line_at(text, ("a", 'x"yA', "z")) == 1
    assert line_at(text, ("",)) == 2


def test_a_missing_key_has_the_line_of_its_table() -> None:
    assert line_at(TEXT, ("workloads", 1, "source", "x")) == 16
    assert line_at("", ("anything",)) == 1
    assert shown_location(("workloads", 1, "more", "deep")) == "workloads[2].more.deep"


def test_each_step_towards_a_line_is_one_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a = {b = [[[\n" + "1, # ]\n" * 500 + "]]]}\n[c]\nd = 1\n"
    readings = list[str]()
    read = tomllib.loads
    monkeypatch.setattr(tomllib, "loads", lambda text: readings.append(text) or read(text))
    assert line_at(text, ("c", "d")) == 504
    assert line_at(text, ("a", "b", 0, 0, 250)) == 252
    assert len(readings) <= 2 * (1 + 9 + 1)


BEYOND = {
    "a = 1\n" + ".".join("b" * 65) + " = 1\n": "a key has more than 64 parts",
    "a = 1\n[" + " . ".join(['"b"'] * 70) + "]\n": "a key has more than 64 parts",
    "a = 1\nb = [1, " + "1" * 5000 + "]\n": "a number has more than 600 digits",
}


@pytest.mark.parametrize("text", BEYOND)
def test_what_python_reads_slowly_or_not_at_all_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.toml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_toml(path, "study file")
    assert error.value.what == f"the study file is not TOML: {BEYOND[text]}"
    assert error.value.where == f"{path}, line 2"


def test_texts_and_comments_may_hold_what_keys_and_numbers_may_not(tmp_path: Path) -> None:
    dots, digits = ".".join("b" * 99), "1" * 5000
    path = tmp_path / "file.toml"
    path.write_text(f'a = \'{dots}\' # {dots} {digits}\nb = """\n{digits}""""\n{".".join("c" * 64)} = 1\n')
    values, _ = read_toml(path, "study file")
    assert (values["a"], values["b"]) == (dots, digits + '"')


def written(value: Any) -> str:
    """TOML of a value, inline; lists over several lines."""
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {written(part)}' for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + "".join(f"{written(part)}, # ]\n" for part in value) + "]"
    if isinstance(value, str):
        return f"'''{value}'''"
    return str(value).lower()


KEYS = st.text("abc-_ .#=[]'", max_size=4)
STRINGS = st.text("a\"#[]{}=,\n '", max_size=6).filter(lambda text: "''" not in text and text[-1:] != "'")
SCALARS = st.one_of(st.integers(-9, 9), st.booleans(), STRINGS)
FLAT = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=5)
TABLES = st.dictionaries(KEYS, st.one_of(FLAT, st.dictionaries(KEYS, SCALARS, max_size=3)), max_size=4)


@given(TABLES, st.lists(TABLES, max_size=3))
def test_every_line_that_is_written_is_found(top: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    text, expected = "", dict[Location, int]()
    for key, value in top.items():
        expected[(key,)] = text.count("\n") + 1
        text += f'"{key}" = {written(value)}\n'
    for place, entry in enumerate(entries):
        expected["list of tables", place] = text.count("\n") + 1
        text += "[['list of tables']]\n"
        for key, value in entry.items():
            expected["list of tables", place, key] = text.count("\n") + 1
            text += f'"{key}" = {written(value)}\n'
    assert {location: line_at(text, location) for location in expected} == expected
