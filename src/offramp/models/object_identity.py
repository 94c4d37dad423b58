"""Who a model object in memory is: fingerprints, of its weights taken when asked for."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from offramp.commands import IN_MEMORY
from offramp.files import canonical_json, sha256_of_text
from offramp.models.identity import VOLATILE_CONFIG_KEYS, ModelIdentity
from offramp.models.tensors import stored_tensors

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
    """SHA-256 over names, dtypes, shapes and the bytes of all tensors; several are hashed at a time."""
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, tensors.values()))
    described = [
        [name, str(tensor.dtype), list(tensor.shape), digest]
        for (name, tensor), digest in zip(tensors.items(), digests, strict=True)
    ]
    return sha256_of_text(canonical_json(described))


def _digest(tensor: Tensor) -> str:
    held = tensor.detach().contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(held.cpu().numpy().data).hexdigest()


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
