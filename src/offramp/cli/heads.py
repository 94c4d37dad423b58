"""`offramp heads` and `offramp exits`: fit exit heads to a model, import those of others, train exits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from offramp.cli.command import Output, command, group
from offramp.cli.shared_options import read_number
from offramp.defaults import SEED, SHORTLIST
from offramp.errors import InputError
from offramp.files import require_writable
from offramp.heads.importing import LayoutName
from offramp.kit.arguments import settled
from offramp.kit.numbers import Count, FittingSeed, whole_number
from offramp.kit.output_file import clear_for
from offramp.kit.request import Options, Request, Writes, argument, flags, one_word
from offramp.kit.rules import Beside, only_if, only_with
from offramp.tracing.asked import InContext, OnModel, Placed, names_layers
from offramp.tracing.progress import stage
from offramp.tracing.request import ALL, FITTING_TOKENS, Rank
from offramp.training.request import TRAININGS, GateTraining, ResumableTraining

if TYPE_CHECKING:
    from offramp.heads.exit_heads import ExitHeads
    from offramp.heads.importing.imports import Import
    from offramp.tracing.fitting.maps import FittingMemory


heads = group("Fit exit heads (a linear lens, classifiers, K,V maps), or import those of others.")

AUTO = "auto"


@dataclass(frozen=True, kw_only=True)
class HeadsOutput(Options):
    """Where exit heads are written."""

    output: Annotated[Path, Writes(HeadsOutput.require_own)]
    """The file to write (.safetensors)."""
    overwrite: bool = False
    """Replace a file that is there."""

    def require_own(self, path: Path) -> None:
        """Refuse a folder, what cannot be written, and a file that is there: other files in any case."""
        from offramp.heads.file import is_heads_file

        there = "the output file is there already"
        if path.is_dir():
            raise InputError("the output is a folder, not a file", where=str(path), fix="name a file with -o")
        if os.path.lexists(path) and not self.overwrite:
            raise InputError(there, where=str(path), fix="choose another, or add --overwrite")
        if os.path.lexists(path) and not (path.is_file() and is_heads_file(path)):
            fix = "choose another with -o"
            raise InputError(f"{there}, and holds no exit heads", where=str(path), fix=fix)
        require_writable(path.parent)

    def write(self, heads: ExitHeads) -> None:
        """Write them, and the folder if it is not there."""
        from offramp.heads.file import write_heads

        self.output.parent.mkdir(parents=True, exist_ok=True)
        clear_for(self.output, self.require_own)
        write_heads(heads, self.output)


@dataclass(frozen=True, kw_only=True)
class HeadFitting(OnModel, InContext, HeadsOutput, Request):
    """Fit a linear lens, classifiers and K,V maps per exit on the later half of each workload's documents."""

    workloads: Annotated[Sequence[str], flags("--workload", "-w")]
    """What to fit on; may be repeated: prose, code, chat, math, txt:PATH, jsonl:PATH#field, ..."""
    tokens: Count = FITTING_TOKENS
    """Tokens over all workloads; a quarter of them for classifiers."""
    exits: Annotated[str, only_if(lambda asked: asked.reads, "where only K,V maps are fitted")] = ALL
    """Layers to measure: all, or 10,20,30."""
    lens: Annotated[
        bool,
        flags("--lens/--no-lens"),
        Beside(
            lambda lens, asked: lens or asked.classifiers or asked.kv_maps is not None,
            "on where neither classifiers nor K,V maps are fitted",
            "leave one of them on",
        ),
    ] = True
    """Fit a linear lens: every exit is then read through it."""
    classifiers: Annotated[bool, flags("--classifiers/--no-classifiers")] = True
    """Fit classifiers that predict agreement."""
    candidate_exit: Annotated[
        Count | None,
        only_if(lambda asked: asked.add_to is None, "with --add-to"),
        only_if(lambda asked: asked.classifiers, "without classifiers"),
    ] = None
    """Exit whose best tokens candidate_score looks at. By default near half of the depth."""
    kv_maps: Annotated[str | Sequence[Count] | None, one_word] = None
    """Exits that get maps to deeper layers' inputs, for --kv mapped: 8,15,20. By default none."""
    kv_rank: Annotated[
        str | int, one_word, only_if(lambda asked: asked.kv_maps, "without K,V maps", "--kv-maps")
    ] = AUTO
    """Of the K,V maps: full, a number, or auto: the lowest that explains nearly as much as full."""
    short_list: Annotated[Count, only_if(lambda asked: asked.reads, "where only K,V maps are fitted")] = (
        SHORTLIST
    )
    """Tokens of the restricted vocabulary: fewer are cheaper to read, more keep more answers."""
    add_to: Annotated[Path | None, only_with("kv_maps")] = None
    """A file of exit heads that the K,V maps are added to; nothing else is fitted then."""
    seed: FittingSeed = SEED
    """Deals documents out and starts the networks."""

    def settle(self) -> dict[str, object]:
        """Exits of the maps, and their rank, as numbers."""
        return {**super().settle(), "kv_maps": self.map_exits, "kv_rank": self.rank}

    def check(self) -> None:
        """Refuse what is no layer."""
        super().check()
        if not names_layers(self.exits):
            what, fix = f"the exits {self.exits!r} are not a list of layers", "write 10,20,30 or all"
            raise InputError(what, where="--exits", fix=fix)

    @property
    def reads(self) -> bool:
        """Whether more than K,V maps is fitted."""
        return self.add_to is None and (self.lens or self.classifiers)

    @property
    def map_exits(self) -> tuple[int, ...] | None:
        """The exits that get K,V maps. Raises InputError for what is no list of such."""
        if self.kv_maps is None or not isinstance(self.kv_maps, str):
            return None if self.kv_maps is None else tuple(self.kv_maps)
        numbers = [whole_number(word.strip(), 0) for word in self.kv_maps.replace("+", ",").split(",")]
        found = tuple(number for number in numbers if number is not None)
        if len(found) < len(numbers):
            what = f"{self.kv_maps!r} is not a list of exits"
            raise InputError(what, where="--kv-maps", fix="write 8,15,20")
        return found

    @property
    def rank(self) -> Rank:
        """Of the maps. Raises InputError for what is none."""
        number = read_number(str(self.kv_rank), "--kv-rank", AUTO, "full")
        rank: Rank = settled("kv_rank", number, Rank, "Rank", where="--kv-rank")
        return rank


def fit(asked: HeadFitting, out: Output) -> None:
    """Fit heads, or maps that are added to some, write them, and say what they are worth."""
    from offramp.workloads.registry import distinct_workloads

    works = distinct_workloads(asked.workloads)

    from offramp.heads.file import read_heads, require_base
    from offramp.tracing.fitting.fit import fit_heads

    whole = None if asked.add_to is None else read_heads(asked.add_to)
    if whole is not None:
        require_no_maps_lost(asked, whole)
    model = asked.load(*works)
    if whole is not None:
        require_base(whole, {"name": model.shown_name, **model.identity.to_json()}, str(asked.add_to))

    def tell(memory: FittingMemory) -> None:
        out.say(*memory.parts)

    fitted = fit_heads(
        model,
        works,
        tokens=asked.tokens,
        exits=asked.exits,
        lens=asked.lens and whole is None,
        classifiers=asked.classifiers and whole is None,
        candidate_exit=asked.candidate_exit,
        kv_maps=asked.map_exits,
        kv_rank=asked.rank,
        short_list=asked.short_list,
        context=asked.context,
        seed=asked.seed,
        on_memory=tell,
    )
    if whole is not None:
        fitted = dataclasses.replace(whole, kv_maps=fitted.kv_maps)
    asked.write(fitted)
    from offramp.cli.heads_shown import MAPS, heads_notes, heads_table
    from offramp.kit.typed import to_json

    if fitted.exits:
        out.console.print(heads_table(fitted).rich(range(len(fitted.exits))))
    if fitted.kv_maps is not None:
        out.console.print(MAPS.rich(fitted.kv_maps.maps.items()))
    out.say(*heads_notes(fitted), f"written: {asked.output}")
    out.finish({"heads": str(asked.output), **to_json(fitted)})


def require_no_maps_lost(asked: HeadFitting, heads: ExitHeads) -> None:
    """Raise InputError if heads hold K,V maps that are not fitted again: those of two fits are not joined."""
    there = () if heads.kv_maps is None else heads.kv_maps.exits
    if lost := set(there) - set(asked.map_exits or ()):
        every = ",".join(map(str, sorted({*there, *(asked.map_exits or ())})))
        raise InputError(
            f"the heads hold K,V maps of exit {min(lost)} already, which would be lost",
            where=f"--add-to {asked.add_to}",
            fix=f"fit all of them in one go: --kv-maps {every}",
        )


@dataclass(frozen=True, kw_only=True)
class HeadImport(Placed, HeadsOutput, Request):
    """Make exits that others trained (lenses, networks, norms, output heads) ready for --heads."""

    file: Annotated[str, argument] = field(kw_only=False)
    """A .safetensors file, a folder with such files (a model's own, too), or a Hub id."""
    model: str | None = None
    """The model that the exits belong to. By default FILE, where that is a model's own."""
    key_map: Annotated[Path | None, flags("--map")] = None
    """A TOML file: which tensors are the heads of which exit."""
    format: Annotated[LayoutName | None, only_if(lambda asked: asked.key_map is None, "beside --map")] = None
    """A known layout instead of a map: tuned-lens, multi-exit, ee-llm, balcony."""

    def check(self) -> None:
        """Refuse a pruned model."""
        super().check()
        from offramp.models.transforms.prune import Prune

        if any(isinstance(transform, Prune) for transform in self.read_transforms()):
            raise InputError(
                "heads are numbered by the layers of the whole model, and a pruned one counts others",
                where="--transform",
                fix="prune the model without heads, or fit heads of the pruned model: offramp heads fit",
            )


def import_(asked: HeadImport, out: Output) -> None:
    """Import heads, write them, and say what they are."""
    from offramp.heads.importing.imports import find_import
    from offramp.kit.typed import to_json
    from offramp.tracing.loading import load_for_tracing

    found = find_import(asked.file, key_map=asked.key_map, format=asked.format)
    base = asked.find(_base_of_import(asked.file, asked.model, found))
    found.require_config(base.source.folder)
    with stage("loading the model and checking its exits"):
        # No layer is run, so those of a model that does not fit may stay on disk.
        model = load_for_tracing(base, [], stream=None, memory=None)
    imported = found.heads_for(model)
    asked.write(imported)
    out.say(*_import_notes(imported), *found.left_out(model.layers), f"written: {asked.output}")
    out.finish({"heads": str(asked.output), **to_json(imported)})


command(heads, "fit", HeadFitting, fit)
command(heads, "import", HeadImport, import_)


def _base_of_import(file: str, model: str | None, found: Import) -> str:
    """The model that imported exits belong to: the one named, or the files themselves."""
    if model is not None:
        return model
    folder = found.tensors.where
    if found.builds and any(folder.glob("model*.safetensors*")) and (folder / "config.json").is_file():
        return file
    plain = (
        "name it with --model; only a model's own folder needs no --model"
        if found.builds
        else "name with --model the one that the exits were added to; transformers cannot build it from "
        "these files (docs/bring-your-own-exits.md says what to change where they hold it)"
    )
    raise InputError("it is not said which model the heads belong to", where=file, fix=plain)


def _import_notes(imported: ExitHeads) -> list[str]:
    """What was imported, and what that means, in words."""
    from offramp.heads.described import read_by, reading_parts

    listed = ", ".join(str(exit) for exit in imported.exits)
    kind = " and ".join(reading_parts(read_by(imported)))
    return [
        f"{imported.model['name']}: {kind} at exits {listed}",
        "it is not known which documents they were trained on, so tuning cannot leave those out",
    ]


TRAIN = "Train exits on the model's own distributions, on the later half of each workload's documents."

exits = group("Train exits of a model, or a copy of the model itself.")


def train(asked: ResumableTraining | GateTraining, out: Output) -> None:
    """Train, and say what came of it."""
    works = asked.texts()

    from offramp.cli import heads_shown
    from offramp.kit.typed import to_json
    from offramp.tracing.fitting.fitting_documents import left_for_tuning

    left = [len(left_for_tuning(work)) for work in works]
    out.say(*(heads_shown.left_to_certify(work.name, count) for work, count in zip(works, left, strict=True)))
    model = asked.load(*works)
    if isinstance(asked, GateTraining):
        from offramp.training import gate_training

        gates = gate_training.train(model, works, asked, progress=True)
        heads_shown.show_gates(out.console, gates.record)
        out.say(*heads_shown.gates_notes(gates), f"written: {asked.output}")
        told = {"folder": str(asked.output), "fingerprint": gates.heads.fingerprint}
        out.finish({**told, **to_json(gates.record)})
        return

    from offramp.kit.numbers import shown_size
    from offramp.training import train as training

    def tell(size: int) -> None:
        out.say(f"hidden states take {shown_size(size)} on disk while it trains")

    trained = training.train(model, works, asked, progress=True, on_size=tell)
    heads_shown.show_trained(out.console, trained)
    out.say(*heads_shown.notes(trained, asked, left[0]), f"written: {asked.output}")
    # What it read is long, and goes with the heads.
    record = replace(trained.record, documents={}, texts=())
    told = {"folder": str(asked.output), "fingerprint": record.heads}
    out.finish({**told, "places": record.places, **to_json(record)})


command(exits, "train", TRAININGS, train, doc=TRAIN)
