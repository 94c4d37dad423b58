"""Tiny models on disk, made once per test session."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from model_folders import write_llama

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def whole_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("llama") / "tiny-llama"
    folder.mkdir()
    write_llama(folder)
    return folder


@pytest.fixture
def llama_folder(whole_llama: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(whole_llama, tmp_path / "tiny-llama"))


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes one more transform known: plug_in(name, "module:Class"), which returns the registry."""
    from importlib.metadata import EntryPoint

    from offramp.models.transforms import transform
    from offramp.models.transforms.transform import TRANSFORMS

    def install(name: str, value: str) -> Any:
        point = EntryPoint(name, value, transform.ENTRY_POINT_GROUP)
        monkeypatch.setattr(
            "offramp.plug_ins.entry_points", lambda group: [point] if group == point.group else []
        )
        monkeypatch.delitem(vars(TRANSFORMS), "_points", raising=False)
        return TRANSFORMS

    yield install
    vars(TRANSFORMS).pop("_points", None)
