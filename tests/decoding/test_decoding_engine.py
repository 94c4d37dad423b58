"""The loop over layers against transformers' own `generate()`, family by family."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch
from family_decoding import decode_greedily, generate
from generation_cases import tiny_llama
from strategy_cases import build_family, llama
from torch import Tensor
from torch.nn.functional import linear

import offramp
from offramp.decoding.engine import products
from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.capability_tests import random_ids
from offramp.decoding.engine.engine import Engine
from offramp.decoding.engine.products import head_logits, transposed_is_faster, transposed_product
from offramp.errors import ModelError

# Dense, latent attention, capped logits and windows, recurrent, a hybrid, a layer used twice; all others
# are tried by tests/models/test_families.py.
FAMILIES = ["llama", "gpt2", "deepseek_v3", "gemma2", "mamba", "jamba", "zamba2"]


@pytest.fixture(scope="module")
def engines() -> dict[str, Engine]:
    return {family: engine_of(build_family(family)) for family in FAMILIES}


def ones(prompt: Tensor) -> Tensor:
    return torch.ones_like(prompt)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("length", [1, 70])  # the small models' windows hold 64 tokens
def test_without_exits_the_loop_gives_the_tokens_of_generate(
    engines: dict[str, Engine], family: str, length: int
) -> None:
    engine = engines[family]
    prompt = random_ids(engine, 1, length)
    expected = generate(engine.hf, prompt, ones(prompt), 8)[:, length:]
    assert torch.equal(decode_greedily(engine, prompt, expected.shape[1]), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_padded_on_the_left_gives_the_tokens_of_generate_and_of_each_row_alone(
    engines: dict[str, Engine], family: str
) -> None:
    engine, new = engines[family], 5
    lengths = (12, 9, 1)
    rows = [row[:length][None] for row, length in zip(random_ids(engine, 3, 12), lengths, strict=True)]
    prompt, mask = torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, 12, dtype=torch.int64)
    for number, row in enumerate(rows):
        prompt[number, -row.shape[1] :], mask[number, -row.shape[1] :] = row, 1
    found = decode_greedily(engine, prompt, new, mask)
    engine.hf.generation_config.eos_token_id = None
    assert torch.equal(found, generate(engine.hf, prompt, mask, new)[:, 12:])
    for number, row in enumerate(rows):
        assert torch.equal(found[number : number + 1], decode_greedily(engine, row, new))


def test_a_prompt_of_two_thousand_tokens_gives_the_tokens_of_generate() -> None:
    engine = engine_of(llama(max_position_embeddings=2048))
    prompt = random_ids(engine, 1, 2000)
    expected = generate(engine.hf, prompt, ones(prompt), 6)[:, 2000:]
    assert torch.equal(decode_greedily(engine, prompt, expected.shape[1]), expected)


@pytest.mark.parametrize(
    ("family", "why"),
    [
        ("rwkv", "it returns none"),
        ("xlstm", "with a cache"),
        ("gemma3n_text", "4 axes"),
        ("recurrent_gemma", "it returns none"),
        ("minimax", "outside the cache's list"),
    ],
)
def test_a_family_that_does_not_fit_is_refused_with_the_reason_and_can_be_traced(
    family: str, why: str
) -> None:
    with pytest.raises(ModelError, match=why) as refusal:
        engine_of(build_family(family))
    assert "trace" in refusal.value.fix


def test_what_is_known_of_a_model_is_kept_but_does_not_keep_the_model() -> None:
    model = llama()
    first, second = engine_of(model), engine_of(model)
    assert first.stack.layers == second.stack.layers
    asked = []
    object.__setattr__(first.abilities, "_trial", lambda ability: asked.append(ability) or "no")
    assert first.abilities.reason("propagate") == "no"
    assert second.abilities.reason("propagate") == "no"  # the answer is shared, not tried again
    assert asked == ["propagate"]
    gone = weakref.ref(model)
    del model, first, second
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("family", ["jamba", "roberta"])  # the last one's head is read by a "stub"
def test_generations_in_threads_do_not_mix(family: str) -> None:
    engine = engine_of(build_family(family))
    prompts = [random_ids(engine, 4, length)[row : row + 1] for row, length in enumerate((5, 9, 17, 30))]
    expected = [decode_greedily(engine, prompt, 8) for prompt in prompts]
    found: dict[int, Tensor] = {}

    def decode(number: int) -> None:
        found[number] = decode_greedily(engine, prompts[number], 8)

    threads = [threading.Thread(target=decode, args=(number,)) for number in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], tokens) for number, tokens in enumerate(expected))


def test_a_model_that_is_not_ready_is_refused() -> None:
    model = llama()
    with pytest.raises(ModelError, match="training mode") as refusal:
        engine_of(model.train())
    assert "eval()" in refusal.value.fix
    with pytest.raises(ModelError, match="float64"):
        engine_of(model.eval().double())


def test_a_model_whose_dtype_changes_is_measured_anew() -> None:
    model = llama()
    prompt = random_ids(engine_of(model), 1, 9)
    changed = engine_of(model.bfloat16())
    assert changed.stack.head_weight is not None
    assert changed.stack.head_weight.dtype == torch.bfloat16
    assert torch.equal(decode_greedily(changed, prompt, 5), generate(model, prompt, ones(prompt), 5)[:, 9:])


@pytest.mark.parametrize("shape", [(1,), (2,), (3, 1), (2, 4), (1, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_the_transposed_product_is_the_product(shape: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    states, weight = torch.randn(*shape, 24), torch.randn(70, 24)
    bias = torch.randn(70) if biased else None
    found = transposed_product(weight, bias, states)
    assert found.shape == (*shape, 70)
    assert found.is_contiguous()
    torch.testing.assert_close(found, linear(states, weight, bias), rtol=1e-5, atol=1e-5)


def test_only_large_float32_heads_are_tried_and_only_a_clear_gain_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = tiny_llama().stack
    assert not transposed_is_faster(stack)
    monkeypatch.setattr(products, "SMALLEST", 1)
    seconds = iter([1.0, 0.79, 1.0, 0.81])
    monkeypatch.setattr(products, "median_seconds", lambda product: (product(), next(seconds))[1])
    assert transposed_is_faster(stack)
    assert not transposed_is_faster(stack)


def test_decoding_with_the_transposed_product_gives_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SMALLEST", 1)
    monkeypatch.setattr(products, "CLEARLY", 0.0)
    model = tiny_llama.__wrapped__()  # another test's model was timed without these
    used: list[int] = []
    honest = transposed_product

    def noted(weight: torch.Tensor, bias: torch.Tensor | None, states: torch.Tensor) -> torch.Tensor:
        used.append(states.numel() // states.shape[-1])
        return honest(weight, bias, states)

    monkeypatch.setattr(products, "transposed_product", noted)
    assert engine_of(model).transposed
    ids = torch.arange(5, 12)[None]
    hidden = torch.randn(9, 2, model.shape.hidden_size)
    torch.testing.assert_close(
        head_logits(model.stack, model.stack.tail_forward(hidden), True), model.stack.readout(hidden)
    )
    used.clear()
    for policy in (None, "threshold:signal=max_prob,value=0.2,exits=1+2"):
        found = offramp.generate(model, ids, policy=policy, kv="speculate", max_new_tokens=9)
        expected = model.hf.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, pad_token_id=0
        )
        assert found.tokens == expected[0, 7:].tolist()
    assert 1 in used
    assert max(used) > 1
