"""How large a model of a study is, and what a task on it will roughly take on this machine, from sizes alone.

Seconds come from nominal rates; `offramp.studies.status` corrects them by what finished tasks took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.costs.counting import REDUCTION_FLOPS
from offramp.kit.defaults import FEWEST_VISITS, PROMPT_TOKENS
from offramp.models.process import WORKING_SHARE, parse_size
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import Transform
from offramp.studies.entries import TransformEntry, exit_list
from offramp.studies.found import FoundModel
from offramp.studies.study import Study
from offramp.studies.task import TaskCost

FLOPS_PER_THREAD = 4e10
"""Products of matrices in float32 that a processor's core really does in a second."""
BYTES_PER_SECOND = 1e10
"""From memory, for which a token of plain decoding waits."""
DISK_BYTES_PER_SECOND = 1e9
STARTING_SECONDS = 6.0
"""Imports of torch and transformers, and a model's checks."""
ANSWERED_TOGETHER = 8
"""Prompts, about."""
ABOUT_TOKENS = 24
"""New tokens where there are as many as there is time for."""
LAYER_SECONDS = 3e-4
"""Of a decoding step, what each layer takes beside its products."""
PLAIN_CONTENDERS = 3
"""That take turns with the others: the fastest plain decoder, the same again, and never exit."""

TORCH_BYTES = 900_000_000
"""Of a process that has imported torch and transformers and works with a small batch."""
NUMPY_BYTES = 300_000_000
"""Of a process that reads traces without torch."""
READING_BYTES = 400
"""In memory, for each token at an exit, of a task that reads a trace."""
RESULT_BYTES = 50_000


@dataclass(frozen=True)
class Sizes:
    """How large a model of a study is once it is transformed, and how the study works on it. None: not known.

    exits: that are traced. head: elements of the output matrix. weights: bytes as loaded. models: that are in
    memory together. tokens: of a trace. streamed: whether its layers stay on disk. room: bytes of weights
    that may be in memory then, None for what is free.
    """

    layers: int | None
    exits: int | None
    parameters: float | None
    hidden: int | None
    head: int | None
    weights: float | None
    models: int
    threads: int
    tokens: int
    streamed: bool = False
    room: int | None = None

    # --- what tasks of a kind take

    def copying(self) -> TaskCost:
        """Of copying a file."""
        return TaskCost(1.0, NUMPY_BYTES, None)

    def reading_a_trace(self, seconds_per_fact: float, *, rounds: int = 1) -> TaskCost:
        """Of a task that reads one trace. seconds_per_fact: of one token at one exit. rounds: how often it
        does what it does once for each floor.
        """
        if self.exits is None:
            return TaskCost(None, None, RESULT_BYTES)
        facts = self.tokens * self.exits
        seconds = 0.2 + rounds * facts * seconds_per_fact
        return TaskCost(seconds, NUMPY_BYTES + facts * READING_BYTES, RESULT_BYTES)

    def on_model(
        self,
        seconds: float | None,
        *,
        answered: float = 0.0,
        more_memory: int = 0,
        disk_bytes: int | None = None,
    ) -> TaskCost:
        """Of a task that computes with the model for so long.

        answered: tokens of answers that it writes first. more_memory: bytes beside the model.
        """
        if seconds is not None and answered:
            seconds += self.answering(answered)
        memory = None if self.memory is None else self.memory + more_memory
        return TaskCost(self.after_loading(seconds), memory, disk_bytes)

    def timing(self, seconds: float | None, *, models: int = 1) -> TaskCost:
        """Of a task that takes timings for so long. models: that it has in memory."""
        memory = None if self.weights is None else round(TORCH_BYTES + models * WORKING_SHARE * self.weights)
        return TaskCost(self.after_loading(seconds), memory, RESULT_BYTES)

    def decoding(
        self,
        contenders: int,
        *,
        new_tokens: int | str,
        visits: int,
        seconds: float,
        models: int = 1,
    ) -> TaskCost:
        """Of a task that decodes prompts in turns: one of them untimed, then as many as fit into the seconds.

        contenders: beside the plain ones. new_tokens: a text for as many as there is time for. visits: of
        each contender to a prompt, at most. models: that it has in memory.
        """
        spent = None
        prompt = self.forwards(PROMPT_TOKENS, 1)
        if prompt is not None:
            count = ABOUT_TOKENS if isinstance(new_tokens, str) else new_tokens
            turn = (contenders + PLAIN_CONTENDERS) * (prompt + count * self.step)
            spent = turn * (1 + max(FEWEST_VISITS, min(visits, seconds / turn - 1)))
        return self.timing(spent, models=models)

    # --- what these are made of

    def forwards(self, tokens: int, exits: int | None) -> float | None:
        """Seconds to bring tokens through all layers and read them out at some exits."""
        if self.parameters is None or self.head is None or self.hidden is None or exits is None:
            return None
        readouts = exits * self.head * (2.0 + REDUCTION_FLOPS / self.hidden)
        return tokens * (2.0 * self.parameters + readouts) / self.flops_per_second

    def answering(self, tokens: float) -> float:
        """Seconds to write so many tokens of answers, some of them side by side."""
        return tokens / ANSWERED_TOGETHER * self.step

    @property
    def flops_per_second(self) -> float:
        """That all threads do together."""
        return FLOPS_PER_THREAD * self.threads

    @property
    def step(self) -> float:
        """Seconds of one step of plain decoding."""
        return (self.weights or 0.0) / BYTES_PER_SECOND + LAYER_SECONDS * (self.layers or 0)

    def after_loading(self, seconds: float | None) -> float | None:
        """Seconds with those until the model is loaded."""
        if seconds is None or self.weights is None:
            return None
        return STARTING_SECONDS + self.models * self.weights / DISK_BYTES_PER_SECOND + seconds

    @property
    def memory(self) -> int | None:
        """Bytes of a process with the model in it, whole or layer by layer."""
        if self.weights is None:
            return None
        if not self.streamed:
            return round(TORCH_BYTES + self.models * WORKING_SHARE * self.weights)
        if self.room is not None:
            return TORCH_BYTES + self.room
        if self.layers is None or self.head is None or self.parameters is None:
            return None
        # Embedding and head stay in memory, beside the layer in use and the next one.
        share = 2 * self.head / self.parameters + 3 / self.layers
        return round(TORCH_BYTES + min(1.0, share) * WORKING_SHARE * self.weights)


@dataclass(frozen=True)
class ModelVariant:
    """A model with what is done to it."""

    model: FoundModel
    transform: TransformEntry
    steps: tuple[Transform, ...]
    sizes: Sizes

    @property
    def texts(self) -> list[str]:
        """The transforms as canonical texts."""
        return [step.text for step in self.steps]

    @property
    def name(self) -> str:
        """As shown: "smollm2 + int8"."""
        label = self.transform.label
        return f"{self.model.entry.name} + {label}" if label else self.model.entry.name


def sizes_of(study: Study, model: FoundModel, steps: Sequence[Transform]) -> Sizes:
    """The sizes of a model of a study."""
    settings = study.settings
    dropped = sum(step.count for step in steps if isinstance(step, Prune))
    entry = model.entry
    layers = None if entry.layers is None else max(1, entry.layers - dropped)
    known = entry.hidden is not None and entry.vocabulary is not None
    return Sizes(
        layers=layers,
        exits=layers if settings.exits == "all" else len(exit_list(settings.exits)) + 1,
        parameters=entry.parameters,
        hidden=entry.hidden,
        head=(entry.hidden or 0) * (entry.vocabulary or 0) if known else None,
        weights=model.weight_bytes(settings.dtype),
        models=2 if steps else 1,  # what was changed is held against the model as it was
        threads=settings.threads,
        tokens=settings.tokens,
        streamed=study.streamed,
        room=room_of(study),
    )


def room_of(study: Study) -> int | None:
    """Bytes of weights that the study allows in memory, None where it says nothing."""
    large = study.large
    return None if large is None or large.memory is None else parse_size(large.memory, "memory")
