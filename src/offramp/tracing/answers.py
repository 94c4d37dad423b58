"""Greedy answers of the full model, kept on disk so that a killed run does not write them again."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from offramp.errors import DamagedFileError
from offramp.files import sha256_of_text, write_json_atomically
from offramp.models.model import Model
from offramp.workloads.answers import PlannedAnswer

ANSWERS = "answers.json"
ANSWERS_AT_ONCE = 16


class Answerer:
    """Answers planned prompts with the full model, greedily, some at a time.

    The prompts of a batch are padded on the left and masked. With a folder, every batch is kept in
    `answers.json` under the request's fingerprint, and read from there when the run is resumed.
    """

    def __init__(
        self, model: Model, *, folder: Path | None, request: str, on_tokens: Callable[[int], None]
    ) -> None:
        self.model = model
        self.path = None if folder is None else folder / ANSWERS
        self.request = request
        self.on_tokens = on_tokens
        self.kept = self._read()

    def __call__(self, batch: Sequence[PlannedAnswer]) -> list[tuple[int, ...]]:
        """New tokens of each planned answer, the end token included."""
        keys = [sha256_of_text(f"{planned.max_new_tokens} {list(planned.ids)}") for planned in batch]
        if not all(key in self.kept for key in keys):
            for key, new_tokens in zip(keys, generate_greedily(self.model, batch), strict=True):
                self.kept[key] = list(new_tokens)
            if self.path is not None:
                write_json_atomically(self.path, {"request": self.request, "answers": self.kept})
        answers = [tuple(self.kept[key]) for key in keys]
        self.on_tokens(sum(len(answer) for answer in answers))
        return answers

    def _read(self) -> dict[str, list[int]]:
        if self.path is None or not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            known: dict[str, list[int]] = content["answers"] if content["request"] == self.request else {}
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedFileError(
                "the kept answers cannot be read",
                where=str(self.path),
                fix="delete the file and run again; the answers are generated again",
            ) from error
        return known


def generate_greedily(model: Model, batch: Sequence[PlannedAnswer]) -> list[tuple[int, ...]]:
    """The full model's greedy answers, cut at each one's limit or after its end token."""
    from transformers import GenerationConfig

    longest = max(len(planned.ids) for planned in batch)
    ids = torch.zeros(len(batch), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, planned in enumerate(batch):
        ids[row, longest - len(planned.ids) :] = torch.tensor(planned.ids)
        mask[row, longest - len(planned.ids) :] = 1
    ends = list(model.eos_token_ids)
    plain_greedy = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        max_new_tokens=max(planned.max_new_tokens for planned in batch),
        eos_token_id=ends or None,
        pad_token_id=ends[0] if ends else 0,
        bos_token_id=model.bos_policy.token_id,
    )
    with torch.no_grad():
        out = model.hf.generate(ids, attention_mask=mask, generation_config=plain_greedy)
    answers = []
    for row, planned in zip(out[:, longest:].tolist(), batch, strict=True):
        stop = next((place + 1 for place, token in enumerate(row) if token in ends), len(row))
        answers.append(tuple(row[: min(stop, planned.max_new_tokens)]))
    return answers
