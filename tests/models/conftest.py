"""Tiny models on disk, made once per test session."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

VOCABULARY = 64


def write_tokenizer(folder: Path, *, vocabulary: int = VOCABULARY, chat_template: str | None = None) -> None:
    """A word-level tokenizer with the words w3, w4, ... and <s>, </s>, <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{number}": number for number in range(3, vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


def write_llama(folder: Path, **config: Any) -> None:
    """A random Llama of 3 layers, with its tokenizer."""
    from family_configs import llama

    values = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.02} | config
    llama(VOCABULARY, **values).save_pretrained(folder)
    write_tokenizer(folder)


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


def edit_json(path: Path, **changes: Any) -> None:
    """Change some top-level entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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
