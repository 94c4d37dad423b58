"""`wrap`: a model object that one holds already, checked as a loaded one is; and who such an object is."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin

from offramp.commands import IN_MEMORY
from offramp.errors import InputError, ModelError
from offramp.files import canonical_json, sha256_of_text
from offramp.models.calls import first_tensor
from offramp.models.checkpoint import LAYER_COUNT_KEYS, LAYERS_PER_STORED, source_read
from offramp.models.conditioned import SourceReader
from offramp.models.discovery import find_stack
from offramp.models.identity import VOLATILE_CONFIG_KEYS, ModelIdentity
from offramp.models.loading import check_extractor, describe_model, require_in_memory
from offramp.models.measuring import measure_shape
from offramp.models.model import Model, NoTokenizer, alone_with, evaluating, find_eos_token_ids
from offramp.models.pictured import as_causal
from offramp.models.shape import DTYPES
from offramp.models.source import BUNDLED
from offramp.models.stack import ExitStack
from offramp.models.tensors import check_finite, stored_tensors


def wrap(hf_model: Any, tokenizer: Any = None, *, name: str | None = None) -> Model:
    """A model object as offramp takes one: nothing is copied, its mode and gradients stay as they are.

    hf_model: a causal language model of transformers, however it came about: built by hand, fine-tuned a
    moment ago, with adapters (PEFT), quantised, compiled, wrapped for several processes, or spread over
    devices. The exits are found, and the readout is checked, on the object. tokenizer: None for a model that
    is given token ids (see `offramp.workload_of`); of a speech or an image-text model its processor. name: by
    which results call it; by default what it was loaded from, or its class, and a mark of its weights, so
    that a tuned copy is told from its base.

    Its weights are hashed when its identity is first asked for, as a trace does, and again only if they
    changed; what was measured of other weights is then refused. Hooks and forwards that were put on its
    modules run as they do in the model, but are no part of its identity: a warning says so.

    Raises ModelError: weights that are not in memory or not finite, layers of different dtypes, adapters that
    put tokens in front, or exits that cannot be read out exactly.

    >>> offramp.wrap(hf_model, tokenizer, name="mine")
    Model(mine, 4 layers, float32)
    """
    hf = bare(hf_model)
    require_in_memory(hf, name or origin_of(hf))
    named = name or f"{origin_of(hf)}-{weights_mark(hf)}"
    with alone_with(hf):  # what is measured has hooks of offramp
        _warn_of_foreign_code(hf, named)
    _require_sound_config(hf, named)
    check_finite(hf, named)
    maker = None
    kind = source_read(hf.config.to_dict())
    if isinstance(tokenizer, ProcessorMixin):
        maker = tokenizer if kind == "image" else getattr(tokenizer, "feature_extractor", None)
        tokenizer = tokenizer.tokenizer
    if maker is not None and kind == "audio":
        check_extractor(maker, hf.config, Path(named))
    hf = as_causal(hf, maker)
    with evaluating(hf):
        stack = find_stack(hf, name=named)
        shape = measure_shape(hf, stack)
    if tokenizer is not None and not hasattr(tokenizer, "eos_token_id"):
        raise InputError(
            f"a tokenizer cannot be a {type(tokenizer).__name__}",
            where="tokenizer=",
            fix="give transformers' own: AutoTokenizer.from_pretrained(name)",
        )
    reads = NoTokenizer() if tokenizer is None else tokenizer
    model = describe_model(
        hf,
        reads,
        stack=stack,
        shape=shape,
        name=named,
        identify=ObjectIdentity(hf, reads, find_eos_token_ids(hf, reads)),
        dtype=_dtype(stack, named),
        source=None,
    )
    return replace(model, attention=_asked_attention(hf))


DEEPEST_WRAPPING = 16
"""What may lie around a model: compiled, adapted and spread over processes are three."""


DIGEST = re.compile(r"[0-9a-f]{16,}(-[0-9a-f]+)?")
"""Names of folders that say nothing to people: of a commit of the Hub, or of a converted GGUF file."""


def origin_of(hf: Any) -> str:
    """What a transformers model was loaded from, as people call it; else its class."""
    path = Path(str(getattr(hf.config, "_name_or_path", "") or ""))
    repository = next((part for part in path.parts if part.startswith("models--")), None)
    if repository is not None:  # the Hub's cache: models--owner--name/snapshots/COMMIT
        return repository.rpartition("--")[2]
    if DIGEST.fullmatch(path.name):
        bundled = (
            model.name for model in BUNDLED.values() if model.sha256.startswith(path.name.partition("-")[0])
        )
        return next(bundled, type(hf).__name__)
    return path.name or type(hf).__name__


def bare(model: Any) -> Any:
    """The transformers model inside of what compiles it, spreads it over processes, or adapts it.

    Adapters within the layers stay where they are. Raises ModelError for what is none.
    """
    inner = model
    for _ in range(DEEPEST_WRAPPING):
        if hasattr(inner, "_orig_mod"):  # torch.compile
            inner = inner._orig_mod
        elif isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        elif hasattr(inner, "peft_config") and hasattr(inner, "get_base_model"):
            prompts = [adapter for adapter in inner.peft_config.values() if adapter.is_prompt_learning]
            if prompts:
                raise ModelError(
                    f"the adapter puts tokens or keys of its own in front ({type(prompts[0]).__name__})",
                    where=type(model).__name__,
                    fix="use an adapter within the layers (LoRA and the like), or the model without it",
                )
            inner = inner.get_base_model()
        else:
            break
    else:
        raise ModelError(
            f"a {type(model).__name__} wraps a model more than {DEEPEST_WRAPPING} times, or itself",
            where="offramp.wrap",
            fix="give the causal language model of transformers that lies inside",
        )
    if not isinstance(inner, nn.Module) or not hasattr(inner, "config"):
        raise ModelError(
            f"a model cannot be a {type(model).__name__}",
            where="offramp.wrap",
            fix="give a causal language model of transformers, or load one by name: offramp.load_model",
        )
    return inner


def _require_sound_config(hf: Any, name: str) -> None:
    """Refuse a config that holds itself, or far more layers than there are modules: caches are made of it.

    Raises ModelError.
    """
    try:
        json.dumps(hf.config.to_dict(), default=str, skipkeys=True)
    except (RecursionError, ValueError) as error:
        raise ModelError(
            "the model's config holds itself", where=name, fix="take what was added out of the config"
        ) from error
    most = LAYERS_PER_STORED * sum(1 for _ in hf.modules())
    for part in (hf.config, hf.config.get_text_config()):
        for key in LAYER_COUNT_KEYS:
            stated = getattr(part, key, None)
            if isinstance(stated, int) and stated > most:
                raise ModelError(
                    f"the model's config states {key} = {stated:,}, and the model has nothing like it",
                    where=name,
                    fix="put its number of layers into the config",
                )


LIBRARIES = ("accelerate", "bitsandbytes", "peft", "torch", "torchao", "transformers")
"""Whose hooks and forwards follow from weights and config, or change nothing that is measured."""


def _warn_of_foreign_code(hf: Any, name: str) -> None:
    """Warn of what runs in the modules and is neither weight nor config, where others have put it there."""
    found = []
    for path, module in hf.named_modules():
        code = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        code += [vars(module)["forward"]] if "forward" in vars(module) else []
        found += [
            (path or type(module).__name__, function)
            for function in code
            if _origin(function) not in LIBRARIES
        ]
    if found:
        path, first = found[0]
        what = getattr(first, "__qualname__", type(first).__qualname__)
        warnings.warn(
            f"{name} has {len(found)} forward hooks or replaced forwards on its modules, the first on {path} "
            f"({what}): they run in what is measured, and are no part of the model's identity, which is the "
            "same without them",
            UserWarning,
            stacklevel=4,
        )


def _origin(code: Any) -> str:
    """The package that a function, or the class of an object that is called, comes from."""
    for _ in range(DEEPEST_WRAPPING):  # a partial may hold itself
        code = code.func if isinstance(code, functools.partial) else code
    module = code.__module__ if hasattr(code, "__qualname__") else type(code).__module__
    return str(module).partition(".")[0]


def _asked_attention(hf: Any) -> str | None:
    """The implementation of attention if it is not the one that transformers takes by itself."""
    found: str | None = getattr(hf.config.get_text_config(), "_attn_implementation", None)
    own = "sdpa" if getattr(hf, "_supports_sdpa", False) else "eager"
    return None if found in (None, own) else found


def _dtype(stack: ExitStack, name: str) -> str:
    """The dtype of the hidden states, which adapters and scales of another one leave alone."""
    found = {str(first_tensor(output).dtype).removeprefix("torch.") for output in stack.layer_outputs}
    (dtype, *others) = sorted(found)
    if others or dtype not in DTYPES:
        raise ModelError(
            f"the layers give hidden states in {' and '.join(sorted(found))}",
            where=name,
            fix=f"bring the whole model to one dtype, of {', '.join(DTYPES)}: model.to(dtype)",
        )
    return dtype


SAMPLED = 64
"""Elements of each tensor that are looked at to see whether it was written to behind torch's back."""
MARK = 6
"""Characters of a hash of these in a name."""


@dataclass(eq=False)
class ObjectIdentity:
    """The identity of a model object; called again, the weights are hashed only if they changed.

    A change is seen by torch's counter of writes, by where the tensor lies, and by a few of its elements.
    """

    hf: Any
    tokenizer: Any
    ends: tuple[int, ...]
    """Tokens that end an answer. The rest of the generation config is no part of who a model is: it is set
    otherwise for a while wherever decoding is timed."""
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
    adapters = {name: adapter.to_dict() for name, adapter in (getattr(hf, "peft_config", None) or {}).items()}
    used = ("active_adapters", "scaling", "merged_adapters")
    active = [
        [str(getattr(module, name, "")) for name in used] for module in hf.modules() if _is_adapted(module)
    ]
    disabled = [bool(module.disable_adapters) for module in hf.modules() if _is_adapted(module)]
    described: list[Any] = [config, list(ends), adapters, active, disabled]
    maker = hf.maker if isinstance(hf, SourceReader) else None
    if maker is not None:
        described += [maker.to_dict(), getattr(maker, "chat_template", None)]
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
