"""`offramp generate`: an answer from a model that leaves early where its policy says so."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.command import Output, show_error
from offramp.cli.shared_options import Leaving
from offramp.defaults import NEW_TOKENS
from offramp.errors import InputError, OfframpError
from offramp.files import read_given_text
from offramp.kit.given import Given, GivenIds
from offramp.kit.numbers import Copied, Count, Whole
from offramp.kit.request import Request, flags
from offramp.kit.rules import Temperature, TopP, only_if
from offramp.policies.names import BatchingName, StrategyName
from offramp.tracing.asked import ReadThrough
from offramp.tracing.progress import console, stage

if TYPE_CHECKING:
    from offramp.cli.generation_shown import FullModelCheck, Painter
    from offramp.decoding.generation.prompts import PromptBatch
    from offramp.decoding.generation.result import BatchGeneration
    from offramp.models.model import Model
    from offramp.tracing.loading import ModelRequest


FULL_MODEL = "never"
STANDARD_INPUT = "-"
# What cannot be read is told first.
exiting = only_if(
    lambda asked: asked.options and asked.policy != FULL_MODEL, "with the full model", "--policy"
)
warm = only_if(lambda asked: asked.temperature != 0, "at --temperature 0")


@dataclass(frozen=True, kw_only=True)
class Completion(Leaving, ReadThrough, Request):
    """Answer a prompt, each token from the layer that the policy chooses; on a terminal coloured by layer."""

    prompts: Annotated[tuple[str, ...], flags("--prompt")] = ()
    """The text to go on from; "-" reads it; several are decoded together."""
    prompt_files: Annotated[tuple[Path, ...], flags("--prompt-file")] = ()
    """A file with one prompt, its last line end left out; or "-"."""
    sources: Annotated[tuple[str, ...], flags("--source")] = ()
    """What an encoder-decoder reads, in the place of a prompt; several are decoded together."""
    sounds: Annotated[tuple[Path, ...], flags("--audio")] = ()
    """A WAV file that a speech model hears, in the place of a prompt; several are decoded together."""
    images: Annotated[tuple[Path, ...], flags("--image")] = ()
    """A picture that an image-text model sees; --prompt asks about it, or about all of several."""
    policy: Annotated[str, flags("--policy", "-p")] = FULL_MODEL
    kv: Annotated[StrategyName | None, exiting] = None
    heads: Annotated[Path | None, exiting] = None
    new_tokens: Annotated[Count, flags("--max-new-tokens")] = NEW_TOKENS
    lookup: Annotated[
        Copied,
        only_if(
            lambda asked: asked.asked_for == 1,
            "with several prompts",
            "one --prompt",
        ),
    ] = 0
    chat: bool = False
    """The prompt is one turn of a chat."""
    temperature: Temperature | None = None
    """Sample at this temperature; 0, as without it, takes the best token."""
    seed: Annotated[
        Whole | None,
        only_if(lambda asked: asked.sampling, "with greedy decoding", "--temperature, --top-k or --top-p"),
    ] = None
    """Of the samples."""
    top_k: Annotated[Count | None, warm] = None
    """Sample among so many tokens."""
    top_p: Annotated[TopP | None, warm] = None
    """Sample among the likeliest that hold this probability."""
    batching: Annotated[
        BatchingName | None,
        only_if(
            lambda asked: asked.asked_for != 1,
            "with one prompt",
            "another --prompt",
        ),
    ] = None
    """How several prompts' tokens leave: lockstep (the default) or rebatch."""
    check_answer: Annotated[
        bool,
        flags("--check"),
        only_if(
            lambda asked: not asked.sampling,
            "where text is sampled: it differs by chance",
        ),
    ] = False
    """Hold the answer against the full model's; takes twice as long."""

    def check(self) -> None:
        """Refuse prompts that are none, and such a policy."""
        super().check()
        _ = self.texts, self.options

    @property
    def asked_for(self) -> int:
        """How many answers."""
        return len(self.images or (*self.prompts, *self.prompt_files, *self.sources, *self.sounds))

    @cached_property
    def texts(self) -> list[str]:
        """The prompts, the sources, or the paths of the sounds. Raises InputError."""
        if not self.sources and not self.sounds:
            prompts = read_prompts(self.prompts, self.prompt_files)
            return prompts * len(self.images) if self.images and len(prompts) == 1 else prompts
        if self.images:
            where = "--image"
            raise InputError("a text, a sound or a picture is given", where=where, fix="give one of these")
        if self.prompts or self.prompt_files or (self.sources and self.sounds):
            raise InputError(
                "a source is read by an encoder-decoder, whose answers begin with no prompt",
                where="--audio" if self.sounds else "--source",
                fix="give --source TEXT or --audio FILE alone, or --prompt TEXT to a causal language model",
            )
        return [*self.sources, *map(str, self.sounds)]

    @cached_property
    def given_sources(self) -> tuple[Given, ...]:
        """What a model is to read beside token ids. Raises InputError."""
        from offramp.kit.picture import given_pictures
        from offramp.kit.sound import given_sound

        if self.images:
            return tuple(given_pictures(self.images, self.texts, "--image"))
        return (*map(Given, self.sources), *map(given_sound, self.sounds))

    def find(self, model: str) -> ModelRequest:
        """The files, refused where they read no source and there is one, or the other way round."""
        found = super().find(model)
        given = self.given_sources
        options = {"--image": self.images, "--audio": self.sounds, "--source": self.sources}
        where = next((option for option, values in options.items() if values), "--prompt")
        found.require_sources(given[0].kind if given else None, where, given)
        return found

    @property
    def heads_file(self) -> Path | None:
        """The file that was given, or that of the run whose policy it is."""
        from offramp.runs.folder import heads_of

        return self.heads or heads_of(self.policy)

    @property
    def sampling(self) -> dict[str, Any]:
        """Options of transformers; none where the best token is taken."""
        if self.temperature == 0:
            return {}
        options = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {name: value for name, value in options.items() if value is not None}


def read_prompts(texts: Sequence[str], files: Sequence[Path]) -> list[str]:
    """The prompts of `--prompt` and of `--prompt-file`, in this order; "-" is standard input.

    The line end that closes a file does not belong to its prompt.

    Raises InputError if there is none, if one is empty, if a file cannot be read, and if standard input is to
    be read twice.
    """
    named = [(text, "--prompt") for text in texts]
    named += [(_read_file(file), f"--prompt-file {file}") for file in files if str(file) != STANDARD_INPUT]
    inputs = [*texts, *map(str, files)].count(STANDARD_INPUT)
    if inputs > 1:
        raise InputError("standard input can be read once", where="--prompt -", fix="give one - only")
    if inputs and sys.stdin is None:
        raise InputError("standard input is closed", where="--prompt -", fix="give --prompt TEXT")
    if inputs:
        typed = _closed(_read_typed())
        named = [(typed if text == STANDARD_INPUT else text, where) for text, where in named]
        if STANDARD_INPUT not in texts:
            named.append((typed, "--prompt-file -"))
    if not named:
        raise InputError(
            "there is no prompt", where="--prompt", fix='give --prompt TEXT, --prompt-file FILE, or "-"'
        )
    for text, where in named:
        if not text.strip():
            raise InputError(
                "the prompt is empty: there is nothing to go on from", where=where, fix="write some text"
            )
    return [text for text, _ in named]


def _read_file(file: Path) -> str:
    return _closed(read_given_text(file, "prompt's file"))


def _read_typed() -> str:
    """Standard input, which is UTF-8 as files are. Raises InputError."""
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError("standard input is not UTF-8 text", where="--prompt -", fix="convert it") from error


def _closed(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")


def generate(asked: Completion, out: Output) -> None:
    """Generate, show, check and sum up."""
    from offramp.cli.generation_shown import Answered, Painter, summary_lines
    from offramp.decoding.generation.prompts import prompt_batch
    from offramp.kit.typed import to_json

    model = asked.load()
    if asked.given_sources:
        prompts = prompt_batch(model, "", chat=False, given=asked.given_sources)
    else:
        prompts = prompt_batch(model, asked.texts, chat=asked.chat)
    summary = console(sys.stderr)
    if asked.chat and model.uses_plain_chat_template:
        summary.print("the model has no chat template: a plain turn is used")
    painter = Painter(out.console, tuple(asked.options.policy.needs(model.layers)), model.layers)
    legend = painter.legend()
    if legend is not None:
        out.console.file.write(legend + "\n")
    batch = _shown(painter, model, asked, prompts)
    problem = next((row.problem for row in batch.rows if row.problem is not None), None)
    found = _checked(model, asked, prompts, batch) if asked.check_answer and problem is None else None
    for line in summary_lines(batch, asked.options.kv, found, model.decode):
        summary.print(line, markup=False, soft_wrap=True)
    policy = asked.options.policy
    if found is not None and asked.options.heads is None and policy.needs(model.layers):
        summary.print("exits are read through the model's own head (no --heads given)", soft_wrap=True)
    value = to_json(Answered(model.shown_name, policy, asked.options.kv, asked.texts, batch, found))
    if len(batch.rows) == 1:  # as one answer alone, too: who reads its text need not count rows
        value = {**value["rows"][0], **value, "prompt": asked.texts[0]}
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


def _shown(painter: Painter, model: Model, asked: Completion, prompts: PromptBatch) -> BatchGeneration:
    """Generate; one answer is shown while it grows, several one after another when they are all there."""
    from offramp.cli.generation_shown import TokenStream

    if len(asked.texts) == 1:
        stream = TokenStream(painter, model.decode, model.eos_token_ids)
        try:
            return _generated(model, asked, prompts, stream)
        finally:
            stream.end()
    with stage(f"decoding {len(asked.texts)} prompts together"):
        batch = _generated(model, asked, prompts)
    for place, row in enumerate(batch.rows, 1):
        painter.console.file.write(f"[{place}]\n")
        stream = TokenStream(painter, model.decode, model.eos_token_ids)
        for token, exit in zip(row.tokens, row.exits.tolist(), strict=True):
            stream.show(token, exit)
        stream.end()
    return batch


def _generated(
    model: Model, asked: Completion, prompts: PromptBatch, streamer: Any = None
) -> BatchGeneration:
    from offramp.decoding.generation.generate import generate_batch

    with warnings.catch_warnings():
        # A broken logit is told as the command's error, below the text.
        warnings.filterwarnings("ignore", "the generation stopped", RuntimeWarning)
        # A generation_config.json may ask for longer answers than the command.
        warnings.filterwarnings("ignore", "Unfeasible length constraints", UserWarning)
        with model.given(prompts.given):
            return generate_batch(
                model,
                prompts.ids,
                prompts.mask,
                asked.options.for_task(None),
                seed=asked.seed,
                streamer=streamer,
                **asked.sampling,
            )


def _checked(model: Model, asked: Completion, prompts: PromptBatch, batch: BatchGeneration) -> FullModelCheck:
    """The answers held against the full model's own."""
    from offramp.cli.generation_shown import FullModelCheck
    from offramp.decoding.generation.generate import FULL_MODEL, generate_batch
    from offramp.decoding.judging import free_running, tokens_before_divergence

    with stage("the full model's own answer"):
        options = replace(FULL_MODEL, new_tokens=asked.options.new_tokens)
        with model.given(prompts.given):
            plain = generate_batch(model, prompts.ids, prompts.mask, options)
        pairs = list(zip(batch.rows, plain.rows, strict=True))
        quality = free_running(
            model,
            [
                GivenIds.of(ids[mask.bool()].tolist(), given)
                for ids, mask, given in zip(prompts.ids, prompts.mask, prompts.given, strict=True)
            ],
            [row.tokens for row, _ in pairs],
            [own.tokens for _, own in pairs],
        )
    shared = tuple(tokens_before_divergence(row.tokens, own.tokens) for row, own in pairs)
    return FullModelCheck(quality, plain.rows, shared)
