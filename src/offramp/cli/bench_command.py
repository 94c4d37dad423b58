"""`offramp bench`: a policy timed beside plain decoding, with the prediction beside what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from offramp.cli.console import Output
from offramp.cli.options import (
    AsJson,
    Device,
    ModelName,
    Precision,
    RemoteCode,
    Transforms,
    require_placement,
)
from offramp.errors import InputError
from offramp.kit.defaults import (
    DEFAULT_MODEL,
    DRAFT_LENGTH,
    MAIN_FLOOR,
    PROMPT_TOKENS,
    SEED,
    TIMED_TOKENS,
    TIMING_SECONDS,
    WORTH,
)
from offramp.models.devices import AUTO
from offramp.runs.contents import heads_of, text_of
from offramp.tracing.progress import stage


def bench(
    model: ModelName = DEFAULT_MODEL,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            "-p",
            help="static:exit=20, threshold:signal=... or a policy.json. Not needed to --combine others.",
            show_default=False,
        ),
    ] = None,
    combine: Annotated[
        list[str] | None,
        typer.Option(
            "--combine",
            help="Time accelerations alone and together; give it for each: int8, int4, prune:..., exits (of "
            "--policy), speculate, shortlist, prompt_lookup.",
            show_default=False,
        ),
    ] = None,
    floor: Annotated[
        float | None,
        typer.Option(
            "--floor",
            help="With --combine: share of the full model's tokens that what is advised must choose. "
            f"{MAIN_FLOOR:g} by default.",
            show_default=False,
        ),
    ] = None,
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            help="Skipped layers' K and V: propagate (default unless tuned), mapped (by maps of --heads), "
            "recompute, speculate, monotone.",
            show_default=False,
        ),
    ] = None,
    heads: Annotated[
        list[Path] | None,
        typer.Option(
            "--heads",
            help="Read exits through the heads that offramp heads fit wrote. With --combine it may be given "
            "again: each file is used on the model that it was fitted on.",
            show_default=False,
        ),
    ] = None,
    workload: Annotated[
        str | None,
        typer.Option(
            "--workload",
            "-w",
            help="Where prompts come from: the starts of its documents. By default the text that the file of "
            "the policy was tuned on, or prose.",
            show_default=False,
        ),
    ] = None,
    prompts: Annotated[
        int | None,
        typer.Option(
            "--prompts",
            help="How many prompts (batches of them, with --batch) to decode, as far as the seconds allow; "
            "each is one sample of an interval. 16 by default, or as many as there are.",
            show_default=False,
        ),
    ] = None,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", help="Tokens of each document's start that make a prompt.")
    ] = PROMPT_TOKENS,
    new_tokens: Annotated[
        int, typer.Option("--new-tokens", help="New tokens after each prompt.")
    ] = TIMED_TOKENS,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds",
            help="How often each prompt is decoded, at most. By default as long as the seconds last.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option("--seconds", help="Stop about then, or as soon as the question is answered.", min=0.0),
    ] = TIMING_SECONDS,
    worth: Annotated[
        float,
        typer.Option(
            "--worth", help="Share of the time whose gain matters; within it contenders are equivalent."
        ),
    ] = WORTH,
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            help="Measure in so many fresh processes, which share the seconds.",
        ),
    ] = 1,
    plain: Annotated[str | None, typer.Option("--plain", hidden=True)] = None,
    to_the_end: Annotated[bool, typer.Option("--to-the-end", hidden=True)] = False,
    timing_only: Annotated[bool, typer.Option("--timing-only", hidden=True)] = False,
    batch: Annotated[
        list[int] | None,
        typer.Option("--batch", help="Prompts decoded side by side; may be given again. [default: 1]"),
    ] = None,
    batching: Annotated[
        str | None,
        typer.Option(
            "--batching",
            help="How rows of a batch leave: lockstep (the default) or rebatch.",
            show_default=False,
        ),
    ] = None,
    draft_length: Annotated[
        str | None,
        typer.Option(
            "--draft-length",
            help="With --kv speculate: tokens drafted before a verification at most, or auto. "
            f"{DRAFT_LENGTH} by default.",
            show_default=False,
        ),
    ] = None,
    no_peers: Annotated[
        bool, typer.Option("--no-peers", help="Leave out what users would pick instead.")
    ] = False,
    trace: Annotated[
        Path | None,
        typer.Option("--trace", help="Predict from this trace, before the timing.", show_default=False),
    ] = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            "--hardware",
            help="Predict with this profile. By default local, if this model was measured here.",
            show_default=False,
        ),
    ] = None,
    quality: Annotated[
        bool, typer.Option("--quality/--no-quality", help="Judge the answers by the full model.")
    ] = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write everything to a .json file; with --combine also a page.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", help="Of the order of turns, and of the quality's intervals."),
    ] = SEED,
    device: Device = AUTO,
    dtype: Precision = AUTO,
    transform: Transforms = None,
    trust_remote_code: RemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Time a policy's decoding beside plain decoding and others, until it is clear whether it is faster."""
    out = Output(as_json)
    require_placement(device, dtype)
    workload = workload or (policy and text_of(policy)) or "prose"
    if policy is not None and not heads:
        heads = [found] if (found := heads_of(policy)) else None
    if combine:
        _combine(
            model,
            out,
            combine,
            policy=policy,
            kv=kv,
            heads=heads or [],
            workload=workload,
            prompts=prompts,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
            rounds=rounds,
            seconds=seconds,
            worth=worth,
            looks=not to_the_end,
            plain=plain,
            draft_length=draft_length,
            floor=floor,
            output=output,
            seed=seed,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
            meaningless={
                "--batch": bool(batch),
                "--batching": batching is not None,
                "--no-peers": no_peers,
                "--trace": trace is not None,
                "--hardware": hardware is not None,
                "--no-quality": not quality,
                "--processes": processes != 1,
                "--transform": bool(transform),
            },
        )
        return
    from offramp.cli.bench_request import read_request
    from offramp.decoding.measurement.answers import Limits
    from offramp.tracing.loading import find_model, read_transforms

    request = read_request(
        policy=policy,
        kv=kv,
        heads=_only(heads),
        floor=floor,
        workload=workload,
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        limits=Limits(seconds, rounds, worth, looks=not to_the_end),
        processes=processes,
        plain=plain,
        batches=tuple(batch or [1]),
        batching=batching,
        draft_length=draft_length,
        peers=not no_peers,
        trace=trace,
        hardware=hardware,
        quality=quality and not timing_only,
        forecasts=not timing_only,
        output=output,
        seed=seed,
        dtype=dtype,
    )
    transforms = read_transforms(transform, dtype)
    from offramp.decoding.measurement.results import contenders_json, write_results
    from offramp.kit.typed import to_json

    if processes > 1:
        from offramp.cli.bench_stage import measured_in_processes

        results = measured_in_processes(request, out)
    else:
        from offramp.cli.bench_stage import measured_results

        with stage("loading the model and checking its exits"):
            asked = find_model(
                model, transforms, dtype=dtype, trust_remote_code=trust_remote_code, device=device
            )
            request.options.check_asked(asked, _only(heads))
            request.options.check_files(asked.dtype)
            loaded = asked.load()
        results = measured_results(loaded, request, out)
    if output is not None:
        write_results(output, results)
        out.console.print(f"written: {output}", markup=False, soft_wrap=True)
    out.finish(
        {
            "answer": results[0].answer,
            "contenders": contenders_json(results[0]),
            "results": [to_json(result) for result in results],
            "file": None if output is None else str(output),
        }
    )


def _combine(
    model: str,
    out: Output,
    accelerations: list[str],
    *,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    **options: Any,
) -> None:
    """`offramp bench --combine`: accelerations alone and together."""
    from offramp.cli.combine_request import read_combine_request

    request = read_combine_request(accelerations=accelerations, dtype=dtype, **options)
    from offramp.cli.combine_stage import combine_and_show
    from offramp.decoding.measurement.accelerations import read_accelerations
    from offramp.tracing.loading import find_model

    with stage("loading the model and checking its exits"):
        asked = find_model(model, (), dtype=dtype, trust_remote_code=trust_remote_code, device=device)
        read_accelerations(accelerations, asked.dtype)
        loaded = asked.load()
    combine_and_show(loaded, request, out, trust_remote_code=trust_remote_code)


def _only(heads: list[Path] | None) -> Path | None:
    """The one file of exit heads, None without. Raises InputError for several."""
    if heads and len(heads) > 1:
        raise InputError(
            f"{len(heads)} files of exit heads are given for one model", where="--heads", fix="give one"
        )
    return heads[0] if heads else None
