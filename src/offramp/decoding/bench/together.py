"""Settings measured together: tried out, then in turns, then summed up with what they share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.decoding.bench.circumstances import Load, describe
from offramp.decoding.bench.contenders import NEVER, Extent, Setting, candidates_of
from offramp.decoding.bench.entrant import Decoded, Entrant
from offramp.decoding.bench.results import BenchResult, Contender
from offramp.decoding.bench.summary import answers_of, summarise, twin_ratios
from offramp.decoding.bench.turns import Group, Samples, Trial, take_turns, try_out
from offramp.errors import OfframpError
from offramp.files import sha256_of_text
from offramp.models.gguf_file import quiet_transformers

Progress = Callable[[int, int], None]
"""Called with the decodings done so far and their number in all."""


@dataclass(frozen=True)
class Measurement:
    """A bench result, and what was decoded: by contender's name, each batch of prompts once."""

    result: BenchResult
    setting: Setting
    decoded: Mapping[str, tuple[Decoded, ...]]


def run_together(
    settings: Sequence[Setting],
    *,
    rounds: Sequence[int],
    extent: Extent,
    budget_seconds: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Measurement | OfframpError]:
    """`run` for several settings of one model at once, or what made one of them fail.

    Each has its own prompts, policies and plain decoders; their batches of prompts take turns, and the
    identical contenders of all settings are compared together. rounds: of each setting.
    """
    with quiet_transformers():
        load, entries = Load(), [_Entry.of(setting, extent) for setting in settings]
        turns = Turns(progress, [entry.turns(asked) for entry, asked in zip(entries, rounds, strict=True)])
        for place, entry in enumerate(entries):
            # Settings share a model, and what is set up once.
            entry.try_out(extent, 0 if place else extent.warm_up_tokens, turns.done)
        taking = [place for place, entry in enumerate(entries) if entry.error is None]
        samples = take_turns(
            [entries[place].group(rounds[place]) for place in taking],
            seed=seed,
            budget_seconds=budget_seconds,
            turn_done=turns.done,
        )
        for place, taken in zip(taking, samples, strict=True):
            entries[place].take(taken)
        ratios = [twin_ratios(entry.samples) for entry in entries if entry.error is None]
        twins = np.concatenate(ratios) if ratios else None
        return [
            entry.error or _measurement(entry, asked, twins, load, seed, budget_seconds)
            for entry, asked in zip(entries, rounds, strict=True)
        ]


@dataclass
class _Entry:
    """One setting on its way through a run. error: what ended it."""

    setting: Setting
    entrants: list[Entrant]
    missing: list[Contender]
    trials: dict[str, Trial]
    samples: Samples
    error: OfframpError | None = None

    @classmethod
    def of(cls, setting: Setting, extent: Extent) -> _Entry:
        found = list(candidates_of(setting, extent))
        entrants = [one for one in found if isinstance(one, Entrant)]
        return cls(setting, entrants, [one for one in found if isinstance(one, Contender)], {}, {})

    def turns(self, rounds: int) -> int:
        return len(self.entrants) * len(self.setting.prompts) * (1 + rounds)

    def try_out(self, extent: Extent, warm_up_tokens: int, done: Callable[[], None]) -> None:
        setting = self.setting
        prompts = setting.prompts[: extent.untimed_batches]
        try:
            self.trials, failed = try_out(
                self.entrants,
                prompts,
                setting.new_tokens,
                setting.model.stack,
                done,
                warm_up_tokens=warm_up_tokens,
            )
        except OfframpError as error:
            self.error = error
            return
        self.missing += failed
        self.entrants = [entrant for entrant in self.entrants if entrant.name in self.trials]

    def group(self, rounds: int) -> Group:
        return Group(self.entrants, self.setting.prompts, self.setting.new_tokens, rounds)

    def take(self, samples: Samples | OfframpError) -> None:
        if isinstance(samples, OfframpError):
            self.error = samples
        else:
            self.samples = samples


def _measurement(
    entry: _Entry,
    rounds: int,
    twins: NDArray[np.float64] | None,
    load: Load,
    seed: int,
    budget_seconds: float | None,
) -> Measurement:
    setting, batches = entry.setting, len(entry.setting.prompts)
    further = {
        "seed": seed,
        "rounds_asked": rounds,
        "policy_fingerprints": {cell.name: sha256_of_text(str(cell.policy)) for cell in setting.cells},
        "heads_fingerprint": None if setting.heads is None else setting.heads.fingerprint,
    }
    circumstances = describe(setting.model, load, further)
    result = summarise(setting, entry.entrants, entry.trials, entry.samples, circumstances, twins)
    notes = [entrant.note for entrant in entry.entrants if entrant.note is not None]
    if twins is not None and len(twins) > len(entry.samples[NEVER]):
        notes.append(f"the two identical contenders are compared on all texts together: {len(twins)} pairs")
    if result.rounds < rounds:
        notes.append(f"{result.rounds} of {rounds} rounds fitted into {budget_seconds:g} seconds")
    result = replace(result, contenders=(*result.contenders, *entry.missing), notes=(*result.notes, *notes))
    decoded = {name: answers_of(trial, entry.samples[name], batches) for name, trial in entry.trials.items()}
    return Measurement(result, setting, decoded)


class Turns:
    """Counts decodings for a progress bar. totals: how many there will be, by group."""

    def __init__(self, progress: Progress | None, totals: Sequence[int]) -> None:
        self._progress, self._total, self._count = progress, sum(totals), 0

    def done(self) -> None:
        """One more is over."""
        self._count += 1
        if self._progress is not None:
            self._progress(self._count, self._total)
