"""The baselines by rule: what has to be timed here before early exit may be said to pay."""

from __future__ import annotations

from collections.abc import Iterable

from offramp.errors import InputError
from offramp.models.devices import CPU
from offramp.models.transforms.quantise import Int4, Int8, is_quantisation
from offramp.models.transforms.transform import parse_transform, why_unfit
from offramp.timing.accelerations import JOINED, SHORT_LIST

QUANTISATIONS = (Int4.name, Int8.name)

BY_RULE = tuple(text for bits in QUANTISATIONS for text in (bits, f"{bits}{JOINED}{SHORT_LIST}"))
"""Beside the plain decoders, the head cut to a short list and prompt lookup, which always take part."""


def by_rule(device: str | None, transforms: Iterable[str], model_type: str | None) -> tuple[str, ...]:
    """The combinations that take part on a model: its weights in few bits, alone and with a short list.

    None on an accelerator, of a model that is quantised already, of a family that cannot be, and of bits for
    which this machine has no kernel. device: its type, None for the processor. model_type: of the config.
    """
    if device not in (None, CPU) or any(map(is_quantisation, transforms)):
        return ()
    return tuple(text for text in BY_RULE if _is_able(text.partition(JOINED)[0], model_type))


def _is_able(text: str, model_type: str | None) -> bool:
    transform = parse_transform(text)
    if why_unfit(transform, model_type) is not None:
        return False
    try:
        transform.check()
    except InputError:
        return False
    return True
