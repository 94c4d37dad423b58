"""From text to token ids: which beginning-of-sequence token goes in front, and how a chat turn is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from jinja2 import TemplateError

from offramp.errors import ModelError

# Model types whose output is garbage without BOS, whatever their tokenizer's setting says.
FAMILIES_THAT_NEED_BOS = ("gemma", "recurrent_gemma", "vaultgemma")

PLAIN_CHAT_TEMPLATE = "User: {prompt}\nAssistant:"


@dataclass(frozen=True)
class BosPolicy:
    """What `encode` puts in front of a text.

    source: "tokenizer" (the tokenizer adds the token by itself), "forced" (the family needs it and the
    tokenizer does not add it) or "none". token_id: the token, None for "none".
    """

    source: Literal["tokenizer", "forced", "none"]
    token_id: int | None = None


def find_bos_policy(tokenizer: Any, model_type: str) -> BosPolicy:
    """Look at what the tokenizer does to a short text, and force BOS for the families that need it."""
    bos = tokenizer.bos_token_id
    ids = tokenizer("a", verbose=False)["input_ids"]
    without = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
    if list(ids[:1]) != list(without[:1]):
        return BosPolicy("tokenizer", int(ids[0]))
    if bos is not None and model_type.startswith(FAMILIES_THAT_NEED_BOS):
        return BosPolicy("forced", int(bos))
    return BosPolicy("none")


def encode_text(tokenizer: Any, policy: BosPolicy, text: str) -> list[int]:
    """Token ids of a text as `tokenizer(text)` gives them, with BOS in front if the policy forces it."""
    ids = [int(token) for token in tokenizer(text, verbose=False)["input_ids"]]
    if policy.source == "forced" and policy.token_id is not None and ids[:1] != [policy.token_id]:
        return [policy.token_id, *ids]
    return ids


def encode_chat(tokenizer: Any, policy: BosPolicy, prompt: str) -> list[int]:
    """Token ids of one user turn, ready for the assistant's answer.

    With the tokenizer's chat template and its generation prompt; without a template, as a plain turn
    ("User: ... Assistant:").

    Raises ModelError if the template cannot write one user turn.
    """
    if tokenizer.chat_template is None:
        return encode_text(tokenizer, policy, PLAIN_CHAT_TEMPLATE.format(prompt=prompt))
    messages = [{"role": "user", "content": prompt}]
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except (TemplateError, TypeError, ValueError) as error:
        raise ModelError(
            f"the model's chat template cannot write a user's turn: {type(error).__name__}: {error}",
            where=str(tokenizer.name_or_path),
            fix="trace a workload of given texts, or repair the template in the tokenizer's files",
        ) from error
    ids = [int(token) for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    if policy.source == "forced" and policy.token_id is not None and ids[:1] != [policy.token_id]:
        return [policy.token_id, *ids]
    return ids


def find_eos_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every token that ends an answer: the generation config's, the config's and the tokenizer's.

    Raises ModelError for an end token that is no number.
    """
    stated: list[Any] = [
        getattr(getattr(model, "generation_config", None), "eos_token_id", None),
        getattr(model.config.get_text_config(), "eos_token_id", None),
        tokenizer.eos_token_id,
    ]
    ids: set[int] = set()
    for value in stated:
        tokens: list[Any] = [] if value is None else [value] if isinstance(value, (int, str)) else list(value)
        if not all(isinstance(token, int) for token in tokens):
            raise ModelError(
                f"the end token {value!r} of the model is not a token id",
                where="eos_token_id in config.json or generation_config.json",
                fix="write the token's number there",
            )
        ids.update(tokens)
    return tuple(sorted(ids))
