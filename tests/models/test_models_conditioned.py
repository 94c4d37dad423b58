"""Encoder-decoders as causal language models of their decoder, given what the encoder read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import conditioned_table
import pytest
import torch
import transformers
from conditioned_configs import build_conditioned
from family_table import DOCUMENT

import offramp
from offramp.costs.counting import head_flops, layer_bytes, layer_flops, request_flops
from offramp.decoding.engine.build import cache_keyword
from offramp.errors import InputError, ModelError
from offramp.kit.given import Given
from offramp.kit.typed import from_json, to_json
from offramp.models import conditioned
from offramp.models.conditioned import Conditioned, probing
from offramp.models.discovery import find_stack, probe_ids
from offramp.models.measuring import measure_shape
from offramp.models.model import Model
from offramp.models.shape import ModelShape
from offramp.workloads.workload import Document
from tiny_models import SOURCE_POSITIONS, write_bart, write_t5

SHAPES = ("t5", "bart", "whisper", "t5gemma2", "moonshine_streaming")
"""A bias that layer 1 hands on; learned positions; a source that is no text; one attention to both; a decoder
that writes to its encoding."""


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return offramp.load_model(write_t5(tmp_path_factory.mktemp("models") / "t5"))


@pytest.fixture(scope="module")
def bart(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return offramp.load_model(write_bart(tmp_path_factory.mktemp("models") / "bart"))


@contextmanager
def encoded(model: Model) -> Iterator[list[Any]]:
    """What the encoder is called with within it."""
    calls: list[Any] = []
    encoder = model.hf.inner.get_encoder()
    handle = encoder.register_forward_hook(lambda module, arguments, output: calls.append(output))
    try:
        yield calls
    finally:
        handle.remove()


@pytest.mark.parametrize("family", SHAPES)
def test_every_exit_is_the_model_cut_off_there_and_every_strategy_runs(family: str) -> None:
    row = conditioned_table.check_conditioned(family)
    assert row.largest_difference <= 1e-5
    assert row.decoding == type(row.decoding)()
    text = DOCUMENT.read_text(encoding="utf-8").partition(conditioned_table.HEADING)[2]
    if f"with transformers {transformers.__version__}." not in text:
        pytest.skip("docs/families.md was made with another version of transformers")
    assert conditioned_table.line(row) in text, "run make families and read what changed"


def test_what_layer_1_hands_on_is_found_where_it_is(t5: Model, bart: Model) -> None:
    assert t5.stack.handed_on == (1, 2)
    assert bart.stack.handed_on == ()
    assert (t5.stack.readout_kind, t5.stack.largest_difference) == ("stub", 0.0)
    assert (bart.stack.readout_kind, bart.stack.largest_difference) == ("fast", 0.0)


def test_the_encoder_runs_once_a_source_and_never_in_forward(bart: Model) -> None:
    documents = [Document(name, "x", given=Given(f"the {name}")) for name in ("cat", "rain", "mat")]
    ids = torch.tensor([[0, 5, 9]] * 3)
    with encoded(bart) as calls, torch.no_grad():
        for _ in range(2):
            with bart.given(documents):
                logits = bart.hf(input_ids=ids, use_cache=False).logits
        with bart.given(documents[1:2]):
            alone = bart.hf(input_ids=ids[:1], use_cache=False).logits
    assert len(calls) == 3
    torch.testing.assert_close(logits[1:2], alone, rtol=1e-5, atol=1e-5)
    own = bart.hf.inner
    for row, document in enumerate(documents):
        source = torch.tensor([bart.tokenizer(document.given.text)["input_ids"]])  # type: ignore[union-attr]
        with torch.no_grad():
            expected = own(input_ids=source, decoder_input_ids=ids[:1], use_cache=False).logits
        torch.testing.assert_close(logits[row : row + 1], expected, rtol=1e-5, atol=1e-5)


def test_encodings_are_kept_within_bounds_and_made_again_by_other_weights(
    bart: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document(str(place), "x", given=Given(f"number {place}")) for place in range(6)]
    one = bart.hf.encoding(("sized",), lambda: {"input_ids": torch.tensor([[5, 6, 7, 8]])}).size
    monkeypatch.setattr(conditioned, "ENCODINGS_BYTES", 3 * one)
    with bart.given(documents):
        assert sum(encoding.size for encoding in bart.hf.encodings.values()) <= 3 * one
    with encoded(bart) as calls:
        with bart.given(documents[-1:]):
            assert not calls
        with torch.no_grad():
            next(bart.hf.inner.get_encoder().parameters()).add_(0.0)
        with bart.given(documents[-1:]):
            assert len(calls) == 1


def test_nothing_runs_where_nothing_is_given(bart: Model) -> None:
    with pytest.raises(ModelError, match="nothing was given to read"):
        bart.hf(input_ids=torch.tensor([[0, 5]]))
    other = copy.deepcopy(bart.hf)
    with bart.given([Document("a", "x", given=Given("the cat"))]):
        with pytest.raises(ModelError, match="nothing was given to read"):
            other(input_ids=torch.tensor([[0, 5]]))
        with (
            pytest.raises(ModelError, match="2 rows are decoded where 3 sources are given"),
            bart.given([Given("a"), Given("b"), Given("c")]),
        ):
            bart.hf(input_ids=torch.tensor([[0, 5], [0, 5]]))
        bart.hf(input_ids=torch.tensor([[0, 5]]))


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([Document("alone", "text")], "reads a source beside each text"),
        ([Given("the cat"), None], "reads a source beside each text"),
        ([Given("the cat " * SOURCE_POSITIONS)], f"takes 1 to {SOURCE_POSITIONS}"),
        ([Given(tokens=(3,) * (SOURCE_POSITIONS + 1))], f"takes 1 to {SOURCE_POSITIONS}"),
    ],
)
def test_what_the_encoder_cannot_read_is_refused(bart: Model, documents: list[object], said: str) -> None:
    with pytest.raises(InputError, match=said), bart.given(documents):
        pass


def test_a_text_model_is_given_nothing(tiny_model: Path) -> None:
    model = offramp.load_model(tiny_model)
    with model.given([Document("a", "text"), [1, 2], None]):
        pass
    with (
        pytest.raises(InputError, match="reads none: it is not an encoder-decoder"),
        model.given([Given("x")]),
    ):
        pass
    assert "encoder" not in to_json(model.shape)
    assert "cross" not in to_json(model.shape.layers[0])


def test_k_and_v_of_the_source_are_no_state_and_cost_a_request_once(bart: Model) -> None:
    shape = bart.shape
    decoder = bart.hf.inner.get_decoder().layers[0]
    attention = decoder.encoder_attn
    crossing = sum(part.weight.numel() for part in (attention.k_proj, attention.v_proj))
    parameters = sum(weight.numel() for weight in decoder.parameters())
    encoder = bart.hf.inner.get_encoder()
    for layer in shape.layers:
        assert (layer.kind, layer.state_elements, layer.key_value_width) == ("attention", 0, 64)
        assert layer.cross is not None
        assert (layer.attention_width, layer.cross.key_value_width) == (32, 64)
        assert layer.cross.key_value_parameters == crossing
        assert layer.active_parameters == parameters - crossing
    assert shape.encoder is not None
    embedded = [encoder.embed_tokens, encoder.embed_positions]
    looked_up = sum(weight.numel() for module in embedded for weight in module.parameters())
    assert shape.encoder.parameters == sum(weight.numel() for weight in encoder.parameters()) - looked_up
    read = bart.shape_given([Given(tokens=(5,) * 10), Given(tokens=(6,) * 20), Given(tokens=(5,) * 10)])
    assert read.encoder is not None
    assert read.encoder.positions == 15.0
    more = layer_flops(read, 4.0) - layer_flops(shape, 4.0)
    assert list(more) == pytest.approx([4 * 32 * (15.0 - shape.encoder.positions)] * 4)
    moved = layer_bytes(read, 4.0, 2) - layer_bytes(shape, 4.0, 2)
    assert list(moved) == pytest.approx([2 * 64 * (15.0 - shape.encoder.positions) * 4] * 4)
    assert shape.encoder.attention_width == 2 * 32
    scores = 4 * 64 * 15.0**2
    assert request_flops(read) == 2.0 * 15.0 * (shape.encoder.parameters + 4 * crossing) + scores
    assert from_json(ModelShape, to_json(read)) == read


@pytest.mark.parametrize("write", [write_t5, write_bart])
def test_the_flops_of_a_request_are_those_that_hooks_count(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    """Rows x weights of every linear layer, encoder included, and both products of every attention."""
    width, answer, source = 128, 6, 30
    model = offramp.load_model(write(tmp_path / "m", d_model=width, d_kv=width // 4))
    counted = 0.0

    def linear(module: Any, arguments: Any, output: Any) -> None:
        nonlocal counted
        counted += 2.0 * output.numel() * module.in_features

    inner, shape = model.hf.inner, model.shape_given([Given(tokens=(5,) * source)])
    keyword = cache_keyword(model)  # which tries the model
    hooks = [
        module.register_forward_hook(linear)
        for module in inner.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    with model.evaluating(), model.given([Given(tokens=(6,) * source)]):  # not encoded before
        cache: dict[str, Any] = {}
        for _ in range(answer):
            output = model.hf(input_ids=torch.zeros(1, 1, dtype=torch.long), use_cache=True, **cache)
            cache = {keyword: output[keyword]}
    for hook in hooks:
        hook.remove()
    layers, encoder = len(shape.layers), inner.get_encoder()
    blocks = getattr(encoder, "layers", None) or encoder.block
    counted += len(blocks) * 4.0 * width * source**2
    counted += sum(layers * 4.0 * width * (place + 1 + source) for place in range(answer))
    tokens = sum(float(layer_flops(shape, place).sum()) + head_flops(shape) for place in range(answer))
    assert request_flops(shape) + tokens == pytest.approx(counted, rel=0.02)


def test_a_model_object_is_wrapped_as_it_is(t5: Model) -> None:
    hf = t5.hf.inner
    wrapped = offramp.wrap(hf, t5.tokenizer, name="mine")
    assert wrapped.hf.inner is hf
    assert wrapped.reads_sources
    assert wrapped.bos_policy.token_id == 0
    with pytest.raises(ModelError, match="which reads input_features, fails on a few token ids"):
        offramp.wrap(build_conditioned("speech_to_text")[0])


@pytest.mark.parametrize("family", ["t5", "umt5"])
def test_a_stack_is_found_of_sources_that_are_token_ids(family: str) -> None:
    model: Any = Conditioned(*build_conditioned(family)).eval()
    stack = find_stack(model, name=family)
    shape = measure_shape(model, stack)
    assert {layer.kind for layer in shape.layers} == {"attention"}
    find: Callable[..., Any] = model.inner.get_encoder().forward
    model.inner.get_encoder().forward = None  # which nothing asks for from now on
    try:
        with probing(model), torch.no_grad():
            assert model(input_ids=probe_ids(model), use_cache=False).logits.shape[1] == 7
    finally:
        model.inner.get_encoder().forward = find
