"""lm-eval's own `hf` model, every token decoded by an exit policy; and how deep each task's tokens went."""

from __future__ import annotations

import functools
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from lm_eval.models.huggingface import HFLM
from torch import Tensor
from tqdm import tqdm

from offramp.decoding.engine.build import engine_of
from offramp.decoding.generation.early_exit import EarlyExit
from offramp.decoding.generation.loop import Scorer, check_decodable, explain_out_of_memory
from offramp.decoding.options import DecodingOptions, check_policy
from offramp.errors import InputError, ModelError, OfframpError
from offramp.kit.rules import suggest
from offramp.kit.typed import to_json
from offramp.models.devices import AUTO, device_count
from offramp.models.model import Model
from offramp.models.process import quiet_loggers
from offramp.models.source import ModelFiles
from offramp.models.templates import rendered
from offramp.models.tokenizing import settle
from offramp.models.transforms.transform import Transform, parse_transforms
from offramp.tracing.loading import ModelRequest, find_model

WHERE = "--model_args"

DEFAULTS_OF_LM_EVAL = ("cuda", "cuda:0")
"""Devices that lm-eval hands over where its user named none."""

OF_HARNESS = (
    "add_bos_token",
    "chat_template_args",
    "enable_thinking",
    "max_length",
    "prefix_token_id",
    "think_end_token",
    "truncation",
)
"""Arguments of lm-eval's own `hf` model that mean here what they mean there."""

OF_OFFRAMP = (
    "pretrained",
    "policy",
    "kv",
    "heads",
    "draft_length",
    "task",
    "dtype",
    "transforms",
    "trust_remote_code",
    "batch_size",
    "max_batch_size",
    "device",
)


def refuse_unknown(names: Iterable[str], policy: Any) -> None:
    """Raise InputError for an argument that is none, with a hint if a policy's text was cut at a comma."""
    unknown = [name for name in names if name not in (*OF_OFFRAMP, *OF_HARNESS)]
    if not unknown:
        return
    fix = suggest(unknown[0], (*OF_OFFRAMP, *OF_HARNESS))
    if isinstance(policy, str) and ":" in policy:
        whole = {"pretrained": "MODEL", "policy": f"{policy},{unknown[0]}=..."}
        fix = (
            "a policy whose text has commas needs the arguments as JSON, "
            f"--model_args '{json.dumps(whole)}', or the path of a policy.json; else {fix}"
        )
    raise InputError(f"unknown model argument {unknown[0]!r}", where=WHERE, fix=fix)


def _device(given: Any) -> str:
    """The device that is meant: "auto" for lm-eval's own default where that is not here."""
    device = str(given or AUTO)
    return AUTO if device in DEFAULTS_OF_LM_EVAL and not device_count("cuda") else device


def read_arguments(arguments: Mapping[str, Any]) -> tuple[ModelRequest, DecodingOptions]:
    """The arguments of `OfframpLM` that are offramp's own: what to evaluate and how to decode it.

    Both are checked as far as possible without a weight.

    Raises InputError (PolicyError and ModelError among them) for a model that cannot be found, a policy that
    is unknown, is an oracle or does not fit the model's stated number of layers, heads that cannot be read,
    an unknown strategy, dtype or transform, a batch of more than one, or arguments of loading with a model
    that is loaded.
    """
    _require_single(arguments.get("batch_size"), "batch_size")
    _require_single(arguments.get("max_batch_size"), "max_batch_size")
    dtype = str(arguments.get("dtype") or AUTO)
    transforms = _transforms(arguments.get("transforms"))
    options = DecodingOptions.read(
        arguments.get("policy"),
        kv=None if arguments.get("kv") is None else str(arguments["kv"]),
        heads=arguments.get("heads"),
        draft_length=arguments.get("draft_length"),
    ).for_task(arguments.get("task"))
    if isinstance(arguments.get("pretrained"), Model):
        return _of_loaded(arguments["pretrained"], arguments), options
    request = find_model(
        _name(arguments.get("pretrained")),
        transforms,
        dtype=dtype,
        trust_remote_code=bool(arguments.get("trust_remote_code") or False),
        device=_device(arguments.get("device")),
    )
    if request.layers is not None:
        check_policy(options.policy, request.layers, options.heads)
    options.check_files(request.dtype)
    return request, options


OF_LOADING = ("dtype", "device", "transforms", "trust_remote_code")


def _of_loaded(model: Model, arguments: Mapping[str, Any]) -> ModelRequest:
    """The request for a model that is loaded already, whatever was done to it."""
    late = [name for name in OF_LOADING if arguments.get(name)]
    if late:
        raise InputError(
            f"{late[0]} says how to load, and {model.shown_name} is loaded already",
            where=WHERE,
            fix="leave it out, or give the model's name",
        )
    files = ModelFiles(model.name, Path(), model.identity)
    return ModelRequest(files, (), model.dtype, False, str(model.stack.device), model)


def _transforms(given: Any) -> tuple[Transform, ...]:
    """One transform's text, or a list of them in their order."""
    if not given:
        return ()
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InputError(
            f"transforms cannot be {given!r}", where=WHERE, fix="give one, such as int8, or a list of texts"
        )
    return parse_transforms(texts)


def _name(given: Any) -> str:
    if given is None or given == "":
        raise InputError(
            "no model was named",
            where=WHERE,
            fix="give pretrained=smollm2, a folder, a .gguf file, or a Hub id",
        )
    return str(given)


def _require_single(given: Any, name: str) -> None:
    if given is not None and str(given) != "1":
        raise InputError(
            f"{name} cannot be {given!r}: each text goes its own depth, so they are decoded one by one",
            where=f"--{name}",
            fix=f"leave it out, or give --{name} 1",
        )


WORDS = 2
"""Columns of the table that hold words, not numbers."""


@dataclass(frozen=True)
class Depth:
    """Sums over requests to a model of so many layers (L)."""

    READ_OFF: ClassVar[tuple[str, ...]] = ("mean_exit", "layers_of_full_model", "layers_skipped")
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("layers", "exits", "fed")

    layers: int
    requests: int = 0
    """Answered by the model, not by a cache of answers."""
    tokens: int = 0
    """New or scored ones."""
    exits: int = 0
    """Sum of the exits that predicted them."""
    fed: int = 0
    """Tokens that ran for their sake, the prompt's not included; the last new token of a generation is never
    fed."""
    layers_executed: int = 0
    """Layers that ran for those."""

    def plus(self, **sums: int) -> Depth:
        """With what further requests add to the sums."""
        return replace(self, **{name: getattr(self, name) + more for name, more in sums.items()})

    @property
    def mean_exit(self) -> float | None:
        """Mean exit per new or scored token, None without any."""
        return self.exits / self.tokens if self.tokens else None

    @property
    def layers_skipped(self) -> float | None:
        """Share of the fed tokens' layers that did not run, None without any; negative if more ran."""
        return 1.0 - self.layers_executed / self.layers_of_full_model if self.fed else None

    @property
    def layers_of_full_model(self) -> int:
        """Layers that the full model runs for the fed tokens."""
        return self.fed * self.layers


Depths = Mapping[tuple[str, str], Depth]
"""By task and type of request ("generate_until", "loglikelihood", "loglikelihood_rolling")."""


def by_task(depths: Depths) -> dict[str, dict[str, Depth]]:
    """By task, then by type of request."""
    tasks: dict[str, dict[str, Depth]] = {}
    for (task, kind), depth in depths.items():
        tasks.setdefault(task, {})[kind] = depth
    return tasks


def depth_table(depths: Depths) -> str:
    """A table of tasks and types of request for people, in the style of lm-eval's own."""
    rows = [("Tasks", "Request type", "Tokens", "Mean exit", "Layers skipped")]
    for (task, kind), depth in depths.items():
        mean = "-" if depth.mean_exit is None else f"{depth.mean_exit:.2f} of {depth.layers}"
        skipped = "-" if depth.layers_skipped is None else f"{100 * depth.layers_skipped:.1f} %"
        rows.append((task, kind, str(depth.tokens), mean, skipped))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    rule = ["-" * width if column < WORDS else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    return "\n".join([lines[0], f"|{'|'.join(rule)}|", *lines[1:]])


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    cells = [
        f"{cell:<{width}}" if column < WORDS else f"{cell:>{width}}"
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"|{'|'.join(cells)}|"


Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request as lm-eval encodes it: its texts (None for a window), and the ids of context and continuation."""


class OfframpLM(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """The model type `offramp` of lm-evaluation-harness: `--model offramp --model_args ...`.

    Texts, windows, truncation, stop strings and chat templates are those of lm-eval's own `hf` model, which
    this derives from. What runs the model is another: `generate_until` decodes as `offramp.generate` does,
    and `loglikelihood` and `loglikelihood_rolling` read each token's probability at the exit that the policy
    chose (`offramp.decoding.generation.loop`). A policy that never exits runs `hf`'s own code.

    pretrained: a bundled model, a folder, a .gguf file, or a Hub id; in Python also a model that is loaded,
    which several policies may share. policy, kv, heads, draft_length, task: as `offramp.generate` takes them.
    device, dtype, transforms, trust_remote_code: as `offramp.load_model`; lm-eval's own --device is this one.
    harness: arguments of `hf` (`offramp.decoding.harness.model.OF_HARNESS`).

    Raises InputError for whatever does not fit; most of it before any weight is loaded.
    """

    def __init__(self, pretrained: Any = None, **arguments: Any) -> None:
        harness = {name: value for name, value in arguments.items() if name not in OF_OFFRAMP}
        refuse_unknown(harness, arguments.get("policy"))
        request, self._options = read_arguments({"pretrained": pretrained, **arguments})
        self._offramp = request.load()
        self._check()
        # It warns that a model which is loaded already takes no other options: they were used to load it.
        with quiet_loggers("lm_eval.models.huggingface"):
            super().__init__(
                pretrained=self._offramp.hf,
                tokenizer=str(request.source.folder) if request.given is None else request.given.tokenizer,
                batch_size=1,
                trust_remote_code=request.trust_remote_code,
                **harness,
            )
        if request.given is None:
            settle(self.tokenizer, request.source.folder)
        self.pretrained = self._offramp.name

    def _check(self) -> None:
        model, options = self._offramp, self._options
        options.check_model(model)
        self._exits = bool(options.policy.needs(model.layers)) or options.policy.short_head
        self._depths: dict[tuple[str, str], Depth] = {}
        self._now = ("", "")
        if self._exits:
            self._engine = engine_of(model)
            check_decodable(self._engine, options)

    @functools.cached_property
    def _scorer(self) -> Scorer:
        """Not made before something is scored: there are policies that can only generate."""
        return Scorer(self._offramp, self._options)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability in nats of each continuation, and whether it is what each exit would have said."""
        return self._by_task("loglikelihood", super().loglikelihood, requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each text, in disjoint windows of `max_length` tokens."""
        return self._by_task("loglikelihood_rolling", super().loglikelihood_rolling, requests, disable_tqdm)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What follows each context, up to a stop string or the most tokens that are wanted."""
        return self._by_task("generate_until", super().generate_until, requests, disable_tqdm)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as `hf` writes it: without its system turns where the template refuses those."""
        asked = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": not add_generation_prompt,
            **self.chat_template_args,
        }
        others = [turn for turn in chat_history if turn["role"] != "system"]
        try:
            return rendered(self.tokenizer, chat_history, **asked)
        except ModelError:
            if len(others) == len(chat_history):
                raise
        return rendered(self.tokenizer, others, **asked)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval keeps of the model in its results, with the depths of what ran so far.

        lm-eval asks once, when all is answered, just before it prints its table: the depths are printed here.
        """
        model, options = self._offramp, self._options
        if self._depths:
            print(depth_table(self._depths), flush=True)
        return {
            "model_num_parameters": model.hf.num_parameters(),
            "model_dtype": model.dtype,
            "model_device": str(model.stack.device),
            "model_revision": model.identity.revision or "",
            "model_sha": model.identity.revision or "",
            "offramp": {
                "version": importlib.metadata.version("offramp"),
                "model": model.shown_name,
                "fingerprint": model.identity.fingerprint,
                "layers": model.layers,
                "policy": str(options.policy),
                "kv": options.kv,
                "heads": None if options.heads is None else options.heads.fingerprint,
                "depth": to_json(by_task(self._depths)),
            },
        }

    def _by_task(
        self, kind: str, answer: Callable[..., list[Any]], requests: Sequence[Any], disable_tqdm: bool
    ) -> list[Any]:
        """Answer the requests of one task after the other, so that each task's depth is known."""
        numbers: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            numbers.setdefault(str(request.task_name), []).append(number)
        answers: list[Any] = [None] * len(requests)
        for task, of_task in numbers.items():
            self._now = (task, kind)
            self._count(requests=len(of_task))
            answered = answer([requests[number] for number in of_task], disable_tqdm=disable_tqdm)
            for number, reply in zip(of_task, answered, strict=True):
                answers[number] = reply
        return answers

    def _loglikelihood_tokens(
        self, requests: Sequence[Encoded], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        if not self._exits:
            self._count_full(*(len(continuation) for _, _, continuation in requests))
            answers: list[tuple[float, bool]] = super()._loglikelihood_tokens(
                requests, disable_tqdm=disable_tqdm, override_bs=override_bs
            )
            return answers
        quiet = disable_tqdm or all(texts is None for texts, _, _ in requests)
        return [
            self._scored(request)
            for request in tqdm(requests, disable=quiet, desc="Running loglikelihood requests")
        ]

    def _scored(self, request: Encoded) -> tuple[float, bool]:
        """One request, cut on the left as `hf` cuts it: its last token is never fed.

        Raises InputError for a continuation that leaves no room for a token of the context.
        """
        texts, context, continuation = request
        if len(continuation) > self.max_length:
            raise InputError(
                f"a continuation of {len(continuation):,} tokens does not fit into {self.max_length:,}",
                where="max_length",
                fix="give a larger max_length, or leave out the task with such long answers",
            )
        kept = (context + continuation)[-(self.max_length + 1) :]
        scored = self._scorer.score(kept[: -len(continuation)], continuation)
        tokens = len(continuation)
        self._count(
            tokens=tokens,
            exits=int(scored.exits.sum()),
            fed=tokens,
            layers_executed=scored.layers_executed,
        )
        answer = (scored.logprob, scored.chosen.tolist() == continuation)
        if texts is not None:
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answer

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation: Any) -> Tensor:
        """Prompt and new tokens, int64 [1, length], by transformers' `generate` with the policy inside."""
        generate = functools.partial(
            super()._model_generate, context=context, max_length=max_length, stop=stop, **generation
        )
        if not self._exits:
            ids: Tensor = generate()
            new = ids.shape[1] - context.shape[1]
            self._count(**_at_full_depth(self._offramp.layers, new, new - 1))
            return ids
        early = EarlyExit(self._options, engine=self._engine)
        with explain_out_of_memory(self._offramp, context, max_length - context.shape[1]):
            ids = generate(custom_generate=early)
        assert early.last is not None  # transformers calls what it is given
        row = early.last.rows[0]
        if row.problem is not None:
            raise OfframpError(
                f"the generation stopped: {row.problem}",
                where=self._offramp.shown_name,
                fix="load the model in float32, or take the text out",
            )
        self._count(
            tokens=len(row.tokens),
            exits=int(row.exits.sum()),
            fed=len(row.tokens) - 1,
            layers_executed=row.layers_executed - row.prompt_layers,
        )
        return ids

    def _count_full(self, *continuations: int) -> None:
        """Tokens that were scored by the full model."""
        for tokens in continuations:
            self._count(**_at_full_depth(self._offramp.layers, tokens, tokens))

    def _count(self, **sums: int) -> None:
        depth = self._depths.get(self._now, Depth(self._offramp.layers))
        self._depths[self._now] = depth.plus(**sums)


def _at_full_depth(layers: int, tokens: int, fed: int) -> dict[str, int]:
    """The sums of a `Depth` in which no layer was skipped."""
    return {"tokens": tokens, "exits": tokens * layers, "fed": fed, "layers_executed": fed * layers}
