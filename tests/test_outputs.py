"""Every file and folder that a request writes: what somebody else left in its place is never replaced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import offramp
import offramp.cli.main  # all commands
from command_line import tree
from offramp.errors import InputError
from offramp.kit.request import Request, fields_of, missing

READ = {
    *("add_to", "exits", "folders", "heads", "images", "key_map", "prompt_files", "sounds", "start"),
    *("study_file", "subject", "trace", "traces"),
}
"""Fields that name what is read."""


def requests(base: type = Request) -> Iterator[Any]:
    for request in base.__subclasses__():
        yield from requests(request)
        if not request.__module__.startswith(("test", "tests")):
            yield request


WRITTEN = {
    f"{request.__name__}.{field.name}": (request, field)
    for request in requests()
    for field in fields_of(request)
    if field.name == "output" or (field.name not in READ and "Path" in field.said)
}
"""Fields of requests that name, as their types say, a file or a folder, and not one that is read."""


def arguments_of(request: Any, folder: Path) -> dict[str, Any]:
    """The fewest that a request takes; none of the models or traces is there."""
    given = {
        "at": "1",
        "file": "nowhere",
        "floor": "agreement=0.9",
        "folders": [folder],
        "model": "smollm2",
        "policy": "static:exit=1",
        "study_file": folder / "nowhere.toml",
        "subject": "nowhere",
        "traces": [folder],
        "workload": ["prose"],
        "workloads": ["prose"],
        "overwrite": True,
    }
    if request.__name__ == "GateTraining":
        given["floor"] = 0.9
    needed = {field.name for field in fields_of(request) if missing(field)}
    needed |= {"at", "floor", "overwrite", "policy"} & {field.name for field in fields_of(request)}
    if request.__name__ == "Bench":
        needed -= {"floor"}
    return {name: given[name] for name in needed if name in given}


def mine(path: Path) -> None:
    path.write_text('{"mine": "all of it"}')


def link(path: Path) -> None:
    target = path.parent / "elsewhere.json"
    mine(target)
    path.symlink_to(target)


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nothing.json")


def folder(path: Path) -> None:
    path.mkdir()
    mine(path / "notes.txt")
    mine(path / "report.html")


def linked_folder(path: Path) -> None:
    folder(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


@pytest.mark.parametrize("make", [mine, link, dangling, folder, linked_folder])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_somebody_else_left_in_the_place_of_an_output_is_not_replaced(
    name: str, make: Callable[[Path], None], tmp_path: Path
) -> None:
    request, field = WRITTEN[name]
    assert field.writes is not None, f"say of {name} what it may replace, by Writes, or that it is read"
    if name == "Tuning.executions" and make in (folder, linked_folder):
        return  # executions lie beside whatever else is there, under names that are sums
    output = tmp_path / "output.json"
    make(output)
    before = tree(tmp_path), output.is_symlink()
    with pytest.raises(InputError) as refused:
        request(**{**arguments_of(request, tmp_path), field.name: output})
    assert str(output) in refused.value.where
    assert (tree(tmp_path), output.is_symlink()) == before
    # The same arguments are fine where nothing is there.
    request(**{**arguments_of(request, tmp_path), field.name: tmp_path / "free.json"})


def test_every_public_function_that_writes_is_such_a_request_or_claims_its_folder() -> None:
    public = {name: getattr(offramp, name) for name in offramp.__all__}
    writing = {
        name
        for name, function in public.items()
        if callable(function) and not isinstance(function, type) and not hasattr(function, "request")
        if "output" in inspect.signature(function).parameters
    }
    assert writing == {"trace", "train_exits"}  # by `OutputFolder.claimed`
