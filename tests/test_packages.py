"""Imports between the packages of offramp go one way only."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import offramp

PACKAGE = Path(offramp.__file__).parent

# From top to bottom; a package imports only from itself and from those after it.
PACKAGES = (
    "testing",
    "cli",
    "runs",
    "report",
    "studies",
    "training",
    "serving",
    "timing",
    "decoding",
    "tuning",
    "policies",
    "scoring",
    "costs",
    "tracing",
    "heads",
    "workloads",
    "models",
    "kit",
)
# What a package knows nothing of, although it lies further down.
APART = {
    ("report", "models"),
    ("tuning", "models"),
    ("costs", "tracing"),
    ("workloads", "models"),
}
WITHOUT_TORCH = ("report", "studies", "policies", "scoring", "costs", "workloads", "kit")
TORCH = ("torch", "transformers", "accelerate")
# Modules of offramp itself that lie below every package.
BELOW = ("commands", "defaults", "display", "errors", "files", "plug_ins")


def module_name(package: Path, path: Path) -> list[str]:
    """The dotted name in parts, of the package for an `__init__.py`."""
    parts = ["offramp", *path.relative_to(package).with_suffix("").parts]
    return parts[:-1] if parts[-1] == "__init__" else parts


def imports_of(package: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Every module or name that a file imports anywhere in it, absolute and dotted, with the line."""
    name = module_name(package, path)
    container = name if path.name == "__init__.py" else name[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = container[: len(container) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def violations(package: Path) -> list[str]:
    """Every import that goes up, sideways or where it must not."""
    found = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        own = inside.parts[0] if len(inside.parts) > 1 else None
        for line, imported in imports_of(package, path):
            reason = (
                why_not_from_package(own, imported) if own else why_not_from_module(inside.stem, imported)
            )
            if reason:
                found.append(f"{inside}:{line}: imports {imported}: {reason}")
    return found


def why_not_from_package(own: str, imported: str) -> str | None:
    root, _, rest = imported.partition(".")
    if root in TORCH and own in WITHOUT_TORCH:
        return f"{own} works without {root}"
    if root != "offramp":
        return None
    target = rest.split(".")[0]
    if target in BELOW or target == own:
        return None
    if target not in PACKAGES:
        return None if own == "cli" else "only cli stands above the package's own interface"
    if PACKAGES.index(target) < PACKAGES.index(own):
        return f"{target} lies above {own}"
    return f"{own} knows nothing of {target}" if (own, target) in APART else None


def why_not_from_module(name: str, imported: str) -> str | None:
    root, _, rest = imported.partition(".")
    if name in BELOW and root == "offramp" and rest.split(".")[0] not in BELOW:
        return f"{name} lies below every package"
    return None


def test_imports_go_down_only() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(PACKAGES)
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("path", "source", "reason"),
    [
        ("models/a.py", "import offramp.tracing.trace", "tracing lies above models"),
        ("models/a.py", "from offramp import tracing", "tracing lies above models"),
        ("models/a.py", "from ..tracing import trace", "tracing lies above models"),
        ("models/sub/a.py", "from ...tracing.trace import Trace", "tracing lies above models"),
        ("models/__init__.py", "from ..tracing import trace", "tracing lies above models"),
        ("models/a.py", "def f():\n    import offramp.cli", "cli lies above models"),
        (
            "models/a.py",
            "from importlib import import_module\nimport_module('offramp.cli')",
            "cli lies above models",
        ),
        ("scoring/a.py", "from offramp.policies.policy import ExitPolicy", "policies lies above scoring"),
        ("report/a.py", "from offramp.models.shape import ModelShape", "report knows nothing of models"),
        ("workloads/a.py", "from offramp.models import model", "workloads knows nothing of models"),
        ("costs/a.py", "from offramp.tracing.trace import Trace", "costs knows nothing of tracing"),
        ("policies/a.py", "def f():\n    import torch.nn", "policies works without torch"),
        ("report/a.py", "from transformers import AutoConfig", "report works without transformers"),
        ("scoring/a.py", "from offramp import load_model", "only cli stands above"),
        ("scoring/a.py", "import offramp", "only cli stands above"),
        ("files.py", "from offramp.models import shape", "files lies below every package"),
    ],
)
def test_a_forbidden_import_is_found(tmp_path: Path, path: str, source: str, reason: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    (found,) = violations(tmp_path)
    assert found.startswith(f"{path}:")
    assert reason in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tracing/a.py", "import torch\nfrom offramp.models.shape import ModelShape"),
        ("tracing/a.py", "from .trace import Trace\nfrom . import facts"),
        ("report/a.py", "from offramp.tracing.trace import Trace\nfrom offramp.errors import InputError"),
        ("cli/main.py", "import offramp\nfrom offramp import run"),
        ("testing/a.py", "from offramp.workloads.registry import check_workload"),
        ("files.py", "from offramp.errors import InputError"),
        ("policies/a.py", "import torchless\nimport numpy"),
    ],
)
def test_an_allowed_import_is_not_found(tmp_path: Path, path: str, source: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    assert violations(tmp_path) == []


def test_packages_without_torch_do_not_load_it_through_others() -> None:
    modules = ["offramp.tracing.trace", "offramp.tracing.facts", "offramp.models.shape", "offramp.testing"]
    for own in WITHOUT_TORCH:
        modules += [".".join(module_name(PACKAGE, path)) for path in sorted((PACKAGE / own).rglob("*.py"))]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    loaded = {'torch', 'transformers'} & sys.modules.keys()\n"
        "    assert not loaded, f'{name} loads {loaded}'\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_picture_of_the_packages_is_that_of_their_imports() -> None:
    from architecture import PICTURE, picture

    assert PICTURE.read_text(encoding="utf-8") == picture(), "run: python tests/architecture.py"


def test_where_things_are_decided_is_there() -> None:
    page = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", page.partition("## Where is it decided?")[2])
    assert len(named) > 20
    assert [path for path in named if not (PACKAGE / path).exists()] == []
