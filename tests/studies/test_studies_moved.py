"""Where inputs lie is no part of a result: other paths give the same keys and figures, and go on in place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file
from study_files import plan_of, small_world
from work_cases import Bench, planned

from offramp.studies.task import Task
from offramp.tracing.trace import Trace


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Threads are part of a recipe, and work sets them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path: Path, tiny_model: Path, documents: Path) -> Bench:
    return Bench(tmp_path / "here", tiny_model, f"jsonl:{documents}#text")


@pytest.fixture
def there(tmp_path: Path, here: Bench, documents: Path) -> Bench:
    """The same model and text under other names in another folder, and a licence beside the weights."""
    model = shutil.copytree(here.model, tmp_path / "elsewhere" / "renamed-model")
    (model / "README.md").write_text("---\nlicense: mit\n---\n")
    text = shutil.copy(documents, tmp_path / "elsewhere" / "renamed-text.jsonl")
    return Bench(tmp_path / "there", model, f"jsonl:{text}#text")


def heads_task(bench: Bench) -> Task:
    recipe = {
        "workloads": [bench.workload_recipe()],
        "tokens": 200,
        "exits": "all",
        "lens": True,
        "classifiers": [],
        "seed": 0,
    }
    sources = {"model": bench.model, "workload 0": bench.workload}
    return planned("heads", {**bench.common(), **recipe}, sources=sources)


def measured(folder: Path) -> dict[str, Any]:
    """What a task left, names and places of its inputs apart: these are those of whoever came first."""
    heads = folder / "heads.safetensors"
    if heads.is_file():
        return {"lens": load_file(heads)["lens.weight"].tobytes()}
    trace = Trace.load(folder / "trace")
    columns = {name: trace.fact(name).tobytes() for name in trace.fact_names}
    return {**columns, "text": (folder / "text.json").read_bytes()}


def test_the_same_inputs_elsewhere_give_the_same_figures(here: Bench, there: Bench) -> None:
    for one, other in (
        (here.trace_task(), there.trace_task()),
        (heads_task(here), heads_task(there)),
    ):
        assert one.key == other.key
        assert one.sources != other.sources
        found, other_found = measured(here.run(one)), measured(there.run(other))
        assert found
        assert found == other_found


@pytest.mark.parametrize(("source", "kind"), [("txt:one.txt", "txt"), ("chat", "chat"), ("prose", "prose")])
def test_a_recipe_says_of_which_kind_a_workload_is(tmp_path: Path, source: str, kind: str) -> None:
    """Policies may ask for it: the part of a name that is no place."""
    text = f'models = ["a"]\nworkloads = ["{source}"]\nmachines = ["h100"]\n'
    plan = plan_of(small_world(tmp_path), text)
    (trace,) = [task for task in plan.tasks.values() if task.kind == "trace"]
    assert trace.recipe["workload"]["kind"] == kind
