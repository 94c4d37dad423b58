"""Arguments of transformers' `generate`: what early exit can honour, what it must refuse, and sampling."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from offramp.errors import InputError

SAMPLES = ("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
"""Options that only mean something for sampling; giving one asks for it."""


@dataclass(frozen=True)
class Range:
    """Numbers that an option takes. words: the same for people."""

    number: type
    within: Callable[[Any], bool]
    words: str

    def holds(self, value: Any) -> bool:
        """Whether a value is such a number, and within."""
        return isinstance(value, self.number) and not isinstance(value, bool) and self.within(value)


RANGES: Mapping[str, Range] = {
    "temperature": Range(Real, lambda value: 1e-4 <= value < 1e6, "above 0, 0.0001 at least"),
    "top_k": Range(Integral, lambda value: value >= 1, "1 or more"),
    "top_p": Range(Real, lambda value: 0 < value <= 1, "above 0, 1 at most"),
}


def check_sampling(sampling: Mapping[str, Any]) -> None:
    """Raise InputError for a number out of its range; transformers takes some of them silently."""
    for name, range_ in RANGES.items():
        value = sampling.get(name)
        if value is not None and not range_.holds(value):
            raise InputError(
                f"{name} cannot be {value!r}", where=f"{name}=", fix=f"give a number {range_.words}"
            )


KEPT_BACK = ("streamer", "assistant_model")
"""Arguments of transformers' `generate` that it does not hand to a custom loop."""


def given_to_generate() -> dict[str, Any]:
    """What transformers' `generate` was given but keeps from a custom loop, by KEPT_BACK.

    Empty if the loop was called by anything else. Warns if a transformers of another version hides them.
    """
    # Two frames up: the custom loop's caller. transformers 5.24 passes a callable only those arguments that
    # its own loop has not: neither of these.
    caller = sys._getframe(2)
    if not caller.f_globals.get("__name__", "").startswith("transformers."):
        return {}
    hidden = [name for name in KEPT_BACK if name not in caller.f_locals]
    if hidden:
        warnings.warn(
            f"this version of transformers does not tell whether {' or '.join(hidden)} was given to "
            "generate(): it is ignored; give a streamer to offramp.generate(streamer=...)",
            RuntimeWarning,
            stacklevel=4,
        )
    return {name: caller.f_locals.get(name) for name in KEPT_BACK}


def refuse_arguments(
    input_ids: Tensor,
    generation_config: Any,
    logits_processor: Any,
    given: dict[str, Any],
    model_kwargs: dict[str, Any],
    synced_gpus: bool,
) -> None:
    """Raise InputError for arguments of transformers' `generate` that early exit cannot honour."""
    from transformers import UnbatchedClassifierFreeGuidanceLogitsProcessor
    from transformers.generation.configuration_utils import GenerationMode

    config, cache = generation_config, model_kwargs.get("cache")
    mode = config.get_generation_mode(given.get("assistant_model"))
    wanted = {
        f"{mode.value.replace('_', ' ')}": mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE),
        "an assistant model": given.get("assistant_model") is not None,
        "inputs_embeds": input_ids.shape[1] == 0 or "inputs_embeds" in model_kwargs,
        "use_cache=False": config.use_cache is False,
        "a cache implementation": config.cache_implementation is not None,
        "a cache of one's own": getattr(cache, "_is_user_defined", False),
        "output_attentions": config.output_attentions,
        "output_hidden_states": config.output_hidden_states,
        "output_logits": config.output_logits,
        "negative prompts and guidance": any(
            isinstance(process, UnbatchedClassifierFreeGuidanceLogitsProcessor)
            for process in logits_processor
        ),
        "several processes in step": synced_gpus,
        **{f"the argument {name}": True for name in model_kwargs if not _is_honoured(name, model_kwargs)},
    }
    for what, is_wanted in wanted.items():
        if is_wanted:
            raise InputError(
                f"early exit cannot honour {what}",
                where="model.generate(custom_generate=...)",
                fix="leave it out, or generate without custom_generate",
            )
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is not None and not torch.equal(positions, _positions(input_ids, mask)):
        raise InputError(
            "early exit cannot honour position_ids of one's own",
            where="model.generate(custom_generate=...)",
            fix="leave them out; positions follow from attention_mask",
        )


_HONOURED = frozenset({"attention_mask", "position_ids", "cache", "use_cache", "logits_to_keep"})


def _is_honoured(name: str, model_kwargs: dict[str, Any]) -> bool:
    """Whether an argument makes no difference or one that is made; tokenizers add types that are all 0."""
    return name in _HONOURED or (name == "token_type_ids" and not model_kwargs[name].any())


def _positions(ids: Tensor, mask: Tensor | None) -> Tensor:
    counted = torch.ones_like(ids) if mask is None else mask
    return (counted.cumsum(1) - 1).clamp(min=0)
