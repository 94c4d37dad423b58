"""Whether what a study asks of a model can be done with it, and what it will roughly take, from sizes alone.

Seconds come from nominal rates; `offramp.studies.status` corrects them by what finished tasks took.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.costs.counting import REDUCTION_FLOPS
from offramp.defaults import DEFAULT_MODEL, FEWEST_VISITS, PROMPT_TOKENS
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import require_base
from offramp.kit.given_file import Location
from offramp.models.process import WORKING_SHARE, parse_size
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import Transform, why_unfit
from offramp.policies.decisions import require_neighbours
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.studies.named_inputs import Found, FoundModel, FoundWorkload
from offramp.studies.study import Study, placed
from offramp.studies.study_checks import layers_left
from offramp.studies.study_tables import HeadsEntry, PolicyEntry, TrainingEntry, TransformEntry, exit_list
from offramp.studies.task import TaskCost
from offramp.tracing.facts import DOCUMENT_FACTS, FACT_BY_NAME
from offramp.tracing.request import DEFAULT_CONTEXT, Recording, parse_exits, parse_signals

FLOPS_PER_THREAD = 4e10
"""Products of matrices in float32 that a processor's core really does in a second."""
BYTES_PER_SECOND = 1e10
"""From memory, for which a token of plain decoding waits."""
DISK_BYTES_PER_SECOND = 1e9
STARTING_SECONDS = 6.0
"""Imports of torch and transformers, and a model's checks."""
ANSWERED_TOGETHER = 8
"""Prompts, about."""
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
    """How large a model of a study is once transformed, and how the study works on it. None: not known."""

    layers: int | None
    exits: int | None
    """That are traced."""
    parameters: float | None
    hidden: int | None
    head: int | None
    """Elements of the output matrix."""
    weights: float | None
    """Bytes as loaded."""
    models: int
    """That are in memory together."""
    threads: int
    tokens: int
    """Of a trace."""
    streamed: bool = False
    """Whether its layers stay on disk."""
    room: int | None = None
    """Bytes of weights that may be in memory then, None for what is free."""

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
        new_tokens: int,
        visits: int,
        seconds: float,
        models: int = 1,
    ) -> TaskCost:
        """Of a task that decodes prompts in turns: one of them untimed, then as many as fit into the seconds.

        contenders: beside the plain ones. visits: of each contender to a prompt, at most. models: that it has
        in memory.
        """
        spent = None
        prompt = self.forwards(PROMPT_TOKENS, 1)
        if prompt is not None:
            turn = (contenders + PLAIN_CONTENDERS) * (prompt + new_tokens * self.step)
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
class StudyVariant:
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


ASKED = {"tokens", "steps", "minutes", "units", "loss_vocabulary", "precision"}
"""Of a training, by the names that its request has for them."""
LEAVE_OUT = "or leave these cells out with [[exclude]]"


class Fitness:
    """Checks of one study. Sizes that are not known are not checked; then the cell's own run tells."""

    def __init__(self, study: Study, found: Found) -> None:
        self.study = study
        self.found = found

    def check_contexts(self) -> None:
        """Refuse models that would be traced in contexts of different lengths: those are not compared.

        Raises InputError.
        """
        if self.study.settings.context is not None:
            return
        lengths = {
            model.entry.name: min(DEFAULT_CONTEXT, model.context)
            for model in self.found.models.values()
            if model.context is not None
        }
        shortest, longest = (pick(lengths, key=lengths.__getitem__, default="") for pick in (min, max))
        if lengths and lengths[shortest] != lengths[longest]:
            raise InputError(
                f"{longest} would be traced in contexts of {lengths[longest]} tokens, {shortest} takes "
                f"{lengths[shortest]} at most, and such results are not compared",
                where=self.study.where("study"),
                fix=f"write context = {lengths[shortest]} in the table [study]",
            )

    def check_row(
        self, variant: StudyVariant, workload: FoundWorkload, reader: HeadsEntry | TrainingEntry
    ) -> None:
        """Refuse transforms, exits, signals, prompts or heads that do not fit. Raises InputError."""
        self.check_steps(variant)
        if variant.sizes.layers is not None:
            with placed(self.study, "study", "exits"):
                parse_exits(self.study.settings.exits, variant.sizes.layers)
        with placed(self.study, "study", "signals"):
            parse_signals(self.study.settings.signals, workload.mode)
        if self.study.streamed and workload.mode == "generation":
            raise InputError(
                f"the prompts of {workload.entry.name} need answers, and a model whose layers stay on disk "
                "would read all of them for every new token",
                where=self.study.where("workloads", self._index("workloads", workload.entry.name)),
                fix="choose a workload of given text",
            )
        self._check_heads(variant, reader)

    def check_steps(self, variant: StudyVariant) -> None:
        """Refuse to leave out layers that a model lacks, and what its family does not allow."""
        index = self._index("transforms", variant.transform.name)
        model = variant.model
        for step in variant.steps:
            why = why_unfit(step, model.model_type)
            if why is not None:
                raise InputError(
                    f"{step.text} cannot be applied to {model.entry.name} ({model.model_type}): {why}",
                    where=self.study.where("transforms", index),
                    fix=f'[[exclude]] model = "{model.entry.name}", transform = "{variant.transform.name}"',
                )
        if model.entry.layers is not None:
            with placed(self.study, "transforms", index):
                layers_left(model.entry.layers, variant.steps, model.entry.name)

    def check_policy(
        self,
        variant: StudyVariant,
        entry: PolicyEntry,
        workload: FoundWorkload,
        reader: HeadsEntry | TrainingEntry,
    ) -> None:
        """Refuse a policy for exits that a model lacks, or that reads what is not recorded."""
        location = ("policies", self._index("policies", entry.name))
        policy = parse_policy(entry.policy).for_task(workload.source)
        self._check_exits(variant, policy, location)
        signals = parse_signals(self.study.settings.signals, workload.mode)
        recording = Recording(signals, self.found.heads[reader.name].facts)
        recorded = {fact.name for fact in (*recording.facts, *recording.document_facts)}
        needs = {} if variant.sizes.layers is None else policy.needs(variant.sizes.layers)
        read = {fact for facts in needs.values() for fact in facts}
        read |= {"restricted_top1"} if policy.short_list else set()
        for name in sorted({*read, *policy.final_facts, *policy.document_facts} - recorded):
            fact = FACT_BY_NAME.get(name) or DOCUMENT_FACTS[name]
            option = (fact.recorded_with or "").split()
            of_signals = option[:1] == ["--signals"]
            add = f'add "{option[1]}" to signals in [study]' if of_signals else f'fit "{name}" in [[heads]]'
            raise InputError(
                f"{policy} reads {name}, which the traces will not hold",
                where=self.study.where(*location),
                fix=f"{add}, {LEAVE_OUT}",
            )

    def check_combine(self, variant: StudyVariant) -> None:
        """Refuse exits, in combination with others, that the model lacks."""
        table = self.study.combine
        if table is not None and table.policy is not None:
            self._check_exits(variant, parse_policy(table.policy), ("combine", "policy"))

    def _check_exits(self, variant: StudyVariant, policy: ExitPolicy, location: Location) -> None:
        layers = variant.sizes.layers
        if layers is None:
            return
        try:
            needs = policy.needs(layers)
        except InputError as error:
            raise InputError(
                f"{policy} does not fit {variant.name}: {error.what}",
                where=self.study.where(*location),
                fix=f"{error.fix}, {LEAVE_OUT}",
            ) from error
        traced = parse_exits(self.study.settings.exits, layers)
        with placed(self.study, *location):
            require_neighbours({exit: facts for exit, facts in needs.items() if facts}, traced, variant.name)
        untraced = sorted(needs.keys() - {*traced})
        if untraced:
            raise InputError(
                f"{policy} leaves at exit {untraced[0]}, which is not traced",
                where=self.study.where(*location),
                fix=f"add it to exits in [study], {LEAVE_OUT}",
            )

    def _check_heads(self, variant: StudyVariant, entry: HeadsEntry | TrainingEntry) -> None:
        """Refuse a training that does not fit a model, heads of another model or not of all exits traced."""
        heads, trains = self.found.heads[entry.name], isinstance(entry, TrainingEntry)
        axis, key = ("trainings", "folder") if trains else ("heads", "file")
        index = self._index(axis, entry.name)
        if isinstance(entry, TrainingEntry) and entry.kind is not None:
            self._check_training(variant, entry, index)
            return
        resolved = all(getattr(step, "resolved", True) for step in variant.steps)
        fingerprint = variant.model.fingerprint(variant.texts)
        if heads.content is None or fingerprint is None or not resolved:
            return
        model = {"name": variant.model.entry.name, "fingerprint": fingerprint, "transforms": variant.texts}
        with placed(self.study, axis, index, key):
            require_base(heads.content, model)
            if variant.sizes.layers is not None and not heads.content.holds_maps_alone:
                _require_exits(heads.content, parse_exits(self.study.settings.exits, variant.sizes.layers))

    def _check_training(self, variant: StudyVariant, entry: TrainingEntry, index: int) -> None:
        """Refuse exits, steps, units, lists that do not fit a model, and exits that are not those traced."""
        from offramp.tracing.fitting.fit import check_short_list
        from offramp.training.recipe import make_recipe
        from offramp.training.request import TRAININGS

        study, layers = self.study, variant.sizes.layers
        hidden, vocabulary = variant.sizes.hidden, variant.model.entry.vocabulary
        if layers is None or hidden is None or vocabulary is None:
            return
        with placed(study, "trainings", index):
            # The model and the texts are looked at elsewhere.
            elsewhere = {"model": DEFAULT_MODEL, "workloads": (), "output": None, "seed": study.settings.seed}
            said = entry.model_dump(include=ASKED, exclude_none=True)
            request = TRAININGS.request(str(entry.kind), {**elsewhere, **said, "at": study.exits_of(entry)})
            recipe = make_recipe(request, layers=layers, hidden=hidden, vocabulary=vocabulary)
            check_short_list(entry.short_list, vocabulary)
        traced = parse_exits(study.settings.exits, layers)[:-1]
        if recipe.at != traced:
            raise InputError(
                f"the exits {_listed(recipe.at)} are trained, and {_listed(traced)} are traced",
                where=study.where("trainings", index, "at"),
                fix=f"write exits = {list(recipe.at)} in [study], so that all rows are of the same exits",
            )

    def _index(self, axis: str, name: str) -> int:
        return [entry.name for entry in getattr(self.study, axis)].index(name)


def _require_exits(heads: ExitHeads, traced: Sequence[int]) -> None:
    """Refuse heads without an exit below L that is traced."""
    missing = [exit for exit in traced[:-1] if exit not in heads.exits]
    if missing:
        raise InputError(
            f"these exit heads have no exit {missing[0]}, which is traced; they have: "
            + ", ".join(map(str, heads.exits)),
            fix=f"write exits = {list(heads.exits)} in [study] (--exits {','.join(map(str, heads.exits))})",
        )


def _listed(exits: Sequence[int]) -> str:
    return ", ".join(map(str, exits)) or "none"
