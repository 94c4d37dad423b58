"""llama.cpp as a contender: what it is given, how it is timed, what it decodes; refusals."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from generation_cases import tiny_llama

from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, ModelError
from offramp.models.model import Model
from offramp.timing.bench import settle
from offramp.timing.combine import combine
from offramp.timing.decoder import Setting
from offramp.timing.native_runtime import NativeRuntime, packed_file
from offramp.timing.stopping import TimeLimits

PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14]]


class FakeServer:
    """Says 3 times the last token, plus one for each token: by what it was asked, in 1 + 2 ms a new token."""

    def __init__(self, parameters: Any, answers: Mapping[str, Any] | None = None) -> None:
        self.parameters, self.asked = parameters, list[Mapping[str, Any]]()
        self.answers = dict(answers or {})

    def handle_completions(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        self.asked.append(request)
        count = request["max_tokens"]
        time.sleep(0.001 + 0.002 * count)
        said = [3 * request["prompt"][-1] + 1 + place for place in range(count)]
        choice: dict[str, Any] = {"text": " ".join(map(str, said))}
        if request.get("logprobs"):
            choice["logprobs"] = {"content": [{"id": token} for token in said]}
        return {"choices": [choice], "timings": {"prompt_ms": 1.0, "predicted_n": count}} | self.answers


@pytest.fixture
def packed(tmp_path: Path) -> Model:
    """A tiny model that says of itself that it came from a .gguf file."""
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    model = tiny_llama()
    assert model.source is not None
    return replace(model, source=replace(model.source, packed=file))


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> list[FakeServer]:
    """Every server that was started."""
    started: list[FakeServer] = []

    def start(parameters: Any) -> FakeServer:
        started.append(FakeServer(parameters))
        return started[-1]

    def parameters() -> Any:
        return SimpleNamespace(
            model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace()
        )

    monkeypatch.setitem(
        sys.modules,
        "xllamacpp",
        SimpleNamespace(Server=start, CommonParams=parameters),  # type: ignore[arg-type]
    )
    return started


def setting_of(model: Model, prompts: Sequence[Sequence[int]] = PROMPTS, batch: int = 1) -> Setting:
    return settle(model, [DecodingOptions.read(None, new_tokens=4)], prompts=prompts, batch=batch)


def test_it_decodes_whole_prompts_greedily_with_torchs_threads(
    packed: Model, servers: list[FakeServer]
) -> None:
    setting = setting_of(packed)
    runtime = NativeRuntime.of(setting)
    decoded = runtime.decode(setting.prompts[1], 4)
    (server,) = servers
    assert server.parameters.model.path == str(packed.source.packed)  # type: ignore[union-attr]
    assert server.parameters.cpuparams.n_threads == torch.get_num_threads()
    assert server.parameters.n_ctx >= 6 + 4
    assert decoded.tokens == ((43, 44, 45, 46),)
    assert decoded.first_seconds == 0.001
    assert 0.008 <= decoded.seconds < 1.0
    assert [request["prompt"] for request in server.asked] == [PROMPTS[1]] * 2
    assert [request.get("logprobs") for request in server.asked] == [None, 1]
    assert all(request["temperature"] == 0.0 and request["ignore_eos"] for request in server.asked)
    assert not any(request["cache_prompt"] for request in server.asked)
    # Token ids take their time, and are asked for once.
    assert runtime.decode(setting.prompts[1], 4).tokens == decoded.tokens
    assert len(server.asked) == 3


def test_what_it_chooses_in_a_given_answers_place(packed: Model, servers: list[FakeServer]) -> None:
    runtime = NativeRuntime.of(setting_of(packed))
    # After 8 it says 25, after 25 it says 76.
    assert runtime.forced_agreement([5, 8], [25, 76, 4]) == pytest.approx(2 / 3)
    assert [request["prompt"] for request in servers[0].asked] == [[5, 8], [5, 8, 25], [5, 8, 25, 76]]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": {"message": "too long"}, "timings": {}}, "too long"),
        ({"timings": {"prompt_ms": 1.0, "predicted_n": 3}}, "3 new tokens of 4"),
    ],
)
def test_an_answer_that_is_none_is_an_error(
    answer: Mapping[str, Any], why: str, packed: Model, servers: list[FakeServer]
) -> None:
    setting = setting_of(packed)
    runtime = NativeRuntime.of(setting)
    servers[0].answers = dict(answer)
    with pytest.raises(ModelError, match=why):
        runtime.decode(setting.prompts[0], 4)


def test_two_answers_to_one_prompt_are_an_error(
    packed: Model, servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting_of(packed)
    runtime = NativeRuntime.of(setting)
    real = FakeServer.handle_completions

    def other(self: FakeServer, request: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = real(self, request)
        if request.get("logprobs"):
            answer["choices"][0]["text"] = "something else"
        return answer

    monkeypatch.setattr(FakeServer, "handle_completions", other)
    with pytest.raises(ModelError, match="in two ways"):
        runtime.decode(setting.prompts[0], 4)


def test_what_it_cannot_decode_is_refused(
    packed: Model, servers: list[FakeServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"comes from no \.gguf file"):
        packed_file(tiny_llama())
    with pytest.raises(InputError, match="was changed after loading"):
        packed_file(replace(packed, transforms=("int8",)))
    with pytest.raises(InputError, match="one sequence at a time"):
        NativeRuntime.of(setting_of(packed, batch=2))
    assert servers == []
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(InputError, match="needs the package xllamacpp") as refused:
        NativeRuntime.of(setting_of(packed))
    assert refused.value.fix == "pip install 'offramp[native]'"


def test_combined_it_takes_turns_and_is_judged(packed: Model, servers: list[FakeServer]) -> None:
    result = combine(
        packed,
        ["llama.cpp", "prompt_lookup"],
        DecodingOptions.read(None, new_tokens=4),
        prompts=[[1, 2], [3, 4]],
        limits=TimeLimits(rounds=2),
    )
    native = result.combination("llama.cpp")
    assert native is not None
    assert native.quality is not None
    assert native.quality.forced_agreement.value < 1.0
    assert len(native.contender.samples) == 4
    assert native.contender.layers_per_token is None
    assert native.contender.same_output == 0.0
    assert result.defects == ()


def test_where_it_cannot_take_part_it_is_left_out_with_the_reason() -> None:
    result = combine(
        tiny_llama(),
        ["llama.cpp"],
        DecodingOptions.read(None, new_tokens=4),
        prompts=PROMPTS,
        limits=TimeLimits(rounds=1),
    )
    native = result.combination("llama.cpp")
    assert native is not None
    assert "comes from no .gguf file" in str(native.contender.left_out)


def listening() -> set[Any]:
    """Where this process can be reached: ports, and sockets that have a name which is there."""
    there = [one for one in psutil.Process().net_connections("all") if one.status in ("LISTEN", "NONE")]
    return {one.laddr for one in there if not isinstance(one.laddr, str) or Path(one.laddr).is_socket()}


def test_nobody_else_can_ask_a_server(packed: Model, servers: list[FakeServer]) -> None:
    NativeRuntime.of(setting_of(packed))
    NativeRuntime.of(setting_of(packed))
    one, other = (server.parameters for server in servers)
    assert not Path(one.hostnames[0]).parent.exists()
    assert one.api_keys != other.api_keys


def test_the_bundled_model(smollm2: Model) -> None:
    """The same file by llama.cpp itself: most of its tokens are the dense model's."""
    pytest.importorskip("xllamacpp")
    prompt = smollm2.tokenizer("The capital of France is Paris, and the capital of Italy is")["input_ids"]
    setting = settle(smollm2, [DecodingOptions.read(None, new_tokens=12)], prompts=[prompt])
    before = listening()
    runtime = NativeRuntime.of(setting)
    assert listening() == before  # nothing but this process reaches it
    decoded = runtime.decode(setting.prompts[0], 12)
    assert len(decoded.tokens[0]) == 12
    assert decoded.seconds > 0.0
    dense = smollm2.hf.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    assert runtime.forced_agreement(prompt, dense.tolist()) >= 0.75
