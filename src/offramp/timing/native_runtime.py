"""A native runtime beside PyTorch: llama.cpp decodes the .gguf file that a model was made from."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from offramp.decoding.generation.prompts import PromptBatch
from offramp.errors import InputError, ModelError
from offramp.models.model import Model
from offramp.timing.accelerations import LLAMA_CPP
from offramp.timing.decoder import DecodedBatch, Setting

QUIET = -1
"""The level at which llama.cpp says nothing of what it does."""


class NativeRuntime:
    """llama.cpp, in this process, with a model's own .gguf file: greedy, one prompt at a time.

    Its weights are the packed ones, and so are its products: its output is not exactly that of the dense
    model, and is judged like that of anything else which may differ.
    """

    def __init__(self, model: Model, context: int) -> None:
        """Load the file, with as many threads as torch computes with. context: positions that fit.

        Raises what `packed_file` raises; InputError without the package; ModelError for a file that llama.cpp
        does not load.
        """
        file = packed_file(model)
        xllamacpp = _package()
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_ctx, parameters.n_parallel = context, 1
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = torch.get_num_threads()
        parameters.verbosity = QUIET
        self._file = file
        self._tokens: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}
        # Its server always listens, and we call it in this process: at a socket that is gone once it is up.
        parameters.api_keys = [secrets.token_hex()]
        try:
            with tempfile.TemporaryDirectory(prefix="offramp-") as folder:
                parameters.hostnames = [f"{folder}/llama.sock"]
                self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise ModelError(
                f"llama.cpp does not load the model: {error}",
                where=str(file),
                fix=f"leave {LLAMA_CPP} out, or install a newer xllamacpp",
            ) from error

    @classmethod
    def of(cls, setting: Setting) -> NativeRuntime:
        """For the prompts of a setting and their new tokens. Raises as when it is made, and for a batch."""
        if setting.batch > 1:
            raise InputError(
                f"{LLAMA_CPP} is timed one sequence at a time", where="--batch", fix="leave --batch out"
            )
        longest = max(prompts.ids.shape[1] for prompts in setting.prompts)
        return cls(setting.model, longest + setting.new_tokens + 1)

    def decode(self, prompts: PromptBatch, new_tokens: int) -> DecodedBatch:
        """So many new tokens after a prompt, whatever end tokens come, by our clock.

        The first one comes with the prompt: of that llama.cpp itself says how long it took. Raises ModelError
        if it gives fewer.
        """
        ids = tuple(prompts.ids[0][prompts.mask[0].bool()].tolist())
        started = time.perf_counter()
        answer = self._complete(ids, new_tokens)
        seconds = time.perf_counter() - started
        first = answer["timings"]["prompt_ms"] / 1000.0
        return DecodedBatch((self._tokens_of(ids, new_tokens, answer),), first, seconds - first)

    def forced_agreement(self, prompt: Sequence[int], answer: Sequence[int]) -> float:
        """Share of an answer's tokens that it chooses too when it is given all of the answer before them."""
        right = [
            _ids(self._complete((*prompt, *answer[:place]), 1, logprobs=1)) == (token,)
            for place, token in enumerate(answer)
        ]
        return sum(right) / len(right)

    def _tokens_of(self, ids: tuple[int, ...], new_tokens: int, answer: Mapping[str, Any]) -> tuple[int, ...]:
        """Token ids of an answer, which are only told with probabilities, which take their time: untimed."""
        if (ids, new_tokens) not in self._tokens:
            told = self._complete(ids, new_tokens, logprobs=1)
            if _text(told) != _text(answer):
                raise ModelError(
                    "llama.cpp answered the same prompt in two ways",
                    where=str(self._file),
                    fix=f"leave {LLAMA_CPP} out, and report it with the model and the prompt",
                )
            self._tokens[ids, new_tokens] = _ids(told)
        return self._tokens[ids, new_tokens]

    def _complete(self, ids: Sequence[int], new_tokens: int, **further: Any) -> Mapping[str, Any]:
        request = {
            "prompt": list(ids),
            "max_tokens": new_tokens,
            "temperature": 0.0,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        answer: Mapping[str, Any] = self._server.handle_completions(request | further)
        given = answer.get("timings", {}).get("predicted_n")
        if given != new_tokens:
            why = answer.get("error", {}).get("message", f"it gave {given} new tokens of {new_tokens}")
            raise ModelError(
                f"llama.cpp did not answer: {why}", where=str(self._file), fix=f"leave {LLAMA_CPP} out"
            )
        return answer


def packed_file(model: Model) -> Path:
    """The .gguf file that a model is. Raises InputError for a model that is not just that, on a processor."""
    packed = None if model.source is None else model.source.packed
    if packed is None or model.transforms:
        what = "was changed after loading" if packed else "comes from no .gguf file"
        raise InputError(
            f"{LLAMA_CPP} has nothing to decode: {model.shown_name} {what}",
            where=LLAMA_CPP,
            fix="give a .gguf file as the model, or leave it out",
        )
    if model.stack.device.type != "cpu":
        raise InputError(
            f"{LLAMA_CPP} decodes on the processor here, {model.shown_name} on {model.stack.device}",
            where=LLAMA_CPP,
            fix="add --device cpu, or leave it out",
        )
    return packed


def _package() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise InputError(
            f"{LLAMA_CPP} needs the package xllamacpp", where=LLAMA_CPP, fix="pip install 'offramp[native]'"
        ) from error
    return xllamacpp


def _text(answer: Mapping[str, Any]) -> str:
    return str(answer["choices"][0]["text"])


def _ids(answer: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(token["id"]) for token in answer["choices"][0]["logprobs"]["content"])
