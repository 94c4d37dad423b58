"""What `generate` is given: prompts as token ids, padded on the left, and options of sampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import InputError
from offramp.kit.arguments import settled
from offramp.kit.given import Given, GivenIds, given_of
from offramp.kit.numbers import Count
from offramp.kit.rules import Temperature, TopP
from offramp.models.checkpoint import unfit_source
from offramp.models.devices import float64_device
from offramp.models.model import Model
from offramp.models.shape import require_context
from offramp.models.stack import ExitStack
from offramp.tracing.recorders import PROMPT_TOKENS

Prompt = str | Sequence[Any] | Tensor
"""One text, several texts, the ids of one prompt or of several, or int64 [batch, length]."""


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are decoded side by side."""

    ids: Tensor
    mask: Tensor
    """int64 [batch, length], mask 0 for padding on the left."""
    single: bool = False
    """One prompt, not a list."""
    given: tuple[Given | None, ...] = ()
    """By row, what the model is given beside the ids (`Model.given`)."""

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[int]], pad: int, device: torch.device | str, *, single: bool = False
    ) -> PromptBatch:
        """Rows of token ids, filled up on the left."""
        longest = max(map(len, rows))
        ids = [[*[pad] * (longest - len(row)), *row] for row in rows]
        mask = [[*[0] * (longest - len(row)), *[1] * len(row)] for row in rows]
        given = tuple(map(given_of, rows))
        return cls(torch.tensor(ids, device=device), torch.tensor(mask, device=device), single, given)

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return self.ids.shape[1]


def prompt_batch(
    model: Model, prompt: Prompt, *, chat: bool, given: Sequence[Given] = (), single: bool = False
) -> PromptBatch:
    """Prompts encoded and padded with the model's safe padding token.

    given: what an encoder-decoder reads, texts or sounds, or pictures with what is asked of them; the prompt
    then is the empty text, and what stands in front of the answer is put there. single: it is one, not a list
    of them.

    Raises InputError for an empty prompt, for ids that are none of the model's, or for anything else.
    """
    rows, single = (_sources(model, prompt, given), single) if given else _rows(model, prompt, chat)
    if not rows:
        raise InputError("there is no prompt", where="prompt=", fix="give a text or token ids")
    for place, row in enumerate(rows):
        if not row:
            where = "prompt=" if single else f"prompt= [{place}]"
            raise InputError(
                "the prompt is empty: it has no tokens", where=where, fix="give at least one token"
            )
        check_ids(row, model.shape.vocabulary_size, "prompt=")
    return PromptBatch.of(rows, pad_token(model), model.hf.device, single=single)


def _sources(model: Model, prompt: Prompt, given: Sequence[Given]) -> list[Sequence[int]]:
    """A row for each source."""
    kind = given[0].kind
    option = {"text": "source", "audio": "audio", "image": "image"}[kind]
    where = f"{option}= (--{option})"
    if model.reads != kind:
        raise unfit_source(model.shown_name, reads=model.reads, given=kind, where=where)
    if not isinstance(prompt, str) or prompt:
        raise InputError("an answer to a source begins with no prompt", where=where, fix="leave prompt= out")
    return [GivenIds.of(model.front(source), source) for source in given]


def pad_token(model: Model) -> int:
    """The token that fills up rows: the tokenizer's, else an end token, else 0; masks hide it everywhere."""
    stated = model.tokenizer.pad_token_id
    if stated is not None and 0 <= stated < model.shape.vocabulary_size:
        return int(stated)
    return model.eos_token_ids[0] if model.eos_token_ids else 0


def check_ids(ids: Sequence[int], vocabulary: int, where: str) -> None:
    """Raise InputError for a token id that the model does not have."""
    beyond = [token for token in ids if not 0 <= token < vocabulary]
    if beyond:
        raise InputError(
            f"the token {beyond[0]} is none of the model's",
            where=where,
            fix=f"give ids from 0 to {vocabulary - 1}",
        )


def check_context(model: Model, longest: int, new_tokens: int) -> None:
    """Raise InputError for prompts that leave no room for the new tokens within the model's context."""
    context = model.context_length or longest + new_tokens
    room = context - new_tokens
    ways = [f"shorten the prompt to {room} tokens"] if room > 0 else []
    if longest < context:
        ways.append(f"lower max_new_tokens to {context - longest}")
    fix = ", or ".join(ways) or "shorten the prompt, and lower max_new_tokens"
    require_context(context, longest, new_tokens, f"prompt= for {model.name}", fix)


def token_rows(value: Any, what: str) -> list[list[int]]:
    """Rows of token ids from a tensor, a list of ids or a list of rows. Raises InputError for others."""
    value = _listed(value, what)
    rows = [_listed(row, what) for row in value] if _nested(value) else [value]
    for row in rows:
        if not isinstance(row, Sequence) or isinstance(row, str) or not all(_is_id(token) for token in row):
            raise InputError(
                f"{what} holds something that is no token id", where=what, fix="give whole numbers"
            )
    return [list(map(int, row)) for row in rows]


def _listed(value: Any, where: str) -> Any:
    """A tensor or an array as a list; anything else as it is. Raises InputError for one without content."""
    if getattr(value, "is_meta", False):
        what = "a tensor on the meta device holds no token ids"
        raise InputError(what, where=where, fix="give one that has content")
    return value.tolist() if hasattr(value, "tolist") else value


def _is_id(token: Any) -> bool:
    return not isinstance(token, bool) and hasattr(token, "__index__")


def _rows(model: Model, prompt: Prompt, chat: bool) -> tuple[Sequence[Sequence[int]], bool]:
    encode = model.encode_chat if chat else model.encode
    if isinstance(prompt, str):
        return [encode(prompt)], True
    if isinstance(prompt, Sequence) and prompt and all(isinstance(item, str) for item in prompt):
        return [encode(item) for item in prompt], False
    if chat:
        raise InputError(
            "token ids go through no chat template", where="chat=", fix="give a text, or leave chat out"
        )
    if not isinstance(prompt, (Sequence, Tensor, np.ndarray)):
        raise InputError(
            f"a prompt cannot be a {type(prompt).__name__}", where="prompt=", fix="give a text or token ids"
        )
    raw: Any = prompt
    if isinstance(raw, np.ndarray):
        prompt = torch.as_tensor(raw, device="cpu")
    if isinstance(prompt, Tensor) and (prompt.is_floating_point() or prompt.dim() not in (1, 2)):
        raise InputError(
            f"a prompt cannot be a {prompt.dtype} tensor of shape {list(prompt.shape)}",
            where="prompt=",
            fix="give int64 [batch, length]",
        )
    rows = token_rows(prompt, "prompt=")
    return rows, len(rows) == 1 and (isinstance(prompt, Tensor) or not _nested(prompt))


def _nested(prompt: Sequence[Any]) -> bool:
    """Whether there are rows in it. An array without an axis is a number."""
    return any(getattr(item, "ndim", isinstance(item, list | tuple | range)) for item in prompt)


def prompt_entropy(
    stack: ExitStack, hidden: Tensor, mask: Tensor | None, names: tuple[str, ...]
) -> dict[str, NDArray[np.float64]]:
    """Mean entropy of the full model over each prompt's last tokens, nats: float64 [batch], by fact name.

    hidden: states after layer L [batch, positions, hidden]. See `offramp.tracing.recorders`.
    """
    last = hidden[:, -PROMPT_TOKENS:]
    log_probabilities = stack.readout(last).float().log_softmax(-1)
    # A token that is ruled out adds 0 log 0 = 0.
    log_probabilities = log_probabilities.clamp(min=torch.finfo(torch.float32).min)
    wide = float64_device(hidden.device)
    entropy = (-log_probabilities.exp() * log_probabilities).sum(-1).to(wide).double()
    real = torch.ones_like(entropy) if mask is None else mask[:, -PROMPT_TOKENS:].to(wide).double()
    mean = ((entropy * real).sum(1) / real.sum(1)).cpu().numpy()
    return dict.fromkeys(names, mean)


HINTS: Mapping[str, tuple[Any, str]] = {
    "temperature": (Temperature | None, "float | None"),
    "top_k": (Count | None, "int | None"),
    "top_p": (TopP | None, "float | None"),
    "stop_strings": (str | Sequence[str] | None, "str | Sequence[str] | None"),
    "eos_token_id": (int | Sequence[int] | None, "int | Sequence[int] | None"),
    "logits_processor": (Sequence[Callable[..., Any]] | None, "LogitsProcessorList | None"),
    "stopping_criteria": (Sequence[Callable[..., Any]] | None, "StoppingCriteriaList | None"),
}
"""By option, its type, and the same in words."""


def check_sampling(sampling: Mapping[str, Any]) -> None:
    """Raise InputError for an option of another type, and a number out of its range."""
    for name in HINTS.keys() & sampling.keys():
        hint, said = HINTS[name]
        settled(name, sampling[name], hint, said)
