"""`Placed`, `OnModel`, `Streamed`, `Measuring`, `Made`: parts of requests to load a model and to trace it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp.errors import InputError
from offramp.kit.numbers import Count
from offramp.kit.request import Options, argument, flags, not_identity, not_repeated
from offramp.kit.rules import only_if, only_with
from offramp.models.devices import AUTO, DtypeName, find_device
from offramp.models.process import parse_size
from offramp.models.training_record import TRAINING_FILE as TRAINING_FILE
from offramp.tracing.progress import say, stage
from offramp.tracing.request import ALL, DEFAULT_TOKENS

if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.models.transforms.transform import Transform
    from offramp.tracing.loading import ModelRequest
    from offramp.workloads.workload import Workload


only_speculating = only_if(lambda asked: asked.kv == "speculate", "with --kv {kv}", "--kv speculate")
"""Of the length of drafts: only speculation drafts."""


@dataclass(frozen=True, kw_only=True)
class OnDevice(Options):
    """Where a model computes."""

    device: str = AUTO
    """Where the model computes: auto (an accelerator, if there is one), cpu, cuda, cuda:1, mps, xpu."""

    def check(self) -> None:
        """Refuse a device that is not here."""
        super().check()
        if self.device != AUTO:  # which is here in any case, and would have torch imported to be looked for
            find_device(self.device)


@dataclass(frozen=True, kw_only=True)
class Executing(Options):
    """Which model runs where `execute` is asked for beside a trace."""

    model: Annotated[str | None, only_with("execute")] = None
    """With --execute: the model, by default the trace's."""
    heads: Annotated[Path | None, only_with("execute")] = None
    """With --execute: the exit heads of the trace."""


@dataclass(frozen=True, kw_only=True)
class Placed(OnDevice):
    """Where a model computes, in what, and what is done to it at load."""

    dtype: DtypeName = AUTO
    """float32, bfloat16, float16 or auto: the checkpoint's on an accelerator, else float32."""
    transforms: Annotated[str | Sequence[Any], flags("--transform")] = ()
    """Change the model at load: int8, int4, prune:by=angular,layers=6 (offramp list transforms). May be given
    several times."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model."""

    def settle(self) -> dict[str, Any]:
        """Transforms as texts of their grammar."""
        return {
            **super().settle(),
            "transforms": tuple(transform.text for transform in self.read_transforms()),
        }

    def read_transforms(self) -> tuple[Transform, ...]:
        """The transforms. Raises InputError for what is none, or cannot be used here."""
        from offramp.tracing.loading import read_transforms

        return read_transforms(self.transforms, self.dtype)

    def find(self, model: str) -> ModelRequest:
        """The files of the model that is meant, checked as far as it goes without loading a weight.

        Raises ModelError or InputError.
        """
        from offramp.tracing.loading import find_model

        return find_model(
            model,
            self.read_transforms(),
            dtype=self.dtype,
            trust_remote_code=self.trust_remote_code,
            device=self.device,
        )


@dataclass(frozen=True, kw_only=True)
class OnModel(Placed):
    """A model by its name, and where it computes."""

    model: Annotated[str, argument] = field(kw_only=False)
    """smollm2, a Hub id, a local folder or a .gguf file."""

    def check(self) -> None:
        """Refuse a name that can be no model, before torch is imported to load one."""
        super().check()
        from offramp.models.source import known_path

        known_path(self.model)

    def load(self, *workloads: Workload) -> Model:
        """The model, which takes a while. workloads: that it is to read.

        Raises ModelError or InputError, before a weight is loaded where it has sources and they have none.
        """
        with stage("loading the model and checking its exits"):
            found = self.find(self.model)
            found.require_fitting(workloads)
            return found.load()


@dataclass(frozen=True, kw_only=True)
class Streamed(Options):
    """Whether a model's weights stay on disk while it is traced."""

    stream: Annotated[bool | None, not_identity, flags("--stream/--no-stream")] = None
    """Leave the weights on disk and read one layer at a time, or load them whole. By default they stay there
    if they would not fit."""
    memory: Annotated[str | None, not_identity] = None
    """Memory for the model's weights, as 4GB or 1.5GiB: read layer by layer if they need more. By default
    what is free."""

    @property
    def memory_bytes(self) -> int | None:
        """The same as a number. Raises InputError for what is none."""
        return None if self.memory is None else parse_size(self.memory, "--memory")

    def check(self) -> None:
        """Refuse a memory that is no size."""
        super().check()
        _ = self.memory_bytes


@dataclass(frozen=True, kw_only=True)
class InContext(Options):
    """How much of a text a model sees at once."""

    context: Count | None = None
    """Tokens of one sequence at most. By default 512, or what the model takes."""


@dataclass(frozen=True, kw_only=True)
class ReadThrough(Options):
    """What exits are read through."""

    heads: Path | str | None = None
    """Read exits through the heads that offramp heads fit or import wrote, or those in a folder of offramp
    exits train."""

    @property
    def heads_file(self) -> Path | None:
        """Where the exit heads lie."""
        return None if self.heads is None else Path(self.heads)


@dataclass(frozen=True, kw_only=True)
class Measuring(InContext, ReadThrough):
    """What is traced of every text, and what exits are read through."""

    tokens: Count = DEFAULT_TOKENS
    """Tokens to trace per workload."""
    exits: str | Path = ALL
    """Layers to measure: all, or 10,20,30; with --heads all of theirs by default."""
    heads: Path | str | None = None
    document_tokens: Count | None = None
    """Traced tokens per document at most. By default a 64th of --tokens, 32 at least, and more if documents
    are few."""

    def settle(self) -> dict[str, Any]:
        """Exits as layers, and the file of exit heads, whichever of the two named it."""
        exits, heads = exits_of(self.exits, self.heads)
        return {**super().settle(), "exits": exits, "heads": heads}

    @property
    def layers(self) -> str:
        """The exits, settled: "all", or layers."""
        return str(self.exits)


@dataclass(frozen=True, kw_only=True)
class Made(Options):
    """What is done with a folder in which something lies already."""

    overwrite: Annotated[bool, not_identity, not_repeated] = False
    """Replace what another command left in the folder."""
    repair: Annotated[bool, not_identity, not_repeated] = False
    """Trace damaged parts of a finished trace again."""


def names_layers(exits: str | Path) -> bool:
    """Whether this is a list of layers: "all", "10,20,30" (also joined by "+"). A path is none."""
    return isinstance(exits, str) and bool(re.fullmatch(r"all|\d+([,+]\d+)*", exits.replace(" ", "")))


def exits_of(exits: str | Path, heads: str | Path | None) -> tuple[str, Path | None]:
    """Layers to trace, and the exit heads to read them through.

    exits: of --exits: layers, of exit heads with a few exits "all" means all of these; or, as it was called
    before, the folder or file of exit heads itself. heads: of --heads.

    Raises InputError for exits that are neither, two sources of heads, and heads without an exit; what
    `offramp.heads.file.read_heads` raises.
    """
    if names_layers(exits):
        if heads is None:
            return str(exits), None
        return (_all_of(Path(heads)) if exits == ALL else str(exits)), Path(heads)
    if not str(exits) or not Path(exits).exists():
        raise InputError(
            f"the exits {str(exits)!r} are not a list of layers, and no trained exits lie there",
            where="exits= (--exits)",
            fix="write 10,20,30 or all; what offramp exits train wrote is named by heads= (--heads)",
        )
    if heads is not None:
        raise InputError(
            f"the trained exits {exits} are exit heads, and others are given too: {heads}",
            where="exits= (--exits)",
            fix="give the one that is meant as heads= (--heads), and as exits= (--exits) layers, or nothing",
        )
    from offramp.heads.file import read_heads

    trained = read_heads(exits).exits
    if not trained:
        raise InputError(
            "the exit heads hold K,V maps alone: no exit is read through them",
            where=f"exits= (--exits): {exits}",
            fix="give them as heads= (--heads), and the layers as exits= (--exits): 12,20",
        )
    say(f"trained exits are named by --heads now, and layers by --exits: --heads {exits}")
    return ",".join(map(str, trained)), Path(exits)


def _all_of(heads: Path) -> str:
    """All exits that can be read through these heads, "all" where those are all of the model's."""
    from offramp.heads.file import read_heads

    fitted = read_heads(heads)
    few = bool(fitted.exits) and len(fitted.exits) < int(fitted.model["layers"]) - 1
    return ",".join(map(str, fitted.exits)) if few else ALL
