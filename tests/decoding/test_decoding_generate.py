"""Generation against transformers' own, against a slow reference, and against independent counts."""

from __future__ import annotations

import threading
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from generation_cases import (
    POLICY,
    PROMPTS,
    assert_same,
    counted_layers,
    generate_batch,
    ids_of,
    reference_logits,
    reference_tokens,
    tiny_llama,
)
from strategy_cases import build_family, build_windowed, greedy
from strategy_cases import ids_of as random_ids
from transformers import LogitsProcessor, LogitsProcessorList, SynthIDTextWatermarkingConfig

import offramp
from offramp.decoding.engine.build import engine_of
from offramp.decoding.generation.prompts import prompt_batch
from tiny_models import VOCABULARY

NEW = 12


def hf_rows(model: offramp.Model, prompts: Any, **options: Any) -> list[list[int]]:
    """New tokens of transformers' own loop, padding after an end token left out."""
    batch = prompt_batch(model, list(prompts), chat=False)
    given = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 5} | options
    out = model.hf.generate(batch.ids, attention_mask=batch.mask, **given)[:, batch.longest :].tolist()
    ends = options.get("eos_token_id", list(model.eos_token_ids))
    ends = ends if isinstance(ends, list) else [ends]
    return [row[: min((row.index(end) + 1 for end in ends if end in row), default=len(row))] for row in out]


SAMPLED = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.9}


@pytest.mark.parametrize(
    "options",
    [
        {},
        SAMPLED,
        SAMPLED | {"eos_token_id": list(range(2, 60))},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2, "min_new_tokens": 3},
    ],
)
@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS])
def test_the_full_model_is_transformers_own(prompts: Any, options: dict[str, Any]) -> None:
    model = tiny_llama()
    torch.manual_seed(3)
    expected = hf_rows(model, prompts, **options)
    found = offramp.generate(model, list(prompts), max_new_tokens=NEW, seed=3, **options)
    assert [row.tokens for row in found] == expected
    assert all(row.tokens == row.chosen and set(row.exits) == {4} for row in found)


def test_a_seed_repeats_itself_and_leaves_the_global_state_alone() -> None:
    model = tiny_llama()
    before = torch.get_rng_state()
    first, second = (
        offramp.generate(model, PROMPTS[0], temperature=1.5, seed=7, policy=POLICY) for _ in "ab"
    )
    assert first.tokens == second.tokens
    assert first.tokens != offramp.generate(model, PROMPTS[0], temperature=1.5, seed=8, policy=POLICY).tokens
    greedy = offramp.generate(model, PROMPTS[0], temperature=0, top_k=5, do_sample=True, policy=POLICY)
    assert greedy.tokens == offramp.generate(model, PROMPTS[0], policy=POLICY).tokens
    assert torch.equal(before, torch.get_rng_state())


def test_samples_of_a_seed_are_the_same_beside_another_thread_that_samples() -> None:
    model = tiny_llama()
    given = {"temperature": 1.5, "policy": POLICY, "max_new_tokens": NEW}
    expected = [offramp.generate(model, PROMPTS[0], seed=seed, **given).tokens for seed in range(6)]
    found: dict[int, list[int]] = {}

    def sample(seed: int) -> None:
        found[seed] = offramp.generate(model, PROMPTS[0], seed=seed, **given).tokens

    threads = [threading.Thread(target=sample, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[seed] for seed in range(6)] == expected


def test_a_watermark_that_counts_its_calls_is_kept_and_refused_where_drafts_would_upset_it() -> None:
    model = tiny_llama()
    mark = {"watermarking_config": SynthIDTextWatermarkingConfig(keys=[1, 2, 3], ngram_len=5)}
    torch.manual_seed(3)
    expected = hf_rows(model, PROMPTS[:1], **SAMPLED, **mark)
    found = offramp.generate(model, list(PROMPTS[:1]), max_new_tokens=NEW, seed=3, **SAMPLED, **mark)
    assert [row.tokens for row in found] == expected
    with pytest.raises(offramp.InputError, match="must see each token once"):
        offramp.generate(model, PROMPTS[0], policy=POLICY, kv="speculate", **SAMPLED, **mark)


def test_rows_stop_at_their_own_end_and_the_others_go_on() -> None:
    model = tiny_llama()
    full = offramp.generate(model, list(PROMPTS), max_new_tokens=NEW)
    end = full[0].tokens[3]
    found = offramp.generate(model, list(PROMPTS), max_new_tokens=NEW, eos_token_id=end)
    assert [row.tokens for row in found] == hf_rows(model, PROMPTS, eos_token_id=end)
    assert found[0].stopped == "end token"
    assert len(found[0].tokens) <= 4
    assert found[0].layers_executed - found[0].prompt_layers == 4 * (len(found[0].tokens) - 1)
    assert "length" in {row.stopped for row in found}


@pytest.mark.parametrize("options", [{}, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("kv", ["propagate", "recompute", "monotone"])
def test_rows_that_are_over_leave_a_batch_in_lockstep(kv: str, options: dict[str, Any]) -> None:
    """One after the other; the rest decode what they decode beside rows that stay, and nothing else runs."""
    model = tiny_llama()
    policy = f"monotone:policy=[{POLICY}]" if kv == "monotone" else POLICY
    batch = prompt_batch(model, [*PROMPTS, *PROMPTS[:2]], chat=False)
    given = {"policy": policy, "kv": kv, "max_new_tokens": NEW, "seed": 3, **options}

    def ends(lengths: list[int]) -> Any:
        def stops(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.tensor([ids.shape[1] - batch.longest >= length for length in lengths])

        return [stops]

    lengths = [2, 9, 5, 1, 5, NEW]
    # An end token that never comes: rows are only filled up, and so may leave, where there is one.
    given["eos_token_id"] = VOCABULARY - 1
    given["suppress_tokens"] = [VOCABULARY - 1]
    with counted_layers(model.hf) as counts:
        found = generate_batch(model, batch.ids, batch.mask, **given, stopping_criteria=ends(lengths))
    assert [len(row.tokens) for row in found.rows] == lengths
    assert counts.total() == found.layers_executed == sum(row.layers_executed for row in found.rows)
    steps = {item.rows: times for item, times in found.usage.items() if item.part == "overhead"}
    assert steps == {5: 1, 4: 3, 2: 4, 1: NEW - 9}
    # Where a row leaves depends on the rows beside it, but for a static exit.
    given["policy"] = "static:exit=2"
    whole = generate_batch(model, batch.ids, batch.mask, **given, stopping_criteria=ends([NEW] * 6))
    found = generate_batch(model, batch.ids, batch.mask, **given, stopping_criteria=ends(lengths))
    for row, other, length in zip(found.rows, whole.rows, lengths, strict=True):
        assert row.tokens == other.tokens[:length]


@pytest.mark.parametrize(
    ("policy", "batching"),
    [
        (POLICY, "lockstep"),
        (POLICY, "rebatch"),
        ("patience:times=1,exits=1+2+3", "rebatch"),
        ("adaptive:signal=max_prob,target=0.05,warmup=2,exits=1+2+3", "rebatch"),
    ],
)
def test_exits_that_vary_are_the_slow_reference(policy: str, batching: str) -> None:
    model = tiny_llama()
    rows = offramp.generate(model, list(PROMPTS), policy=policy, batching=batching, max_new_tokens=NEW)
    assert len({exit for row in rows for exit in row.exits.tolist()}) > 1
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert row.tokens == reference_tokens(model.hf, model.stack.layers, model.encode(prompt), row)
        if batching == "rebatch":
            assert_same(row, offramp.generate(model, prompt, policy=policy, max_new_tokens=NEW))


@pytest.mark.parametrize("policy", [POLICY, "patience:times=1,exits=1+2+3", "static:exit=2"])
def test_rows_that_wait_together_answer_as_each_does_alone(policy: str) -> None:
    """And run what they would run in lockstep, or more: nothing that was computed counts as left out."""
    model = tiny_llama()
    given: dict[str, Any] = {"policy": policy, "kv": "recompute", "max_new_tokens": NEW}
    together = offramp.generate(model, list(PROMPTS), batching="rebatch", **given)
    alone = [offramp.generate(model, prompt, **given) for prompt in PROMPTS]
    assert policy == "static:exit=2" or len({exit for row in alone for exit in row.exits.tolist()}) > 1
    for row, other in zip(together, alone, strict=True):
        assert row.tokens == other.tokens
        assert row.exits.tolist() == other.exits.tolist()
        assert row.layers_executed - row.prompt_layers >= max(row.exits[1:].sum() for row in alone)


def test_lockstep_leaves_at_the_deepest_of_the_rows_own_exits() -> None:
    """Forced, so that all see the same tokens, and recomputed, so that going deeper changes nothing."""
    model = tiny_llama()
    policy = "threshold:signal=max_prob,value=0.035,exits=1+2+3"
    tokens = np.random.default_rng(0).integers(2, 300, (4, NEW)).tolist()
    together = offramp.generate(
        model, list(PROMPTS), policy=policy, force_tokens=tokens, kv="recompute", batching="lockstep"
    )
    own = [
        offramp.generate(model, prompt, policy=policy, force_tokens=row, kv="recompute").exits
        for prompt, row in zip(PROMPTS, tokens, strict=True)
    ]
    deepest = np.max(own, axis=0)
    assert len(set(deepest.tolist())) > 1
    assert all(np.array_equal(row.exits, deepest) for row in together)


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize(
    ("kv", "batching"),
    [
        ("propagate", "lockstep"),
        ("propagate", "rebatch"),
        ("monotone", "lockstep"),
        ("monotone", "rebatch"),
        ("recompute", "lockstep"),
        ("recompute", "rebatch"),
        ("speculate", "lockstep"),
    ],
)
def test_executed_layers_are_what_hooks_count(kv: str, batching: str, batch: int) -> None:
    model = tiny_llama()
    policy = f"monotone:policy=[{POLICY}]" if kv == "monotone" else POLICY
    prompts = prompt_batch(model, [*PROMPTS, *PROMPTS][:batch], chat=False)
    given: dict[str, Any] = {"policy": policy, "kv": kv, "batching": batching}
    with counted_layers(model.hf) as counts:
        result = generate_batch(model, prompts.ids, prompts.mask, max_new_tokens=NEW, **given)
    assert counts.total() == result.layers_executed
    assert all(row.stopped == "length" for row in result.rows)
    assert counts.total() == sum(row.layers_executed for row in result.rows)


def test_processors_are_given_the_tokens_so_far_and_decide() -> None:
    class Ban(LogitsProcessor):
        """Forbids the last token; keeps what it was given."""

        seen: ClassVar[list[list[int]]] = []

        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            self.seen.append(ids[0].tolist())
            return scores.index_fill(1, ids[0, -1:], -torch.inf)

    model = tiny_llama()
    found = offramp.generate(
        model, PROMPTS[0], policy=POLICY, max_new_tokens=NEW, logits_processor=LogitsProcessorList([Ban()])
    )
    prompt = model.encode(PROMPTS[0])
    assert Ban.seen == [prompt + found.tokens[:count] for count in range(NEW)]
    assert all(left != right for left, right in zip(found.tokens, found.tokens[1:], strict=False))


class Told:
    """A streamer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.exits: list[list[int]] = []

    def put(self, value: torch.Tensor) -> None:
        self.told.append(value.flatten().tolist())

    def put_exits(self, exits: Any) -> None:
        self.exits.append(exits.tolist())

    def end(self) -> None:
        self.told.append("end")


@pytest.mark.parametrize("kv", ["propagate", "speculate"])
def test_streamers_are_told_each_token_as_it_comes_and_its_exit(kv: str) -> None:
    model = tiny_llama()
    told = Told()
    found = offramp.generate(model, PROMPTS[0], policy=POLICY, kv=kv, max_new_tokens=NEW, streamer=told)
    assert told.told == [model.encode(PROMPTS[0]), *[[token] for token in found.tokens], "end"]
    assert told.exits == [[exit] for exit in found.exits.tolist()]


def test_inside_transformers_generate() -> None:
    model = tiny_llama()
    ids = ids_of(model, PROMPTS[0])
    early, told = offramp.early_exit(POLICY), Told()
    out = model.hf.generate(ids, custom_generate=early, max_new_tokens=NEW, do_sample=False, streamer=told)
    ours = offramp.generate(model, PROMPTS[0], policy=POLICY, max_new_tokens=NEW)
    assert out.tolist() == [ids[0].tolist() + ours.tokens]
    assert early.last is not None
    assert_same(early.last.rows[0], ours)
    assert told.told == [ids[0].tolist(), *[[token] for token in ours.tokens], "end"]


def test_inside_transformers_generate_with_scores_padding_and_several_answers() -> None:
    model = tiny_llama()
    batch = prompt_batch(model, list(PROMPTS), chat=False)
    given = {
        "attention_mask": batch.mask,
        "max_new_tokens": NEW,
        "pad_token_id": 7,
        "return_dict_in_generate": True,
        "output_scores": True,
        "num_return_sequences": 2,
        **SAMPLED,
    }
    torch.manual_seed(1)
    expected = model.hf.generate(batch.ids, **given)
    torch.manual_seed(1)
    found = model.hf.generate(batch.ids, custom_generate=offramp.early_exit(None), **given)
    assert torch.equal(found.sequences, expected.sequences)
    torch.testing.assert_close(found.scores, expected.scores)


def test_stopping_criteria_and_strings_of_the_caller() -> None:
    model = tiny_llama()
    plain = offramp.generate(model, PROMPTS[0], max_new_tokens=NEW)
    third = plain.tokens[2]
    found = offramp.generate(
        model,
        PROMPTS[0],
        max_new_tokens=NEW,
        stopping_criteria=[lambda ids, scores, **_: ids[:, -1] == third],
    )
    assert found.tokens == plain.tokens[: plain.tokens.index(third) + 1]
    assert found.stopped == "criteria"
    letter = next(letter for letter in plain.text if letter.isascii() and letter.isalnum())
    stopped = offramp.generate(model, PROMPTS[0], max_new_tokens=NEW, stop_strings=[letter])
    assert stopped.tokens == plain.tokens[: len(stopped.tokens)]
    assert letter in stopped.text
    assert letter not in model.decode(stopped.tokens[:-1])


def test_prompts_in_every_form() -> None:
    model = tiny_llama()
    ids = model.encode(PROMPTS[0])
    expected = offramp.generate(model, PROMPTS[0], max_new_tokens=3)
    for prompt in (ids, torch.tensor(ids), torch.tensor([ids])):
        assert_same(offramp.generate(model, prompt, max_new_tokens=3), expected)
    for prompts in ([PROMPTS[0]], [ids]):
        (row,) = offramp.generate(model, prompts, max_new_tokens=3)
        assert_same(row, expected)
    assert expected.text == model.decode(expected.tokens)
    assert expected.prompt_tokens == len(ids)


def test_parts_of_time_are_timed_on_demand() -> None:
    model = tiny_llama()
    ids = ids_of(model, PROMPTS[0])
    assert generate_batch(model, ids, max_new_tokens=3).part_seconds is None
    timed = generate_batch(model, ids, max_new_tokens=NEW, policy=POLICY, timing=True)
    parts = timed.part_seconds
    assert parts is not None
    assert all(seconds > 0 for seconds in parts.values())
    assert sum(parts.values()) == pytest.approx(timed.seconds, rel=0.2)
    assert timed.first_token_seconds > 0
    assert timed.steps == NEW - 1


@pytest.mark.parametrize(
    ("name", "kv"),
    [
        *(
            (name, "propagate")
            for name in ("llama", "gpt2", "gemma2", "deepseek_v3", "mamba", "jamba", "zamba2")
        ),
        *((name, "monotone") for name in ("llama", "jamba")),
    ],
)
def test_a_static_exit_of_a_family_is_the_slow_reference(name: str, kv: str) -> None:
    """Recurrent layers that are skipped run whole, unless nothing later needs them."""
    hf = build_windowed(name)
    ids, new, stack = random_ids(hf, 9), 5, engine_of(hf).stack
    early = offramp.early_exit("static:exit=2", kv=kv)
    with counted_layers(hf) as counts:
        tokens = greedy(hf, ids, new, custom_generate=early, eos_token_id=None)[0].tolist()
    assert early.last is not None
    exits = [len(stack.layers)] * 9 + [2] * (new - 1)
    logits = reference_logits(hf, stack.layers, [*ids[0].tolist(), *tokens[:-1]], exits)
    assert tokens == logits[8:].argmax(-1).tolist()
    above = sum(layer > 1 for layer in engine_of(hf).recurrent) if kv == "propagate" else 0
    assert counts.total() == early.last.layers_executed == early.last.rows[0].layers_executed
    assert counts.total() == len(stack.layers) * 9 + (2 + above) * (new - 1)
    assert early.last.rows[0].skip_ratio == pytest.approx(1 - (2 + above) / len(stack.layers))


def test_rebatch_is_refused_where_states_are_recurrent() -> None:
    hf = build_family("mamba")
    with pytest.raises(offramp.InputError, match="rebatch"):
        greedy(
            hf,
            random_ids(hf, 9, 2),
            3,
            custom_generate=offramp.early_exit("static:exit=2", batching="rebatch"),
        )


@pytest.mark.real_model
def test_the_default_model(smollm2: offramp.Model) -> None:
    model, prompt = smollm2, smollm2.encode("The capital of France is")
    policy = "threshold:signal=margin,value=0.5,exits=15+20+25"
    found = offramp.generate(model, prompt, policy=policy, max_new_tokens=5)
    assert found.tokens == reference_tokens(model.hf, model.stack.layers, prompt, found)
    assert found.skip_ratio > 0
