"""What `offramp bench --combine` was asked for, refused before a model is loaded where it cannot be."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.cli.bench_request import PROMPTS
from offramp.cli.options import refuse_idle
from offramp.decoding.measurement.accelerations import EXITS, SPECULATE, read_accelerations
from offramp.decoding.measurement.answers import Limits
from offramp.decoding.measurement.bench import check_limits, require_sizes
from offramp.decoding.measurement.combine import require_floor, require_policy
from offramp.decoding.measurement.combined import COMBINED
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError
from offramp.kit.defaults import MAIN_FLOOR
from offramp.report import COMBINED_FILE
from offramp.runs.folder import RUN_FILE
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.heads_file import read_heads
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Workload


@dataclass(frozen=True)
class CombineRequest:
    """The options of the command, read and checked as far as possible without the model.

    prompts: at most; fewest_prompts: that the workload must have.
    """

    accelerations: tuple[str, ...]
    options: DecodingOptions
    heads: tuple[ExitHeads, ...]
    workload: Workload
    prompts: int
    fewest_prompts: int
    prompt_tokens: int
    limits: Limits
    plain: str | None
    floor: float
    output: Path | None
    seed: int


def read_combine_request(
    *,
    accelerations: Sequence[str],
    policy: str | None,
    kv: str | None,
    heads: Sequence[Path],
    workload: str,
    prompts: int | None,
    prompt_tokens: int,
    new_tokens: int,
    rounds: int | None,
    seconds: float,
    worth: float,
    looks: bool,
    draft_length: str | None,
    floor: float | None,
    output: Path | None,
    dtype: str,
    meaningless: Mapping[str, bool],
    **plain: Any,
) -> CombineRequest:
    """Read and check the options. meaningless: options that change nothing here, by whether they were given.

    plain: those that are kept as they are.

    Raises InputError, its subclasses, or DamagedFileError for anything that cannot be measured.
    """
    wanted = PROMPTS if prompts is None else prompts
    require_sizes(prompt_tokens=prompt_tokens, new_tokens=new_tokens, prompts=wanted)
    limits = Limits(seconds, rounds, worth, looks)
    check_limits(limits)
    floor = MAIN_FLOOR if floor is None else floor
    require_floor(floor)
    for option, given in meaningless.items():
        if given:
            raise InputError(
                f"{option} is not possible with --combine", where=option, fix=f"leave {option} out"
            )
    asked = read_accelerations(accelerations, dtype)
    options = DecodingOptions.read(policy, kv=kv, draft_length=draft_length, new_tokens=new_tokens)
    fitted = tuple(map(read_heads, heads))
    require_policy(asked, options, fitted)
    idle = draft_length is not None and SPECULATE not in accelerations
    refuse_idle(
        {
            "--kv": (kv is not None and EXITS not in accelerations, "without exits", "--combine exits"),
            "--draft-length": (idle, "without speculation", "--combine speculate"),
        }
    )
    return CombineRequest(
        accelerations=tuple(accelerations),
        options=options,
        heads=fitted,
        workload=load_workload(workload),
        prompts=wanted,
        fewest_prompts=prompts or 1,
        prompt_tokens=prompt_tokens,
        limits=limits,
        floor=floor,
        output=None if output is None else _file_of(output),
        **plain,
    )


def _file_of(output: Path) -> Path:
    """The file that is written: a .json file, or that of a run's folder. Raises InputError for others, and
    where another file stands in its place or in that of its page.
    """
    if output.is_dir():
        if (output / RUN_FILE).is_file():
            return _file_of(output / COMBINED_FILE)
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
    if output.suffix != ".json":
        raise InputError(
            "the output's name does not end in .json",
            where=str(output),
            fix="write -o combined.json, or give the folder of an offramp run",
        )
    if not output.absolute().parent.is_dir():
        raise InputError(
            "the output is in a folder that does not exist",
            where=str(output),
            fix="choose another file with -o",
        )
    ours, page = COMBINED.is_of(output), output.with_suffix(".html")
    for path in (output, page):
        if os.path.lexists(path) and not ours:
            raise InputError(
                "something else stands where the result or its page is written",
                where=str(path),
                fix="move it away, or choose another file with -o",
            )
    return output
