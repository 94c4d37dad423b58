"""`offramp generate`: an answer from a model that leaves early where its policy says so."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output, show_error
from offramp.cli.options import (
    AsJson,
    Device,
    HeadsFile,
    ModelName,
    Precision,
    RemoteCode,
    Transforms,
    idle_draft_length,
    refuse_idle,
    require_placement,
)
from offramp.errors import InputError, OfframpError
from offramp.kit.defaults import NEW_TOKENS
from offramp.models.devices import AUTO
from offramp.runs.contents import heads_of
from offramp.tracing.progress import console, stage

if TYPE_CHECKING:
    from offramp.cli.generation_summary import FullModelCheck
    from offramp.cli.token_text import Painter
    from offramp.decoding.generation.prompts import PromptBatch
    from offramp.decoding.generation.result import BatchGeneration
    from offramp.decoding.options import DecodingOptions
    from offramp.models.model import Model


@dataclass(frozen=True)
class Wanted:
    """What is to be generated, checked as far as it goes without the model.

    sampling: options of transformers.
    """

    prompts: list[str]
    options: DecodingOptions
    chat: bool
    seed: int | None
    sampling: dict[str, Any]


def generate(
    model: ModelName,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help='The text to go on from; "-" reads it; several are decoded together.'),
    ] = None,
    prompt_file: Annotated[
        list[Path] | None,
        typer.Option("--prompt-file", help='A file with one prompt, its last line end left out; or "-".'),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            "-p",
            help="static:exit=20, threshold:signal=...,value=...,exits=..., a .json; never: the full model.",
        ),
    ] = "never",
    kv: Annotated[
        str | None,
        typer.Option(
            "--kv",
            help="Skipped layers' K and V: propagate (default unless tuned), mapped (by maps of --heads), "
            "recompute, speculate, monotone.",
            show_default=False,
        ),
    ] = None,
    heads: HeadsFile = None,
    new_tokens: Annotated[int, typer.Option("--max-new-tokens", help="New tokens at most.")] = NEW_TOKENS,
    chat: Annotated[bool, typer.Option("--chat", help="The prompt is one turn of a chat.")] = False,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature",
            help="Sample at this temperature; 0, as without it, takes the best token.",
        ),
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Sample among so many tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option("--top-p", help="Sample among the likeliest that hold this probability.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of the samples.", show_default=False)] = None,
    draft_length: Annotated[
        str | None,
        typer.Option(
            "--draft-length",
            help="Tokens drafted at most, with --kv speculate: a number or auto. By default 4.",
            show_default=False,
        ),
    ] = None,
    batching: Annotated[
        str | None,
        typer.Option(
            "--batching",
            help="How several prompts' tokens leave: lockstep (the default) or rebatch.",
            show_default=False,
        ),
    ] = None,
    device: Device = AUTO,
    dtype: Precision = AUTO,
    transform: Transforms = None,
    trust_remote_code: RemoteCode = False,
    check: Annotated[
        bool, typer.Option("--check", help="Hold the answer against the full model's; takes twice as long.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Answer a prompt, each token from the layer that the policy chooses; on a terminal coloured by layer."""
    from offramp.cli.prompts import read_prompts
    from offramp.decoding.generation.generate import read_sampling
    from offramp.tracing.loading import find_model, read_transforms

    sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    sampling = read_sampling({name: value for name, value in sampling.items() if value is not None})
    _require_numbers(new_tokens, sampling, seed)
    require_placement(device, dtype)
    if check and sampling:
        raise InputError(
            "sampled text differs from the full model's by chance",
            where="--check",
            fix="leave --check out, or the options of sampling",
        )
    transforms = read_transforms(transform, dtype)
    prompts = read_prompts(prompt or [], prompt_file or [])
    out = Output(as_json)

    from offramp.decoding.options import DecodingOptions

    given, heads = heads, heads or heads_of(policy)
    options = DecodingOptions.read(
        policy, kv=kv, heads=heads, draft_length=draft_length, batching=batching, new_tokens=new_tokens
    )
    one, way = len(prompts) == 1, "--temperature, --top-k or --top-p"
    whole, greedy = policy == "never", temperature == 0
    refuse_idle(
        {
            "--draft-length": idle_draft_length(options.kv, draft_length),
            "--batching": (batching is not None and one, "with one prompt", "another --prompt"),
            "--seed": (seed is not None and not sampling, "with greedy decoding", way),
            "--top-k": (top_k is not None and greedy, "at --temperature 0", ""),
            "--top-p": (top_p is not None and greedy, "at --temperature 0", ""),
            "--kv": (kv is not None and whole, "with the full model", "--policy"),
            "--heads": (given is not None and whole, "with the full model", "--policy"),
        }
    )
    wanted = Wanted(prompts, options, chat, seed, sampling)
    with stage("loading the model and checking its exits"):
        asked = find_model(model, transforms, dtype=dtype, trust_remote_code=trust_remote_code, device=device)
        options.check_asked(asked, heads)
        options.check_files(asked.dtype)
        loaded = asked.load()
    _answer(out, loaded, wanted, check)


def _require_numbers(new_tokens: int, sampling: dict[str, Any], seed: int | None) -> None:
    """Raise InputError for a number out of its range."""
    from offramp.decoding.generation.generate import RANGES

    ranges = {
        "--max-new-tokens": (new_tokens, new_tokens >= 1, "1 or more"),
        "--seed": (seed, seed is None or 0 <= seed < 2**63, "from 0 to 2^63 - 1"),
    }
    for name, value in sampling.items():
        ranges[f"--{name.replace('_', '-')}"] = (value, RANGES[name].holds(value), RANGES[name].words)
    for option, (value, fits, range_) in ranges.items():
        if not fits:
            raise InputError(f"{option[2:]} cannot be {value}", where=option, fix=f"give a number {range_}")


def _answer(out: Output, model: Model, wanted: Wanted, check: bool) -> None:
    """Generate, show, check and sum up."""
    from offramp.cli.generation_summary import summary_lines, to_json
    from offramp.cli.token_text import Painter
    from offramp.decoding.generation.prompts import prompt_batch

    prompts = prompt_batch(model, wanted.prompts, chat=wanted.chat)
    summary = console(sys.stderr)
    if wanted.chat and model.uses_plain_chat_template:
        summary.print("the model has no chat template: a plain turn is used")
    painter = Painter(out.console, tuple(wanted.options.policy.needs(model.layers)), model.layers)
    legend = painter.legend()
    if legend is not None:
        out.console.file.write(legend + "\n")
    batch = _shown(painter, model, wanted, prompts)
    problem = next((row.problem for row in batch.rows if row.problem is not None), None)
    found = _checked(model, wanted, prompts, batch) if check and problem is None else None
    for line in summary_lines(batch, wanted.options.kv, found, model.decode):
        summary.print(line, markup=False, soft_wrap=True)
    policy = wanted.options.policy
    if found is not None and wanted.options.heads is None and policy.needs(model.layers):
        summary.print("exits are read through the model's own head (no --heads given)", soft_wrap=True)
    value = to_json(model.shown_name, str(policy), wanted.options.kv, wanted.prompts, batch, found)
    if problem is not None:
        broken = OfframpError(
            f"the generation stopped early: {problem}",
            where=model.shown_name,
            fix="try --dtype float32, or check the model's weights",
        )
        show_error(broken, as_json=False)
        out.finish(value)
        raise typer.Exit(broken.exit_code)
    out.finish(value)


def _shown(painter: Painter, model: Model, wanted: Wanted, prompts: PromptBatch) -> BatchGeneration:
    """Generate; one answer is shown while it grows, several one after another when they are all there."""
    from offramp.cli.token_text import TokenStream

    if len(wanted.prompts) == 1:
        stream = TokenStream(painter, model.decode, model.eos_token_ids)
        try:
            return _generated(model, wanted, prompts, stream)
        finally:
            stream.end()
    with stage(f"decoding {len(wanted.prompts)} prompts together"):
        batch = _generated(model, wanted, prompts)
    for place, row in enumerate(batch.rows, 1):
        painter.console.file.write(f"[{place}]\n")
        stream = TokenStream(painter, model.decode, model.eos_token_ids)
        for token, exit in zip(row.tokens, row.exits.tolist(), strict=True):
            stream.show(token, exit)
        stream.end()
    return batch


def _generated(model: Model, wanted: Wanted, prompts: PromptBatch, streamer: Any = None) -> BatchGeneration:
    from offramp.decoding.generation.generate import generate_batch

    with warnings.catch_warnings():
        # A broken logit is told as the command's error, below the text.
        warnings.filterwarnings("ignore", "the generation stopped", RuntimeWarning)
        return generate_batch(
            model,
            prompts.ids,
            prompts.mask,
            wanted.options.for_task(None),
            seed=wanted.seed,
            streamer=streamer,
            **wanted.sampling,
        )


def _checked(model: Model, wanted: Wanted, prompts: PromptBatch, batch: BatchGeneration) -> FullModelCheck:
    """The answers held against the full model's own."""
    from offramp.cli.generation_summary import FullModelCheck
    from offramp.decoding.generation.generate import FULL_MODEL, generate_batch
    from offramp.decoding.quality.judging import free_running, tokens_before_divergence

    with stage("the full model's own answer"):
        options = replace(FULL_MODEL, new_tokens=wanted.options.new_tokens)
        plain = generate_batch(model, prompts.ids, prompts.mask, options)
        pairs = list(zip(batch.rows, plain.rows, strict=True))
        quality = free_running(
            model,
            [ids[mask.bool()].tolist() for ids, mask in zip(prompts.ids, prompts.mask, strict=True)],
            [row.tokens for row, _ in pairs],
            [own.tokens for _, own in pairs],
        )
    shared = tuple(tokens_before_divergence(row.tokens, own.tokens) for row, own in pairs)
    return FullModelCheck(quality, plain.rows, shared)
