"""What a task will roughly take on this machine: seconds, memory and disk, from sizes alone.

Seconds come from nominal rates; `offramp.studies.status` corrects them by what finished tasks took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.costs.counting import REDUCTION_FLOPS
from offramp.kit.defaults import FEWEST_VISITS, PROMPT_TOKENS, TRAINING_MINUTES, TRAINING_ROWS
from offramp.models.memory import WORKING_SHARE, parse_size
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import Transform
from offramp.studies.entries import Combine, Decode, HeadsEntry, TrainingEntry
from offramp.studies.found import FoundModel, FoundWorkload
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
SECONDS_PER_FACT = {"score": 5e-5, "replay": 4e-6, "league": 5e-5, "tune": 6e-5}
"""Of one token at one exit, by the kind of task that reads a trace."""

TORCH_BYTES = 900_000_000
"""Of a process that has imported torch and transformers and works with a small batch."""
NUMPY_BYTES = 300_000_000
"""Of a process that reads traces without torch."""
READING_BYTES = 400
"""In memory, for each token at an exit, of a task that reads a trace."""
KEPT_BYTES = 40
"""On disk, for each token at an exit: the facts of every trace, packed."""
RESULT_BYTES = 50_000
COPYING = TaskCost(1.0, NUMPY_BYTES, None)
"""Of copying a file."""

EVALUATED_SHARE = 0.3
"""What evaluations take beside steps."""


@dataclass(frozen=True)
class Sizes:
    """How large a model is once it is transformed. None: not known.

    head: elements of the output matrix. weights: bytes as loaded. models: that are in memory together.
    """

    layers: int | None
    exits: int | None
    parameters: float | None
    hidden: int | None
    head: int | None
    weights: float | None
    models: int
    threads: int


def sizes_of(study: Study, model: FoundModel, steps: Sequence[Transform]) -> Sizes:
    """The sizes of a model of a study."""
    settings = study.settings
    dropped = sum(step.count for step in steps if isinstance(step, Prune))
    layers = None if model.layers is None else max(1, model.layers - dropped)
    known = model.hidden is not None and model.vocabulary is not None
    return Sizes(
        layers=layers,
        exits=layers if settings.exits == "all" else len(exit_list(settings.exits)) + 1,
        parameters=model.parameters,
        hidden=model.hidden,
        head=(model.hidden or 0) * (model.vocabulary or 0) if known else None,
        weights=model.weight_bytes(settings.dtype),
        models=2 if steps else 1,  # what was changed is held against the model as it was
        threads=settings.threads,
    )


def exit_list(exits: str | Sequence[int]) -> list[int]:
    """The exits of a study that are not "all" as numbers, ascending, each once."""
    numbers = map(int, exits.replace("+", ",").split(",")) if isinstance(exits, str) else exits
    return sorted({*numbers})


def trace_estimate(study: Study, sizes: Sizes, workload: FoundWorkload) -> TaskCost:
    """Of a trace: every token through all layers, read out at every exit; answers are written first."""
    tokens = study.settings.tokens
    seconds = _reading(sizes, tokens, sizes.exits)
    if seconds is not None and workload.mode == "generation":
        seconds += _answering(sizes, tokens)
    disk = None if sizes.exits is None else tokens * sizes.exits * KEPT_BYTES
    return TaskCost(_with_loading(sizes, seconds), _memory(study, sizes), disk)


def heads_estimate(study: Study, sizes: Sizes, heads: HeadsEntry, written: float) -> TaskCost:
    """Of fitting: tokens through all layers; a lens solves a system of its hidden size at every exit.

    written: share of the tokens that the model writes first.
    """
    seconds = _reading(sizes, heads.tokens, sizes.exits if heads.classifiers else 1)
    if seconds is not None:
        seconds += _answering(sizes, written * heads.tokens)
    memory = _memory(study, sizes)
    square = (sizes.hidden or 0) ** 2 * (sizes.exits or 0) if heads.lens else 0
    if memory is not None:
        memory += 32 * square
    return TaskCost(_with_loading(sizes, seconds), memory, 4 * square + RESULT_BYTES)


def training_estimate(study: Study, sizes: Sizes, entry: TrainingEntry, written: float) -> TaskCost:
    """Of training exits: the text through all layers, the steps, then classifiers and K,V maps on it.

    written: share of the tokens that the model writes first.

    A step takes the target's logits, at each exit the logits and their gradient by the state, and three times
    the products of what is trained there.
    """
    reading, exits = _reading(sizes, entry.tokens, 0), (sizes.exits or 1) - 1
    if reading is None or sizes.hidden is None or sizes.head is None:
        return TaskCost(None, _memory(study, sizes), None)
    hidden, steps = sizes.hidden, 60.0 * (entry.minutes or TRAINING_MINUTES)
    lens = hidden * hidden
    block = 3 * hidden * (entry.units or round(8 / 3 * hidden)) if entry.kind == "block" else 0
    if entry.steps is not None:
        looked_at = min(sizes.head, entry.loss_vocabulary * hidden or sizes.head)
        products = looked_at * (1 + 2 * exits) + 3 * (lens + block) * exits
        step = 2.0 * TRAINING_ROWS * products / (FLOPS_PER_THREAD * sizes.threads)
        steps = (1.0 + EVALUATED_SHARE) * entry.steps * step
    seconds = steps  # minutes are of all of it
    if entry.steps is not None:
        seconds += 2 * reading + _answering(sizes, written * entry.tokens)
    memory = _memory(study, sizes)
    weights = 4 * (lens + block) * exits
    if memory is not None:
        memory += 4 * weights + 32 * lens * exits  # moments and the best; sums of the ridge start
    return TaskCost(_with_loading(sizes, seconds), memory, weights + RESULT_BYTES)


def decoding_estimate(
    study: Study, sizes: Sizes, table: Decode | Combine, contenders: int, *, models: int = 1
) -> TaskCost:
    """Of a task that decodes prompts in turns: one of them untimed, then as many as fit into the seconds.

    contenders: beside the plain ones. models: that it has in memory.
    """
    seconds = None
    prompt = _reading(sizes, PROMPT_TOKENS, 1)
    if prompt is not None:
        new_tokens = ABOUT_TOKENS if isinstance(table.new_tokens, str) else table.new_tokens
        turn = (contenders + PLAIN_CONTENDERS) * (prompt + new_tokens * _step(sizes))
        visits = min(table.rounds * table.prompts, table.seconds / turn - 1)
        seconds = turn * (1 + max(FEWEST_VISITS, visits))
    return timing_estimate(study, sizes, seconds, models=models)


def timing_estimate(study: Study, sizes: Sizes, seconds: float | None, *, models: int = 1) -> TaskCost:
    """Of a task that takes timings for so long. models: that it has in memory."""
    memory = None if sizes.weights is None else round(TORCH_BYTES + models * WORKING_SHARE * sizes.weights)
    return TaskCost(_with_loading(sizes, seconds), memory, RESULT_BYTES)


def reading_estimate(study: Study, sizes: Sizes, kind: str, *, rounds: int = 1) -> TaskCost:
    """Of a task that reads one trace. rounds: how often it does what it does once for each floor."""
    if sizes.exits is None:
        return TaskCost(None, None, RESULT_BYTES)
    facts = study.settings.tokens * sizes.exits
    seconds = 0.2 + rounds * facts * SECONDS_PER_FACT[kind]
    return TaskCost(seconds, NUMPY_BYTES + facts * READING_BYTES, RESULT_BYTES)


def _reading(sizes: Sizes, tokens: int, exits: int | None) -> float | None:
    """Seconds to bring tokens through all layers and read them out at some exits."""
    if sizes.parameters is None or sizes.head is None or sizes.hidden is None or exits is None:
        return None
    readouts = exits * sizes.head * (2.0 + REDUCTION_FLOPS / sizes.hidden)
    return tokens * (2.0 * sizes.parameters + readouts) / (FLOPS_PER_THREAD * sizes.threads)


def _answering(sizes: Sizes, tokens: float) -> float:
    """Seconds to write so many tokens of answers, some of them side by side."""
    return tokens / ANSWERED_TOGETHER * _step(sizes)


def _step(sizes: Sizes) -> float:
    """Seconds of one step of plain decoding."""
    return (sizes.weights or 0.0) / BYTES_PER_SECOND + LAYER_SECONDS * (sizes.layers or 0)


def _with_loading(sizes: Sizes, seconds: float | None) -> float | None:
    if seconds is None or sizes.weights is None:
        return None
    return STARTING_SECONDS + sizes.models * sizes.weights / DISK_BYTES_PER_SECOND + seconds


def _memory(study: Study, sizes: Sizes) -> int | None:
    """Bytes of a process with the model in it, whole or layer by layer."""
    if sizes.weights is None:
        return None
    if not study.streamed:
        return round(TORCH_BYTES + sizes.models * WORKING_SHARE * sizes.weights)
    if study.large is not None and study.large.memory is not None:
        return TORCH_BYTES + parse_size(study.large.memory, "memory")
    if sizes.layers is None or sizes.head is None or sizes.parameters is None:
        return None
    # Embedding and head stay in memory, beside the layer in use and the next one.
    share = 2 * sizes.head / sizes.parameters + 3 / sizes.layers
    return round(TORCH_BYTES + min(1.0, share) * WORKING_SHARE * sizes.weights)
