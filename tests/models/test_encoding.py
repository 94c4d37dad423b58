"""What goes in front of a text, and how a chat turn is written."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from model_folders import write_tokenizer

from offramp.errors import InputError, ModelError
from offramp.models.model import BosPolicy, encode_chat, encode_text, find_bos_policy, find_eos_token_ids
from offramp.tracing.loading import load_model


def tokenizer(folder: Path, *, adds_bos: bool = False, chat_template: str | None = None) -> Any:
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    write_tokenizer(folder, chat_template=chat_template)
    loaded = AutoTokenizer.from_pretrained(folder)
    if adds_bos:
        loaded.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    return loaded


@pytest.mark.parametrize(
    ("adds_bos", "family", "policy", "ids"),
    [
        (False, "llama", BosPolicy("none"), [5, 6]),
        (True, "llama", BosPolicy("tokenizer", 1), [1, 5, 6]),
        (False, "gemma2", BosPolicy("forced", 1), [1, 5, 6]),
        (False, "recurrent_gemma", BosPolicy("forced", 1), [1, 5, 6]),
        (True, "gemma", BosPolicy("tokenizer", 1), [1, 5, 6]),
    ],
)
def test_bos_policy(tmp_path: Path, adds_bos: bool, family: str, policy: BosPolicy, ids: list[int]) -> None:
    loaded = tokenizer(tmp_path, adds_bos=adds_bos)
    found = find_bos_policy(loaded, family)
    assert found == policy
    assert encode_text(loaded, found, "w5 w6") == ids


def test_a_forced_bos_is_not_doubled(tmp_path: Path) -> None:
    assert encode_text(tokenizer(tmp_path), BosPolicy("forced", 1), "<s> w5") == [1, 5]


def test_chat_with_a_template_ends_with_the_generation_prompt(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}w10 {{ m['content'] }} w11 {% endfor %}"
        "{% if add_generation_prompt %}w12{% endif %}"
    )
    loaded = tokenizer(tmp_path, chat_template=template)
    assert encode_chat(loaded, BosPolicy("none"), "w5 w6") == [10, 5, 6, 11, 12]
    # A template writes its own BOS; the tokenizer must not add a second one.
    with_bos = tokenizer(tmp_path, adds_bos=True, chat_template="<s> " + template)
    assert encode_chat(with_bos, BosPolicy("tokenizer", 1), "w5") == [1, 10, 5, 11, 12]
    assert encode_chat(loaded, BosPolicy("forced", 1), "w5") == [1, 10, 5, 11, 12]


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('a system turn first') }}", "{% for %}", "{{ 1 + '' }}", "{{ '' }}", "w3 w4"],
)
def test_a_template_that_fails_is_an_error_and_not_a_traceback(tmp_path: Path, template: str) -> None:
    loaded = tokenizer(tmp_path, chat_template=template)
    with pytest.raises(ModelError, match="chat template") as refused:
        encode_chat(loaded, BosPolicy("none"), "w5")
    assert "leave --chat out" in refused.value.fix


def test_chat_without_a_template_is_a_plain_turn_and_says_so(llama_folder: Path) -> None:
    model = load_model(str(llama_folder))
    assert model.chat_template is None
    assert model.uses_plain_chat_template
    assert model.encode_chat("w5 w6") == model.encode("User: w5 w6\nAssistant:")
    write_tokenizer(llama_folder, chat_template="{{ messages[0]['content'] }}")
    templated = load_model(str(llama_folder))
    assert not templated.uses_plain_chat_template
    assert templated.encode_chat("w5 w6") == [5, 6]
    assert templated.identity.tokenizer != model.identity.tokenizer


def test_every_end_token_is_known(llama_folder: Path) -> None:
    model = load_model(str(llama_folder))
    model.hf.generation_config.eos_token_id = [7, 2]
    assert find_eos_token_ids(model.hf, model.tokenizer) == (2, 7)
    silent = SimpleNamespace(eos_token_id=None)
    model.hf.generation_config.eos_token_id = None
    model.hf.config.eos_token_id = None
    assert find_eos_token_ids(model.hf, silent) == ()


def test_an_end_token_that_is_no_number_is_refused() -> None:
    config = SimpleNamespace(get_text_config=lambda: SimpleNamespace(eos_token_id=2))
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id="</s>"), config=config)
    with pytest.raises(ModelError, match="not a token id"):
        find_eos_token_ids(model, SimpleNamespace(eos_token_id=3))
    model.generation_config.eos_token_id = list(range(10**6))
    with pytest.raises(ModelError, match="1,000,000 end tokens"):
        find_eos_token_ids(model, SimpleNamespace(eos_token_id=3))
    model.generation_config.eos_token_id = [5, 2]
    assert find_eos_token_ids(model, SimpleNamespace(eos_token_id=3)) == (2, 3, 5)


@pytest.mark.parametrize(
    ("method", "given", "what"),
    [
        ("encode", 5, "text cannot be int 5"),
        ("encode", b"w5", "text cannot be bytes"),
        ("encode", ["w5", "w6"], "text cannot be list"),
        ("encode", "w5\ud800", "half of a surrogate pair at character 2"),
        ("encode_chat", None, "prompt cannot be None"),
        ("encode_chat", ["w5"], "prompt cannot be list"),
        ("encode_chat", [{"role": "user"}], "no role, or no content"),
        ("encode_chat", [{"role": "user", "content": "w5"}, {"content": "w6"}], "no role, or no content"),
        ("decode", "w5", "ids cannot be str"),
        ("decode", [0.5], "ids cannot be list"),
        ("decode", [5, -1], "ids must be at least 0"),
    ],
)
def test_what_a_model_cannot_read_or_write_is_named(
    llama_folder: Path, method: str, given: Any, what: str
) -> None:
    with pytest.raises(InputError, match=what):
        getattr(load_model(str(llama_folder)), method)(given)


def test_ids_of_any_kind_are_decoded(llama_folder: Path) -> None:
    import torch

    model = load_model(str(llama_folder))
    assert model.decode(torch.tensor([5, 6])) == model.decode([5, 6]) == model.decode(range(5, 7))
