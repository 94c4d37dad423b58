"""Lines of keys in TOML files, held against tomllib's own reading of the same text."""

from __future__ import annotations

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from offramp.kit.toml_lines import Location, line_at, lines_of, shown_location

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


def locations_of(value: Any, location: Location = ()) -> set[Location]:
    """Every key and list entry of what tomllib reads."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return {location}.union(*(locations_of(part, (*location, key)) for key, part in inner))


def test_every_key_and_entry_has_its_line() -> None:
    lines = lines_of(TEXT)
    assert lines.keys() == locations_of(tomllib.loads(TEXT))
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
    assert {location: lines[location] for location in expected} == expected


def test_keys_may_be_quoted_and_escaped() -> None:
    text = 'a."x\\"y\\u0041".\'z"\' = 1\n"" = 2\n'
    assert lines_of(text).keys() == locations_of(tomllib.loads(text))


def test_a_missing_key_has_the_line_of_its_table() -> None:
    assert line_at(lines_of(TEXT), ("workloads", 1, "source", "x")) == 16
    assert line_at({}, ("anything",)) == 1
    assert shown_location(("workloads", 1, "more", "deep")) == "workloads[2].more.deep"


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
def test_whatever_tomllib_reads_has_lines(top: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    text, expected = "", {}
    for key, value in top.items():
        expected[key] = text.count("\n") + 1
        text += f'"{key}" = {written(value)}\n'
    for entry in entries:
        text += "[['list of tables']]\n"
        for key, value in entry.items():
            text += f'"{key}" = {written(value)}\n'
    read = tomllib.loads(text)
    lines = lines_of(text)
    assert lines.keys() == locations_of(read)
    assert {key: lines[(key,)] for key in expected} == expected
