"""A checkpoint trained to exit (LayerSkip) is an ordinary model: loaded, traced, tuned, decoded as it is."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from trained_models import LAYERS, LENGTH, sentences, text_of, write_trained

import offramp

DOCUMENTS = 160
HALF = LAYERS // 2


@dataclass(frozen=True)
class Trained:
    """One of the two models, traced on sentences that training did not see, and tuned."""

    model: offramp.Model
    trace: offramp.Trace
    tuned: offramp.Tuned

    @property
    def agreement(self) -> np.ndarray:
        """Share of tokens by exit whose top-1 is that of exit L."""
        share: np.ndarray = (self.trace.top1 == self.trace.top1[:, -1:]).mean(0)
        return share


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


def test_exits_that_were_trained_agree_at_half_depth(models: dict[bool, Trained]) -> None:
    assert models[True].agreement[HALF - 1] > 0.9
    assert models[False].agreement[HALF - 1] < models[True].agreement[HALF - 1] - 0.1


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
    print(skipped, same)
    assert skipped[True] > 0.2
    assert skipped[True] > skipped[False] + 0.1
    assert np.mean(same) > 0.85
