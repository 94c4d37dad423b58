"""Whether what a study asks of a model can be done with it, as far as its sizes and its family tell."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import require_base
from offramp.kit.given_file import Location
from offramp.models.transforms.transform import why_unfit
from offramp.policies.decisions import require_neighbours
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.studies.entries import HeadsEntry, PolicyEntry, TrainingEntry
from offramp.studies.estimates import ModelVariant
from offramp.studies.found import Found, FoundWorkload
from offramp.studies.study import Study, placed
from offramp.studies.study_file import layers_left
from offramp.tracing.facts import DOCUMENT_FACTS, FACT_BY_NAME
from offramp.tracing.request import DEFAULT_CONTEXT, Recording, parse_exits, parse_signals

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
        self, variant: ModelVariant, workload: FoundWorkload, reader: HeadsEntry | TrainingEntry
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
                where=self.study.where("workloads", self._place("workloads", workload.entry.name)),
                fix="choose a workload of given text",
            )
        self._check_heads(variant, reader)

    def check_steps(self, variant: ModelVariant) -> None:
        """Refuse to leave out layers that a model lacks, and what its family does not allow."""
        place = self._place("transforms", variant.transform.name)
        model = variant.model
        for step in variant.steps:
            why = why_unfit(step, model.model_type)
            if why is not None:
                raise InputError(
                    f"{step.text} cannot be applied to {model.entry.name} ({model.model_type}): {why}",
                    where=self.study.where("transforms", place),
                    fix=f'[[exclude]] model = "{model.entry.name}", transform = "{variant.transform.name}"',
                )
        if model.entry.layers is not None:
            with placed(self.study, "transforms", place):
                layers_left(model.entry.layers, variant.steps, model.entry.name)

    def check_policy(
        self,
        variant: ModelVariant,
        entry: PolicyEntry,
        workload: FoundWorkload,
        reader: HeadsEntry | TrainingEntry,
    ) -> None:
        """Refuse a policy for exits that a model lacks, or that reads what is not recorded."""
        location = ("policies", self._place("policies", entry.name))
        policy = parse_policy(entry.policy).for_task(workload.source)
        self._check_exits(variant, policy, location)
        signals = parse_signals(self.study.settings.signals, workload.mode)
        recording = Recording(signals, self.found.heads[reader.name].facts)
        recorded = {fact.name for fact in (*recording.facts, *recording.document_facts)}
        needs = {} if variant.sizes.layers is None else policy.needs(variant.sizes.layers)
        read = {fact for facts in needs.values() for fact in facts}
        read |= {"restricted_top1"} if policy.short_list else set()
        self._check_facts(policy, {*read, *policy.final_facts, *policy.document_facts} - recorded, location)

    def check_combine(self, variant: ModelVariant) -> None:
        """Refuse exits, in combination with others, that the model lacks."""
        table = self.study.combine
        if table is not None and table.policy is not None:
            self._check_exits(variant, parse_policy(table.policy), ("combine", "policy"))

    def _check_exits(self, variant: ModelVariant, policy: ExitPolicy, location: Location) -> None:
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

    def _check_facts(self, policy: ExitPolicy, missing: Collection[str], location: Location) -> None:
        for name in sorted(missing):
            fact = FACT_BY_NAME.get(name) or DOCUMENT_FACTS[name]
            option = (fact.recorded_with or "").split()
            of_signals = option[:1] == ["--signals"]
            add = f'add "{option[1]}" to signals in [study]' if of_signals else f'fit "{name}" in [[heads]]'
            raise InputError(
                f"{policy} reads {name}, which the traces will not hold",
                where=self.study.where(*location),
                fix=f"{add}, {LEAVE_OUT}",
            )

    def _check_heads(self, variant: ModelVariant, entry: HeadsEntry | TrainingEntry) -> None:
        """Refuse a training that does not fit a model, heads of another model or not of all exits traced."""
        heads, trains = self.found.heads[entry.name], isinstance(entry, TrainingEntry)
        axis, key = ("trainings", "folder") if trains else ("heads", "file")
        place = self._place(axis, entry.name)
        if isinstance(entry, TrainingEntry) and entry.kind is not None:
            self._check_training(variant, entry, place)
            return
        resolved = all(getattr(step, "resolved", True) for step in variant.steps)
        fingerprint = variant.model.fingerprint(variant.texts)
        if heads.given is None or fingerprint is None or not resolved:
            return
        model = {"name": variant.model.entry.name, "fingerprint": fingerprint, "transforms": variant.texts}
        with placed(self.study, axis, place, key):
            require_base(heads.given, model)
            if variant.sizes.layers is not None and not heads.given.holds_maps_alone:
                _require_exits(heads.given, parse_exits(self.study.settings.exits, variant.sizes.layers))

    def _check_training(self, variant: ModelVariant, entry: TrainingEntry, place: int) -> None:
        """Refuse exits, steps, units, lists that do not fit a model, and exits that are not those traced."""
        from offramp.tracing.fitting.fit import check_short_list
        from offramp.training.recipe import make_recipe
        from offramp.training.request import TRAININGS

        study, layers = self.study, variant.sizes.layers
        hidden, vocabulary = variant.sizes.hidden, variant.model.entry.vocabulary
        if layers is None or hidden is None or vocabulary is None:
            return
        with placed(study, "trainings", place):
            # The model and the texts are looked at elsewhere.
            given = {"model": "", "workloads": (), "output": None, "seed": study.settings.seed}
            said = entry.model_dump(include=ASKED, exclude_none=True)
            asked = TRAININGS.request(str(entry.kind), {**given, **said, "at": study.exits_of(entry)})
            recipe = make_recipe(asked, layers=layers, hidden=hidden, vocabulary=vocabulary)
            check_short_list(entry.short_list, vocabulary)
        traced = parse_exits(study.settings.exits, layers)[:-1]
        if recipe.at != traced:
            raise InputError(
                f"the exits {_listed(recipe.at)} are trained, and {_listed(traced)} are traced",
                where=study.where("trainings", place, "at"),
                fix=f"write exits = {list(recipe.at)} in [study], so that all rows are of the same exits",
            )

    def _place(self, axis: str, name: str) -> int:
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
