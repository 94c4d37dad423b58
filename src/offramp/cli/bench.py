"""`offramp bench`: what is asked for, refused before a model is loaded where it cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Le

from offramp.cli.command import Output
from offramp.cli.shared_options import SPECULATE, Leaving
from offramp.defaults import (
    DEFAULT_MODEL,
    LOCAL,
    MAIN_FLOOR,
    PROMPT_TOKENS,
    SEED,
    TIMED_TOKENS,
    TIMING_SECONDS,
    WORTH,
)
from offramp.errors import InputError
from offramp.kit.numbers import Copied, Count, NotNegative, Proportion, TimedTokens, Whole
from offramp.kit.output_file import require_json_file
from offramp.kit.request import Request, Writes, argument, flags, hidden
from offramp.kit.rules import Beside, Margin, only_if, only_with
from offramp.policies.names import BatchingName, StrategyName

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.costs.timings import TimingsProfile
    from offramp.decoding.options import DecodingOptions
    from offramp.heads.exit_heads import ExitHeads
    from offramp.timing.stopping import TimeLimits
    from offramp.tracing.trace import Trace
    from offramp.workloads.workload import Workload


PROMPTS = 16
alone = only_if(lambda asked: not asked.combine, "with --combine")


@dataclass(frozen=True, kw_only=True)
class Bench(Leaving, Request):
    """Time a policy's decoding beside plain decoding and others, until it is clear whether it is faster."""

    model: Annotated[str, argument] = field(default=DEFAULT_MODEL, kw_only=False)
    policy: Annotated[
        str | None,
        flags("--policy", "-p"),
        Beside(
            lambda policy, asked: policy is not None or asked.combine,
            "given where nothing is combined",
            "give --policy static:exit=20, or accelerations with --combine",
        ),
    ] = None
    """static:exit=20, threshold:signal=... or a policy.json. Not needed to --combine others."""
    combine: tuple[str, ...] = ()
    """Time accelerations alone and together; give it for each: int8, int4, prune:..., exits (of --policy),
    speculate, shortlist, prompt_lookup, llama.cpp (of a .gguf file)."""
    floor: Annotated[Proportion | None, only_with("combine")] = None
    """With --combine: share of the full model's tokens that what is advised must choose. {MAIN_FLOOR:g} by
    default."""
    kv: Annotated[
        StrategyName | None,
        only_if(
            lambda asked: not asked.combine or "exits" in asked.combine, "without exits", "--combine exits"
        ),
    ] = None
    heads: tuple[Path, ...] = ()
    """Read exits through the heads that offramp heads fit wrote. With --combine it may be given again: each
    file is used on the model that it was fitted on."""
    workload: Annotated[str | None, flags("--workload", "-w")] = None
    """Where prompts come from: the starts of its documents. By default the text that the file of the policy
    was tuned on, or prose."""
    prompts: Count | None = None
    """How many prompts (batches of them, with --batch) to decode, as far as the seconds allow; each is one
    sample of an interval. {PROMPTS} by default, or as many as there are."""
    prompt_tokens: Count = PROMPT_TOKENS
    """Tokens of each document's start that make a prompt."""
    new_tokens: TimedTokens = TIMED_TOKENS
    """New tokens after each prompt."""
    rounds: Count | None = None
    """How often each prompt is decoded, at most. By default as long as the seconds last."""
    seconds: NotNegative = TIMING_SECONDS
    """Seconds from the loaded model to the answer, kept to within a quarter. What there is no time for is
    left out; a smallest timing that takes longer is announced. Ends sooner if the question is answered."""
    worth: Margin = WORTH
    """Share of the time whose gain matters; within it contenders are equivalent."""
    processes: Annotated[Count, Le(100), alone] = 1
    """Measure in so many fresh processes, which share the seconds."""
    plain: Annotated[str | None, hidden] = None
    """The plain decoder to hold against; by default a pilot chooses."""
    to_the_end: Annotated[bool, hidden] = False
    """Do not stop where the question is answered."""
    timing_only: Annotated[bool, hidden] = False
    """Judge no answers, and predict nothing."""
    batch: Annotated[tuple[Count, ...], alone] = ()
    """Prompts decoded side by side; may be given again. By default 1."""
    batching: Annotated[
        BatchingName | None,
        alone,
        only_if(lambda asked: max(asked.batches) > 1, "at batch 1", "--batch 2 or more"),
    ] = None
    draft_length: Annotated[
        str | None,
        only_if(
            lambda asked: asked.combine or asked.options.kv == SPECULATE,
            "with --kv {options.kv}",
            "--kv speculate",
        ),
        only_if(
            lambda asked: not asked.combine or SPECULATE in asked.combine,
            "without speculation",
            "--combine speculate",
        ),
    ] = None
    lookup: Annotated[
        Copied, alone, only_if(lambda asked: max(asked.batches) == 1, "at a batch of several", "--batch 1")
    ] = 0
    no_peers: Annotated[bool, alone] = False
    """Leave out what users would pick instead."""
    beside: Annotated[tuple[str, ...], alone] = ()
    """What you would use instead of the policy, timed in the same turns: int8, shortlist, llama.cpp (of a
    .gguf file), or several at once, as "int8 + prompt_lookup"; may be given several times."""
    trace: Annotated[Path | None, alone] = None
    """Predict from this trace, before the timing."""
    hardware: Annotated[str | None, alone] = None
    """Predict with this profile. By default local, if this model was measured here."""
    quality: Annotated[bool, alone, flags("--quality/--no-quality")] = True
    """Judge the answers by the full model."""
    output: Annotated[Path | None, Writes(Bench.require_own)] = None
    """Write everything to a .json file; with --combine also a page."""
    seed: Whole = SEED
    """Of the order of turns, and of the quality's intervals."""
    transforms: Annotated[str | Sequence[Any], flags("--transform"), alone] = ()

    def check(self) -> None:
        """Refuse what cannot be timed, and files that cannot be read or written."""
        super().check()
        _ = self.limits
        if self.combine:
            self._check_combination()
        else:
            self._check_policy()

    def _check_policy(self) -> None:
        from offramp.timing.accelerations import read_beside

        read_beside(self.beside, self.dtype)
        self.options.check_files(self.dtype)
        _ = self.timings, self.traced, self.machine

    def _check_combination(self) -> None:
        from offramp.timing.accelerations import read_accelerations
        from offramp.timing.combine import require_policy

        require_policy(read_accelerations(self.combine, self.dtype), self.options, self.fitted)
        _ = self.text

    def require_own(self, output: Path) -> None:
        """Refuse a file that is not of such a result. Raises InputError."""
        from offramp.timing.results import COMBINED

        if self.combine:
            require_json_file(_file_of(output), "a combination", COMBINED.wrote, page=True)
        else:
            names = {"schema_version", "results"}
            require_json_file(output, "a bench result", lambda value: names <= value.keys())

    @cached_property
    def options(self) -> DecodingOptions:
        """How the policy decodes: on its own the entry of the workload, where it has several."""
        options = super().options
        return options if self.combine else options.for_task(self.text.name)

    @cached_property
    def heads_files(self) -> tuple[Path, ...]:
        """The files that were given, or that of the run whose policy it is."""
        from offramp.runs.folder import heads_of

        own = None if self.policy is None or self.heads else heads_of(self.policy)
        return self.heads if own is None else (own,)

    @property
    def heads_file(self) -> Path | None:
        """The one file of the one model; None where several models are combined."""
        files = () if self.combine else self.heads_files
        if len(files) > 1:
            raise InputError(
                f"{len(files)} files of exit heads are given for one model", where="--heads", fix="give one"
            )
        return files[0] if files else None

    @cached_property
    def fitted(self) -> tuple[ExitHeads, ...]:
        """The exit heads of all files."""
        from offramp.heads.file import read_heads

        return tuple(map(read_heads, self.heads_files))

    @cached_property
    def text(self) -> Workload:
        """The workload that prompts come from. Raises WorkloadError."""
        from offramp.runs.folder import text_of
        from offramp.workloads.registry import load_workload

        return load_workload(self.workload or (self.policy and text_of(self.policy)) or "prose")

    @property
    def most_prompts(self) -> int:
        """To decode, at most."""
        return PROMPTS if self.prompts is None else self.prompts

    @property
    def fewest_prompts(self) -> int:
        """That the workload must have."""
        return max(self.prompts or 1, *self.batches)

    @property
    def batches(self) -> tuple[int, ...]:
        """Batch sizes, each timed by itself."""
        return self.batch or (1,)

    @cached_property
    def limits(self) -> TimeLimits:
        """When the timing ends."""
        from offramp.timing.stopping import TimeLimits

        return TimeLimits(self.seconds, self.rounds, self.worth, looks=not self.to_the_end)

    @property
    def least_agreement(self) -> float:
        """With the full model, of a combination that is advised."""
        return MAIN_FLOOR if self.floor is None else self.floor

    @cached_property
    def trace_folder(self) -> Path | None:
        """The trace to predict from, None without one. Raises InputError where a folder has several."""
        from offramp.runs.folder import trace_for

        return None if self.trace is None else trace_for(self.trace, self.policy)

    @cached_property
    def traced(self) -> Trace | None:
        """The trace to predict from. Raises InputError, DamagedFileError among them."""
        from offramp.tracing.trace import Trace

        return None if self.trace_folder is None else Trace.load(self.trace_folder)

    @cached_property
    def timings(self) -> TimingsProfile | None:
        """Of the run that the trace or the policy is of, None without one."""
        from offramp.runs.folder import contents_at, contents_of

        place = self.trace_folder
        contents = contents_at(place) if place else self.policy and contents_of(self.policy)
        return contents.timings if contents else None

    @cached_property
    def machine(self) -> Machine | None:
        """The profile to predict with, None for that of this machine. Raises InputError."""
        from offramp.costs.machine_registry import find_machine

        return None if self.hardware in (None, LOCAL) else find_machine(str(self.hardware))

    @cached_property
    def combined_file(self) -> Path | None:
        """The file of a combination, None where none is written. Raises InputError."""
        return None if self.output is None else _file_of(self.output)


def bench(asked: Bench, out: Output) -> None:
    """Time a policy, or accelerations alone and together."""
    from offramp.cli.bench_stage import combine_and_show, time_and_show

    (combine_and_show if asked.combine else time_and_show)(asked, out)


def _file_of(output: Path) -> Path:
    """The file that is written: the one that is named, or that of a run's folder. Raises InputError."""
    from offramp.report import COMBINED_FILE
    from offramp.runs.folder import RUN_FILE

    if output.is_dir():
        if (output / RUN_FILE).is_file():
            return output / COMBINED_FILE
        raise InputError(
            "the output is a folder, but not that of a run",
            where=str(output),
            fix="write -o combined.json, or give the folder of an offramp run",
        )
    if (output.parent / RUN_FILE).is_file() and output.name != COMBINED_FILE:
        raise InputError(
            "the output is among the files of a run, which have names of their own",
            where=str(output),
            fix=f"give the folder itself: -o {output.parent}",
        )
    return output
