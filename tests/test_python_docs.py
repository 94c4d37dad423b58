"""The notebook runs from its first cell to its last, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from offramp.tuning.verdict import Decision

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "examples" / "your_model.ipynb"


def cells() -> list[str]:
    """The notebook's code."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def last_value(source: str, names: dict[str, Any]) -> Any:
    """Run a cell; what its last line shows."""
    *body, last = source.splitlines()
    exec(compile("\n".join(body), "cell", "exec"), names)
    try:
        shown = compile(last, "cell", "eval")
    except SyntaxError:
        exec(compile(last, "cell", "exec"), names)
        return None
    return eval(shown, names)


def test_the_notebook_goes_from_a_model_object_to_a_verdict(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    pages = []
    for source in cells():
        source = source.replace('"smollm2"', repr(str(tiny_model)))
        source = source.replace("TOKENS = 640", "TOKENS = 160").replace(
            "tokens=TOKENS,", "tokens=TOKENS, decode=False,"
        )
        shown = last_value(source, names)
        if hasattr(shown, "_repr_html_"):
            pages.append(shown._repr_html_())
    assert names["found"].decision in get_args(Decision)
    assert len(names["found"].to_dicts()) == 3
    assert names["found"].report.is_file()
    assert len(pages) == 5  # a score card, a coloured text, a replay, findings, an answer
    assert all(page.startswith("<iframe") and "src=" not in page.replace("srcdoc=", "") for page in pages)
