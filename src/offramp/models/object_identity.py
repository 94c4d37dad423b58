"""Who a model object in memory is: fingerprints, of its weights taken on their own device when asked for.

The hash of a chunk is multilinear: the sum over its 64-bit words of word x key, modulo 2^64, with odd keys
that depend on the place (Carter and Wegman 1979, in the form of Dietzfelbinger 1996), twice. A change of one
word always changes it; other changes are missed with a chance of about 2^-64. It keeps accidents apart, not
forgeries: the files of a checkpoint have SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from offramp.commands import IN_MEMORY
from offramp.files import canonical_json, sha256_of_text
from offramp.models.identity import VOLATILE_CONFIG_KEYS, ModelIdentity
from offramp.models.tensors import stored_tensors

CHUNK_WORDS = 1 << 21
"""64-bit words hashed together: 16 MiB, and two tables of keys of that size."""

SAMPLED = 64
"""Elements of each tensor that are looked at to see whether it was written to behind torch's back."""
MARK = 6
"""Characters of a hash of these in a name."""


@dataclass(eq=False)
class ObjectIdentity:
    """The identity of a model object; called again, the weights are hashed only if they changed.

    ends: tokens that end an answer. The rest of the generation config is no part of who a model is: it is set
    otherwise for a while wherever decoding is timed.

    A change is seen by torch's counter of writes, by where the tensor lies, and by a few of its elements.
    """

    hf: Any
    tokenizer: Any
    ends: tuple[int, ...]
    _seen: tuple[Any, ...] = ()
    _known: ModelIdentity | None = field(default=None, repr=False)

    def __call__(self) -> ModelIdentity:
        """Fingerprints of weights, config and tokenizer."""
        tensors = _tensors(self.hf)
        config = _config(self.hf, self.ends)
        seen = (tuple(map(_state, tensors.values())), _samples(tensors), config, _settings(self.tokenizer))
        if self._known is None or seen != self._seen:
            self._seen = seen
            self._known = ModelIdentity(
                weights=fingerprint_of(tensors),
                config=sha256_of_text(config),
                tokenizer=sha256_of_text(_tokenizer(self.tokenizer)),
                source=IN_MEMORY,
                licence=None,
            )
        return self._known


def weights_mark(hf: Any) -> str:
    """Characters of a hash of a few elements of each tensor, which tell a tuned copy from its base."""
    return hashlib.sha256(_samples(_tensors(hf))).hexdigest()[:MARK]


def fingerprint_of(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and hashes of all tensors; one copy to the host for each device."""
    described, sums = [], []
    keys: dict[torch.device, tuple[Tensor, Tensor]] = {}
    for name, tensor in tensors.items():
        described.append([name, str(tensor.dtype), list(tensor.shape)])
        if tensor.device not in keys:
            keys[tensor.device] = _keys(tensor.device)
        sums += [_hash(words, keys[tensor.device]) for words in _words(tensor)]
    found = hashlib.sha256(canonical_json(described).encode())
    for device in keys:
        here = [one for one in sums if one.device == device]
        if here:
            found.update(torch.stack(here).cpu().numpy().tobytes())
    return found.hexdigest()


def _tensors(hf: Any) -> dict[str, Tensor]:
    """What the model's state holds, each once: parameters, stored buffers, what quantised ones consist of."""
    found: dict[str, Tensor] = {}
    known: set[tuple[int, torch.dtype, torch.Size]] = set()
    for name, value in hf.state_dict().items():
        if not isinstance(value, Tensor):
            continue
        for place, tensor in enumerate(stored_tensors(value)):
            key = (tensor.data_ptr(), tensor.dtype, tensor.shape)
            if key not in known:  # tied weights have two names
                known.add(key)
                found[f"{name}#{place}" if place else name] = tensor
    return found


def _state(tensor: Tensor) -> tuple[Any, ...]:
    version = None if tensor.is_inference() else tensor._version  # torch counts no writes to those
    return (tensor.data_ptr(), version, tensor.dtype, tensor.shape)


def _samples(tensors: dict[str, Tensor]) -> bytes:
    """Bytes of a few elements of every tensor, evenly spread; one copy to the host for each device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors.values():
        flat = tensor.detach().contiguous().view(-1)
        step = max(1, flat.numel() // SAMPLED)
        taken = flat[::step].contiguous().view(torch.uint8)
        by_device.setdefault(tensor.device, []).append(taken)
    return b"".join(torch.cat(taken).cpu().numpy().tobytes() for taken in by_device.values())


def _words(tensor: Tensor) -> Iterator[Tensor]:
    """The memory of a tensor as 64-bit words, chunk by chunk, zeros behind the last."""
    flat = tensor.detach().contiguous().view(-1).view(torch.uint8)
    size = 8 * CHUNK_WORDS
    for start in range(0, flat.numel(), size):
        part = flat[start : start + size]
        short = -part.numel() % 8
        if short:
            part = torch.nn.functional.pad(part, (0, short))
        elif part.storage_offset() % 8:
            part = part.clone()
        yield part.view(torch.int64)


def _keys(device: torch.device) -> tuple[Tensor, Tensor]:
    """Two tables of odd keys, int64 [CHUNK_WORDS] each, the same on every device (SplitMix64)."""
    place = torch.arange(1, 2 * CHUNK_WORDS + 1, device=device, dtype=torch.int64)
    mixed = place * -7046029254386353131
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        mixed = (mixed ^ _shifted(mixed, shift)) * factor
    odd = (mixed ^ _shifted(mixed, 31)) | 1
    return odd[:CHUNK_WORDS], odd[CHUNK_WORDS:]


def _shifted(values: Tensor, places: int) -> Tensor:
    """Shifted to the right with zeros coming in: torch has no unsigned 64-bit arithmetic."""
    return (values >> places) & ((1 << (64 - places)) - 1)


def _hash(words: Tensor, keys: tuple[Tensor, Tensor]) -> Tensor:
    """Two sums modulo 2^64: int64 [2]."""
    return torch.stack([(words * key[: len(words)]).sum() for key in keys])


def _config(hf: Any, ends: tuple[int, ...]) -> str:
    """The config, end tokens and, of adapters, their settings and which are in use."""
    config = {key: value for key, value in hf.config.to_dict().items() if key not in VOLATILE_CONFIG_KEYS}
    adapters = {name: one.to_dict() for name, one in (getattr(hf, "peft_config", None) or {}).items()}
    used = ("active_adapters", "scaling", "merged_adapters")
    active = [
        [str(getattr(module, name, "")) for name in used] for module in hf.modules() if _is_adapted(module)
    ]
    disabled = [bool(module.disable_adapters) for module in hf.modules() if _is_adapted(module)]
    described = [config, list(ends), adapters, active, disabled]
    return canonical_json(_plain(described))


def _is_adapted(module: Any) -> bool:
    return hasattr(module, "disable_adapters") and hasattr(module, "base_layer")


def _plain(value: Any) -> Any:
    """Only what JSON knows; anything else as its text, sets in order."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items() if key not in VOLATILE_CONFIG_KEYS}
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _settings(tokenizer: Any) -> tuple[Any, ...]:
    """What of a tokenizer is changed now and then, and quickly looked at."""
    size = len(tokenizer) if hasattr(tokenizer, "__len__") else None
    return (size, tokenizer.chat_template, tokenizer.bos_token_id, tokenizer.eos_token_id)


def _tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        said = backend.to_str()
    else:
        vocabulary: dict[str, int] = getattr(tokenizer, "get_vocab", dict)()
        said = canonical_json(sorted(vocabulary.items()))
    return canonical_json([said, *_settings(tokenizer)])
