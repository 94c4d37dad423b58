"""A checkpoint trained to exit (LayerSkip) is an ordinary model: loaded, traced, tuned, decoded as it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import offramp

WORDS = 24
LAYERS = 4
LENGTH = 24
STEPS = 140


def sentences(count: int, *, seed: int, length: int = LENGTH) -> np.ndarray:
    """Words [count, length]: the next is a fixed function of the last two, now and then a random one."""
    generator = np.random.default_rng(seed)
    # Too many cases for one small layer, so that a model without a loss at its exits uses all of them.
    table = np.random.default_rng(1).integers(WORDS, size=(WORDS, 8))
    words = generator.integers(WORDS, size=(count, length))
    for place in range(2, length):
        ruled = table[words[:, place - 1], words[:, place - 2] % 8]
        words[:, place] = np.where(generator.random(count) < 0.9, ruled, words[:, place])
    return words


def text_of(words: np.ndarray) -> str:
    """The words of a sentence as its tokenizer reads them."""
    return " ".join(f"w{word}" for word in words)


def write_trained(folder: Path, *, exit_loss: bool) -> Path:
    """A Llama trained for some seconds, with a tokenizer. exit_loss: at every exit, through the one head."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=WORDS + 2,
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = torch.from_numpy(sentences(STEPS * 16, seed=2) + 2).view(STEPS, 16, LENGTH)
    for batch in data:
        states = model(batch, output_hidden_states=True).hidden_states
        # The last of them is behind the final norm already.
        normed = [*(model.model.norm(state) for state in states[1:-1]), states[-1]]
        losses = [
            F.cross_entropy(model.lm_head(state[:, 1:-1]).flatten(0, 1), batch[:, 2:].flatten())
            for state in (normed if exit_loss else normed[-1:])
        ]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1} | {f"w{word}": word + 2 for word in range(WORDS)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<s>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(
        folder
    )


DOCUMENTS = 80


@dataclass(frozen=True)
class Trained:
    """One of the two models, traced on sentences that training did not see, and tuned."""

    model: offramp.Model
    trace: offramp.Trace
    tuned: offramp.Tuned


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Trained]:
    folder = tmp_path_factory.mktemp("trained")
    lines = [
        json.dumps({"id": str(number), "text": text_of(words)})
        for number, words in enumerate(sentences(DOCUMENTS, seed=7))
    ]
    (folder / "sentences.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = {}
    for exit_loss in (True, False):
        path = write_trained(folder / f"model-{exit_loss}", exit_loss=exit_loss)
        model = offramp.load_model(str(path))
        trace = offramp.trace(
            model, f"jsonl:{folder / 'sentences.jsonl'}#text", tokens=DOCUMENTS * (LENGTH - 1)
        )
        found[exit_loss] = Trained(model, trace, offramp.tune(trace, {"agreement": 0.9}, hardware=None))
    return found


def test_tuning_finds_the_skip_that_training_made(models: dict[bool, Trained]) -> None:
    trained, plain = (offramp.replay(one.trace, one.tuned.policy) for one in models.values())
    assert models[True].tuned.certificate.holds
    assert trained.skip_ratio > 0.3
    assert trained.skip_ratio > plain.skip_ratio + 0.1


def test_decoding_leaves_layers_out_for_real_and_says_the_same(models: dict[bool, Trained]) -> None:
    """With forced tokens every choice has the same text before it: one other word does not count for all."""
    skipped, same = {}, []
    for exit_loss, one in models.items():
        executed = np.zeros(2)
        for words in sentences(6, seed=11):
            ids = one.model.encode(text_of(words))
            prompt, forced = [ids[:4]], [ids[4:]]
            plain, early = (
                offramp.generate(one.model, prompt, policy=policy, force_tokens=forced)[0]
                for policy in (None, one.tuned)
            )
            executed += plain.layers_executed, early.layers_executed
            if exit_loss:
                same.append(np.mean(np.array(plain.chosen) == np.array(early.chosen)))
        skipped[exit_loss] = 1 - executed[1] / executed[0]
    assert skipped[True] > 0.2
    assert skipped[True] > skipped[False] + 0.1
    assert np.mean(same) > 0.85
