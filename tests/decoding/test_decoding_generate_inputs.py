"""What generation refuses, what it survives, and that the model is the same afterwards."""

from __future__ import annotations

import gc
import re
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from family_configs import build_family
from generation_cases import POLICY, PROMPTS, assert_same, generate_batch, ids_of, state_of, tiny_llama

import offramp
from offramp.decoding.engine.build import engine_of
from offramp.decoding.engine.engine import Abilities
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.generation.early_exit import KEPT_BACK, given_to_generate
from offramp.decoding.generation.loop import describe_problem
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.strategies.next_token import Chooser, NonFiniteLogits, is_broken, require_whole
from offramp.errors import OfframpError, PolicyError
from tiny_models import CONTEXT, VOCABULARY

DAMAGED = Path(tempfile.mkdtemp()) / "policy.json"
DAMAGED.write_text('{"kind": "tuned", "schema_version": 99}', encoding="utf-8")

BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"policy": "static:exit=5"},
        r"exit 5 is beyond the model, which has 4 layers(.|\n)*where: static:exit=5",
    ),
    ({"policy": 3}, "policy cannot be int 3"),
    ({"policy": "no-such/policy.json"}, "policy.json"),
    ({"policy": DAMAGED}, "schema version 99"),
    (
        {"policy": "threshold:signal=correctness,value=0.5,exits=1+2"},
        "reads correctness, which comes with fitted",
    ),
    ({"kv": "propagat"}, "unknown strategy for K and V 'propagat'"),
    ({"policy": POLICY, "kv": "monotone"}, "lets tokens go deeper than those before"),
    ({"max_new_tokens": 1.5}, "max new tokens cannot be float 1.5"),
    (
        {"max_new_tokens": CONTEXT},
        rf"exceed the context of {CONTEXT} positions(.|\n)*what to do: lower max_new_tokens to \d+$",
    ),
    ({"seed": "a", "temperature": 0.5}, "seed cannot be str 'a'"),
    ({"seed": -1, "temperature": 0.5}, "seed must be at least 0, not -1"),
    ({"heads": "no-such-heads.safetensors"}, "no-such-heads.safetensors does not exist"),
    ({"num_beams": 2}, "num_beams is not possible here"),
    ({"assistant_model": "anything"}, "assistant_model is not possible here"),
    ({"return_dict_in_generate": True}, "return_dict_in_generate is not possible here"),
    ({"no_such_option": 1}, "no_such_option"),
    ({"temperature": -1.0}, "temperature"),
    ({"temperature": False}, "temperature cannot be bool False"),
    ({"temperature": 1e-5}, r"temperature must be 0 \(greedy\), or from 0.0001 to below 1e6, not 1e-05"),
    ({"top_p": 2.0}, "top p must be 1 at most, not 2.0"),
    ({"top_p": 0.0}, "top p must be above 0, not 0.0"),
    ({"top_k": 0}, "top k must be at least 1, not 0"),
    ({"top_k": -1}, "top k must be at least 1, not -1"),
    ({"top_k": 2.5}, "top k cannot be float 2.5"),
    ({"force_tokens": [5, VOCABULARY]}, f"the token {VOCABULARY} is none of the model's"),
    ({"force_tokens": [[5, 6], [7, 8]]}, r"2 rows of \[2\] tokens, for 1 prompts"),
    ({"force_tokens": []}, r"1 rows of \[0\] tokens"),
    ({"force_tokens": [1.5]}, "no token id"),
    ({"force_tokens": [5, 6], "temperature": 0.5}, "forced cannot be sampled"),
    ({"streamer": 5}, "streamer cannot be int 5"),
    ({"stop_strings": [5]}, "stop strings cannot be list"),
    ({"logits_processor": [5]}, "logits processor cannot be list"),
    ({"stopping_criteria": 5}, "stopping criteria cannot be int 5"),
    ({"eos_token_id": "x"}, "eos token id cannot be str 'x'"),
]


@pytest.mark.parametrize(("options", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_options_are_refused_before_anything_runs(
    options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    offramp.generate(model, PROMPTS[0], max_new_tokens=2, policy=POLICY)
    before = state_of(model.hf)

    def run(*arguments: Any) -> None:
        raise AssertionError("a layer ran")

    monkeypatch.setattr(Sequences, "run", run)
    with pytest.raises(offramp.InputError, match=message) as caught:
        offramp.generate(model, PROMPTS[0], **options)
    assert caught.value.fix
    assert state_of(model.hf) == before


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "there is no prompt|empty"),
        ([[5, 6], []], "the prompt is empty"),
        (torch.zeros(1, 0, dtype=torch.long), "the prompt is empty"),
        ([5, VOCABULARY], "is none of the model's"),
        ([5, -1], "is none of the model's"),
        ([5, "a"], "no token id"),
        (np.array([0.5]), "float64 tensor"),
        (np.array(5), "tensor of shape"),
        ([[5], 6], "no token id"),
        (torch.zeros((1, 3), dtype=torch.long, device="meta"), "on the meta device holds no token ids"),
        (torch.ones(1, 2), "float32 tensor"),
        (3, "prompt cannot be int 3"),
        ([5] * (CONTEXT - 1), f"shorten the prompt to {CONTEXT - 64} tokens"),
    ],
)
def test_bad_prompts_are_refused(prompt: Any, message: str) -> None:
    with pytest.raises(offramp.InputError) as caught:
        offramp.generate(tiny_llama(), prompt)
    assert re.search(message, str(caught.value))


def test_token_ids_may_be_of_any_kind_and_so_may_numbers() -> None:
    model = tiny_llama()
    plain = offramp.generate(model, [5, 6, 7], max_new_tokens=2, force_tokens=[8, 9], policy=POLICY)
    for prompt in (range(5, 8), np.array([5, 6, 7]), torch.tensor([[5, 6, 7]]), (np.int64(5), 6, 7)):
        for forced in (np.array([8, 9]), range(8, 10), [[np.int64(8), 9]], torch.tensor([8, 9])):
            found = offramp.generate(model, prompt, max_new_tokens=2, force_tokens=forced, policy=POLICY)
            assert_same(found, plain)
    two = offramp.generate(model, np.array([[5, 6], [7, 8]]), max_new_tokens=2)
    assert [one.tokens for one in two] == [
        one.tokens for one in offramp.generate(model, [[5, 6], [7, 8]], max_new_tokens=2)
    ]
    sampled = [offramp.generate(model, [5], max_new_tokens=4, top_k=k, seed=1) for k in (np.int64(3), 3)]
    assert sampled[0].tokens == sampled[1].tokens


def test_token_ids_go_through_no_chat_template() -> None:
    with pytest.raises(offramp.InputError, match="token ids go through no chat template"):
        offramp.generate(tiny_llama(), [5, 6], chat=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, "cannot honour beam search\n"),
        ({"use_cache": False}, "use_cache=False"),
        ({"assistant_model": tiny_llama().hf}, "assist"),
        ({"cache_implementation": "static"}, "cache implementation"),
        ({"return_dict_in_generate": True, "output_hidden_states": True}, "output_hidden_states"),
        ({"return_dict_in_generate": True, "output_logits": True}, "output_logits"),
        ({"prompt_lookup_num_tokens": 2}, "cannot honour assisted generation\n"),
        ({"position_ids": torch.arange(1, 10)[None]}, "position_ids"),
        ({"guidance_scale": 2.0}, "guidance"),
        ({"token_type_ids": torch.ones(1, 9)}, "token_type_ids"),
    ],
)
def test_arguments_of_transformers_that_cannot_be_honoured(options: dict[str, Any], message: str) -> None:
    model = tiny_llama()
    ids = torch.arange(2, 11)[None]
    if "token_type_ids" in options:
        early = offramp.early_exit(POLICY)
        config = model.hf.generation_config
        with pytest.raises(offramp.InputError, match=message):
            early(model.hf, ids, [], [], config, **options)
        return
    before = state_of(model.hf)
    with pytest.raises(offramp.InputError, match=message):
        model.hf.generate(ids, custom_generate=offramp.early_exit(POLICY), max_new_tokens=3, **options)
    if "cache_implementation" not in options:  # transformers itself keeps a static cache in the model
        assert state_of(model.hf) == before


def test_what_a_generation_config_asks_for_is_looked_for_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    monkeypatch.setattr(model.hf.generation_config, "num_beams", 2)
    with pytest.raises(offramp.InputError, match="cannot honour beam search") as refused:
        offramp.generate(model, [5, 6], policy=POLICY)
    assert refused.value.where.startswith("generation_config.json")
    assert refused.value.fix == "leave it out"


def generate_of_another_version(loop: Any) -> Any:
    """As transformers' `generate` calls a custom loop, but with other names."""
    return loop()


def test_a_transformers_that_hides_its_arguments_is_told_of() -> None:
    def loop() -> Any:
        return given_to_generate()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert generate_of_another_version(loop) == {}  # not transformers
    code, names = generate_of_another_version.__code__, {"__name__": "transformers.generation.utils"}
    with pytest.warns(RuntimeWarning, match="streamer or assistant_model was given"):
        assert FunctionType(code, names)(loop) == dict.fromkeys(KEPT_BACK)


@contextmanager
def poisoned(layer: Any, after: int, value: float = float("nan")) -> Iterator[None]:
    """From its call number `after` on, a layer gives a number that is not finite."""
    calls = 0

    def poison(module: Any, arguments: Any, output: Any) -> Any:
        nonlocal calls
        calls += 1
        return output * value if calls > after else output

    handle = layer.register_forward_hook(poison)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("kv", ["propagate", "recompute", "speculate"])
def test_a_broken_number_ends_the_generation_and_says_where(kv: str) -> None:
    model = tiny_llama()
    whole = offramp.generate(model, PROMPTS[0], max_new_tokens=8, kv=kv)
    before = state_of(model.hf)
    with poisoned(model.stack.layers[2], after=4), pytest.warns(RuntimeWarning, match="layer 3"):
        found = offramp.generate(model, PROMPTS[0], max_new_tokens=8, kv=kv)
    length = len(model.encode(PROMPTS[0]))
    assert found.tokens == whole.tokens[:4]
    assert found.stopped == "problem"
    assert found.problem is not None
    assert f"new token 5 (position {length + 4}): layer 3 gives" in found.problem
    assert state_of(model.hf) == before
    assert_same(offramp.generate(model, PROMPTS[0], max_new_tokens=8, kv=kv), whole)


@pytest.mark.parametrize("kv", ["propagate", "speculate"])
def test_tokens_that_a_model_rules_out_break_nothing(kv: str) -> None:
    hf = build_family("phi")
    hf.lm_head.bias[20:60] = -torch.inf
    ids = torch.arange(3, 12)[None]
    given: dict[str, Any] = {"max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    expected = hf.generate(ids, **given)
    policy = None if kv == "propagate" else "threshold:signal=margin,value=0.01,exits=1+2+3"
    early = offramp.early_exit(policy, kv=kv)
    assert torch.equal(hf.generate(ids, custom_generate=early, **given), expected)
    assert early.last is not None
    assert early.last.rows[0].problem is None


def test_which_logits_are_broken() -> None:
    none, fine = -torch.inf, [0.0, -torch.inf]
    rows = torch.tensor([fine, [none, none], [torch.nan, 1.0], [torch.inf, 1.0], [1e30, -1e30]])
    assert is_broken(rows).tolist() == [False, True, True, True, False]
    chooser = Chooser(lambda ids, scores: scores, prompt=1, sampling=True)
    with pytest.raises(NonFiniteLogits) as caught:
        require_whole(chooser.choose(torch.zeros(5, 1), rows).broken)
    assert caught.value.row == 1
    chooser.finished = torch.tensor([False, True, True, True, False])
    choice = chooser.choose(torch.zeros(5, 1), rows)
    require_whole(choice.broken)
    assert choice.chosen.shape == (5,)


def test_a_problem_is_looked_for_without_disturbing_other_threads() -> None:
    model = tiny_llama()
    engine = engine_of(model)
    ids = ids_of(model, PROMPTS[0])
    whole = offramp.generate(model, PROMPTS[1], max_new_tokens=30)
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            describe_problem(engine, ids[0], 1)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        found = [offramp.generate(model, PROMPTS[1], max_new_tokens=30).tokens for _ in range(2)]
    finally:
        done.set()
        thread.join()
    assert found == [whole.tokens] * 2


@pytest.mark.parametrize("kv", ["propagate", "recompute", "speculate"])
def test_what_was_cached_is_gone_with_the_generation_not_with_the_collector(
    kv: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    offramp.generate(model, PROMPTS[0], max_new_tokens=4, policy=POLICY, kv=kv)
    held: list[weakref.ref[Any]] = []
    run = Sequences.run

    def noting(self: Sequences, *arguments: Any) -> Any:
        held.append(weakref.ref(self.cache.layers[0]))
        return run(self, *arguments)

    monkeypatch.setattr(Sequences, "run", noting)
    gc.collect()
    gc.disable()
    try:
        offramp.generate(model, PROMPTS[0], max_new_tokens=8, policy=POLICY, kv=kv)
        assert held
        assert not any(layer() is not None for layer in held)
    finally:
        gc.enable()


CANNOT = {"lockstep": "it cannot"}


def test_one_row_with_padding_needs_what_a_batch_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    prompts = prompt_batch(model, list(PROMPTS[1:3]), chat=False)
    for batching in ("lockstep", "rebatch"):
        with monkeypatch.context() as patch:
            patch.setattr(Abilities, "reason", lambda self, ability: CANNOT.get(ability))
            with pytest.raises(offramp.InputError, match=r"\(lockstep\): it cannot"):
                generate_batch(model, prompts.ids, prompts.mask, batching=batching, max_new_tokens=2)
            padded = int(prompts.mask.sum(1).argmin())
            one = slice(padded, padded + 1)
            with pytest.raises(offramp.InputError, match=r"\(lockstep\): it cannot"):
                generate_batch(model, prompts.ids[one], prompts.mask[one], max_new_tokens=2)
            generate_batch(model, prompts.ids[one], None, max_new_tokens=2)


def test_a_broken_prompt_gives_no_token() -> None:
    model = tiny_llama()
    offramp.generate(model, list(PROMPTS), max_new_tokens=2)  # tries abilities, which hooks would spoil
    with poisoned(model.stack.layers[0], after=0), pytest.warns(RuntimeWarning, match="layer 1"):
        rows = offramp.generate(model, list(PROMPTS), max_new_tokens=8)
    assert [row.tokens for row in rows] == [[]] * len(PROMPTS)
    assert all(row.problem for row in rows)


class Interrupts:
    """A streamer that interrupts at some token, or a hook that does within a layer."""

    def __init__(self, error: BaseException, at: int = 4) -> None:
        self.error = error
        self.left = at

    def put(self, *values: Any) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def end(self) -> None:
        raise AssertionError("it did not end")


@pytest.mark.parametrize(
    ("kv", "batching"),
    [
        ("propagate", "lockstep"),
        ("propagate", "rebatch"),
        ("recompute", "lockstep"),
        ("speculate", "lockstep"),
        ("monotone", "lockstep"),
    ],
)
@pytest.mark.parametrize("within", ["a stream", "a projection", "the positions"])
def test_the_model_is_unchanged_after_an_interruption_anywhere(kv: str, batching: str, within: str) -> None:
    model = tiny_llama()
    policy = f"monotone:policy=[{POLICY}]" if kv == "monotone" else POLICY
    given: dict[str, Any] = {"policy": policy, "kv": kv, "batching": batching, "max_new_tokens": 8}
    prompts = list(PROMPTS if batching == "rebatch" else PROMPTS[:1])
    whole = offramp.generate(model, prompts, **given)
    before = state_of(model.hf)
    stop = Interrupts(KeyboardInterrupt() if within == "a stream" else RuntimeError("mine"), at=4)
    inner = model.hf.model
    places = {"a projection": inner.layers[1].self_attn.k_proj, "the positions": inner.rotary_emb}
    handle = places[within].register_forward_hook(stop.put) if within in places else None
    with pytest.raises(type(stop.error)):
        offramp.generate(model, prompts, streamer=None if handle else stop, **given)
    if handle is not None:
        handle.remove()
    assert state_of(model.hf) == before
    for found, expected in zip(offramp.generate(model, prompts, **given), whole, strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_says_what_would_fit(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    before = state_of(model.hf)
    with pytest.raises(OfframpError, match=r"memory ran out for 4 x \d+ tokens") as caught:
        offramp.generate(model, list(PROMPTS), max_new_tokens=8, streamer=Interrupts(error))
    assert "3 prompts at a time" in caught.value.fix
    monkeypatch.setattr("offramp.decoding.generation.loop.free_bytes", lambda device: 5 * 2 * 4 * 32 * 4)
    with pytest.raises(OfframpError) as caught:
        offramp.generate(model, PROMPTS[0], max_new_tokens=8, streamer=Interrupts(error))
    assert "give at most 5 tokens a prompt" in caught.value.fix
    assert state_of(model.hf) == before


def test_generations_in_threads_do_not_mix() -> None:
    model = tiny_llama()
    jobs = [(prompt, kv) for prompt in PROMPTS[:2] for kv in ("propagate", "recompute", "speculate")]

    def one(place: int) -> Any:
        prompt, kv = jobs[place]
        return offramp.generate(model, prompt, policy=POLICY, kv=kv, max_new_tokens=10)

    expected = [one(place) for place in range(len(jobs))]
    found: dict[int, Any] = {}

    def work(place: int) -> None:
        found[place] = one(place)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, result in enumerate(expected):
        assert_same(found[place], result)


def test_a_policy_that_breaks_its_word_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    policy = offramp.parse_policy(POLICY)
    monkeypatch.setattr(type(policy), "never_deepens", True)
    with pytest.raises(PolicyError, match="lets tokens go deeper"):
        offramp.generate(model, PROMPTS[0], policy=policy, kv="monotone", max_new_tokens=20)
    with pytest.raises(PolicyError, match="lets tokens go deeper"):
        offramp.generate(
            model, list(PROMPTS), policy=policy, kv="monotone", batching="rebatch", max_new_tokens=20
        )


def test_no_gradients_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    seen: list[bool] = []
    handle = model.stack.layers[0].register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))
    with torch.enable_grad():
        offramp.generate(model, PROMPTS[0], max_new_tokens=3)
    handle.remove()
    assert seen
    assert not any(seen)
