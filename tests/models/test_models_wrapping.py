"""`offramp.wrap`: any model object, as it is, and what changed of it since."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import offramp
from offramp.errors import InputError, ModelError
from offramp.models.discovery import probe_ids
from offramp.models.model import Model
from offramp.models.wrapping import fingerprint_of

TEXTS = ["the cat sat on the mat and looked at the rain", "deep layers change the guess less often"] * 3


@pytest.fixture
def hf(tiny_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model)


@pytest.fixture
def wrapped(hf: Any, tiny_model: Path) -> Model:
    return offramp.wrap(hf, AutoTokenizer.from_pretrained(tiny_model))


def adapted(hf: Any) -> Any:
    """The model with adapters in its attention that do something."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    found = get_peft_model(hf, settings)
    with torch.no_grad():
        for name, weight in found.named_parameters():
            if "lora_B" in name:
                weight.normal_(generator=torch.Generator().manual_seed(0))
    return found


def test_an_object_measures_as_the_model_that_is_loaded_by_name(wrapped: Model, tiny_model: Path) -> None:
    loaded = offramp.load_model(str(tiny_model))
    one, other = (offramp.trace(model, TEXTS, tokens=40) for model in (wrapped, loaded))
    for name in one.fact_names:
        assert np.array_equal(one.fact(name), other.fact(name)), name
    assert one.shape == other.shape
    policy = "threshold:signal=max_prob,value=0.1,exits=1+2"
    one, other = (
        offramp.generate(model, "the cat", policy=policy, max_new_tokens=6) for model in (wrapped, loaded)
    )
    assert one.tokens == other.tokens
    assert list(one.exits) == list(other.exits)


def test_nothing_is_copied_and_mode_and_gradients_stay(hf: Any, tiny_model: Path) -> None:
    hf.train()
    hf.model.layers[1].eval()  # as a frozen part would be
    hf.model.layers[0].requires_grad_(False)
    modes = [module.training for module in hf.modules()]
    asked = [weight.requires_grad for weight in hf.parameters()]
    places = [weight.data_ptr() for weight in hf.parameters()]
    model = offramp.wrap(hf, AutoTokenizer.from_pretrained(tiny_model))
    trace = offramp.trace(model, TEXTS, tokens=20)
    offramp.rerun(model, trace, offramp.parse_policy("static:exit=2"))
    offramp.generate(model, "the cat", policy="static:exit=2", max_new_tokens=3)
    assert [module.training for module in hf.modules()] == modes
    assert [weight.requires_grad for weight in hf.parameters()] == asked
    assert [weight.data_ptr() for weight in model.hf.parameters()] == places
    assert all(weight.grad is None for weight in hf.parameters())


def test_adapters_are_measured_where_they_are(hf: Any, tiny_model: Path) -> None:
    found = adapted(hf)
    model = offramp.wrap(found, AutoTokenizer.from_pretrained(tiny_model))
    trace = offramp.trace(model, TEXTS, tokens=40)
    ids = torch.tensor([model.encode(TEXTS[0])])
    with torch.no_grad():
        expected = found.eval()(input_ids=ids).logits[0, :-1].argmax(-1)
    rows = trace.document == 0
    assert np.array_equal(trace.top1[rows, -1], expected[trace.position[rows]].numpy())
    adapters = model.identity.fingerprint
    with found.disable_adapter():
        assert model.identity.fingerprint != adapters
    assert model.identity.fingerprint == adapters


def test_adapters_that_put_tokens_in_front_are_refused(hf: Any) -> None:
    from peft import PromptTuningConfig, get_peft_model

    found = get_peft_model(hf, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ModelError, match="in front"):
        offramp.wrap(found)


def test_a_compiled_model_is_measured_and_stays_compiled(hf: Any) -> None:
    plain = offramp.trace(offramp.wrap(hf), torch.arange(3, 60).view(3, -1), tokens=30)
    assert offramp.wrap(torch.compile(hf)).hf is hf
    hf.compile()
    compiled = hf._compiled_call_impl
    again = offramp.trace(offramp.wrap(hf), torch.arange(3, 60).view(3, -1), tokens=30)
    assert hf._compiled_call_impl is compiled
    assert np.array_equal(plain.kl_to_final, again.kl_to_final)


def test_without_a_tokenizer_it_takes_ids_and_refuses_text(hf: Any) -> None:
    model = offramp.wrap(hf, name="bare")
    ids = offramp.workload_of([[5, 6, 7, 8, 9], [15, 16, 17, 18]])
    trace = offramp.trace(model, ids, tokens=7)
    assert trace.token.tolist() == [5, 6, 7, 8, 15, 16, 17]
    assert trace.position.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert offramp.generate(model, [5, 6, 7], max_new_tokens=2).layers_executed > 0
    with pytest.raises(InputError, match="without a tokenizer"):
        offramp.trace(model, ["the cat"], tokens=5)
    with pytest.raises(InputError, match="none of the model's"):
        offramp.trace(model, [[5, 6, 100_000, 7]], tokens=5)


def edit_in_place(hf: Any) -> None:
    with torch.no_grad():
        hf.model.layers[2].mlp.up_proj.weight[3, 4] += 1e-4


def edit_behind_torch(hf: Any) -> None:
    hf.model.norm.weight.data.mul_(1.0001)


def edit_config(hf: Any) -> None:
    hf.config.rms_norm_eps *= 2


@pytest.mark.parametrize("edit", [edit_in_place, edit_behind_torch, edit_config])
def test_what_changed_since_its_trace_is_noticed(wrapped: Model, edit: Callable[[Any], None]) -> None:
    policy = offramp.parse_policy("static:exit=2")
    trace = offramp.trace(wrapped, TEXTS, tokens=20)
    same = offramp.wrap(copy.deepcopy(wrapped.hf), wrapped.tokenizer)
    assert same.identity.fingerprint == wrapped.identity.fingerprint
    offramp.rerun(wrapped, trace, policy)
    edit(wrapped.hf)
    with pytest.raises(InputError, match="changed since it was traced"):
        offramp.rerun(wrapped, trace, policy)


def test_a_replaced_output_head_is_noticed(wrapped: Model) -> None:
    wrapped.hf.lm_head.weight.data = wrapped.hf.lm_head.weight.data.clone()
    with pytest.raises(ModelError, match="replaced"):
        offramp.trace(wrapped, TEXTS, tokens=20)


def test_a_copy_of_a_model_is_told_from_one_whose_output_head_was_replaced(wrapped: Model) -> None:
    """Its exits and who it is are those of the first, so that it has to be wrapped itself."""
    copied = copy.deepcopy(wrapped)
    with pytest.raises(ModelError, match="or the model was copied") as caught:
        offramp.trace(copied, TEXTS, tokens=20)
    assert "offramp.wrap(model.hf, model.tokenizer)" in caught.value.fix
    assert offramp.trace(offramp.wrap(copied.hf, copied.tokenizer), TEXTS, tokens=20).token_count


def test_a_changed_tokenizer_is_noticed(wrapped: Model) -> None:
    before = wrapped.identity.fingerprint
    wrapped.tokenizer.chat_template = "{{ messages[0].content }}"
    assert wrapped.identity.fingerprint != before


def test_a_model_of_inference_mode_is_measured(tiny_model: Path) -> None:
    with torch.inference_mode():
        hf = AutoModelForCausalLM.from_pretrained(tiny_model)
    model = offramp.wrap(hf)
    assert offramp.trace(model, [[5, 6, 7, 8]], tokens=3).top1.shape == (3, 4)
    assert "mine" in repr(offramp.wrap(hf, name="mine"))


def test_mixed_precision_around_a_forward_is_left_out(hf: Any) -> None:
    """As accelerate leaves a model that is trained in bfloat16."""
    ids = torch.arange(3, 60).view(3, -1)
    plain = offramp.trace(offramp.wrap(hf), ids, tokens=30)
    hf._original_forward = hf.forward
    hf.forward = torch.autocast("cpu", dtype=torch.bfloat16)(hf.forward)
    mixed = hf.forward
    model = offramp.wrap(hf)
    again = offramp.trace(model, ids, tokens=30)
    assert hf.forward is mixed
    assert model.stack.readout_kind == "fast"
    assert np.array_equal(plain.kl_to_final, again.kl_to_final)


def test_what_is_executed_runs_in_evaluation_mode(hf: Any, tiny_model: Path) -> None:
    hf.config.attention_dropout = 0.5
    hf.train()
    model = offramp.wrap(hf, AutoTokenizer.from_pretrained(tiny_model))
    texts = offramp.workload_of([f"{text} {number}" for number in range(20) for text in TEXTS[:2]])
    trace = offramp.trace(model, texts, tokens=200)
    tuned = offramp.tune(trace, {"agreement": 0.5}, "h100", model, seconds=2, prompt_tokens=4, new_tokens=4)
    assert tuned.executed_agreement is not None or tuned.answer
    assert hf.training


def test_weights_that_are_split_over_processes_are_refused(hf: Any) -> None:
    hf.model.norm.weight.ds_id = 3  # as DeepSpeed marks its parts
    with pytest.raises(ModelError, match="split over processes"):
        offramp.wrap(hf)


def test_weights_that_torchao_quantised_are_measured_head_and_all(hf: Any) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(hf, Int8WeightOnlyConfig())
    model = offramp.wrap(hf)
    ids = torch.arange(3, 60).view(3, -1)
    trace = offramp.trace(model, ids, tokens=30)
    with torch.no_grad():
        expected = hf(input_ids=ids).logits.argmax(-1)
    assert np.array_equal(trace.top1[:, -1], expected[trace.document, trace.position].numpy())


def test_attention_that_is_not_the_familys_own_is_noticed(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for asked, noticed in ((None, None), ("sdpa", None), ("eager", "eager")):
        hf = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=asked)
        assert offramp.wrap(hf, tokenizer).attention == noticed


def test_hooks_of_others_are_warned_of(hf: Any, recwarn: pytest.WarningsRecorder) -> None:
    offramp.wrap(hf)
    offramp.wrap(adapted(copy.deepcopy(hf)))
    hf.enable_input_require_grads()
    torch.nn.utils.weight_norm(hf.model.layers[0].mlp.up_proj)  # a pre-hook of torch's own
    accelerate.hooks.add_hook_to_module(hf.model.layers[0], accelerate.hooks.ModelHook())
    offramp.wrap(hf)
    assert not [one for one in recwarn if one.category is UserWarning]

    def louder(module: Any, given: Any, output: Any) -> Any:
        return 2 * output

    handle = hf.model.layers[1].mlp.register_forward_hook(louder)
    with pytest.warns(UserWarning, match=r"1 forward hooks .* on model.layers.1.mlp \(.*louder\)") as caught:
        offramp.wrap(hf, name="mine")
    assert [one.filename for one in caught] == [__file__]
    handle.remove()
    hf.model.norm.register_forward_pre_hook(functools.partial(lambda *given: None))
    hf.model.layers[2].forward = functools.partial(hf.model.layers[2].forward)
    hf.model.layers[3].mlp.forward = lambda given: given
    with pytest.warns(UserWarning, match="2 forward hooks or replaced forwards") as caught:
        offramp.wrap(hf)
    assert len(caught) == 1


def test_a_tokenizer_of_a_larger_model_is_named(hf: Any, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["rain"])
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    model = offramp.wrap(hf, tokenizer)
    rows = hf.config.vocab_size
    with pytest.raises(ModelError, match=f"holds the token 'rain' \\(id {rows}\\) of the") as caught:
        offramp.generate(model, "the rain", max_new_tokens=2)
    assert "may be another's" in caught.value.fix
    with pytest.raises(ModelError, match=f"the special token '<pad>' \\(id {rows + 1}\\)") as caught:
        model.encode("the cat<pad>")
    assert caught.value.fix == "take that token out of the text"


def test_names_may_be_paths_and_dtypes_torchs_own(tiny_model: Path, wrapped: Model) -> None:
    model = offramp.load_model(tiny_model, dtype=torch.float32, device=torch.device("cpu"))
    assert model.dtype == "float32"
    with pytest.raises(InputError, match="tokenizer cannot be a str"):
        offramp.wrap(wrapped.hf, "gpt2")
    trace = offramp.trace(wrapped, TEXTS, tokens=20)
    assert offramp.passages(wrapped, trace).passage.tokens
    with pytest.raises(InputError, match="another model"):
        offramp.passages(model, trace)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("size", [1, 7, 1003])
def test_any_changed_element_changes_the_hash(dtype: torch.dtype, size: int) -> None:
    weight = torch.arange(size).remainder(100).to(dtype)
    before = fingerprint_of({"weight": weight})
    assert fingerprint_of({"weight": weight.clone()}) == before
    assert fingerprint_of({"other": weight}) != before
    for place in {0, size // 2, size - 1}:
        changed = weight.clone()
        changed[place] += 1
        assert fingerprint_of({"weight": changed}) != before


def spoilt(hf: Any) -> Any:
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    return hf


class Widening(torch.nn.Module):
    """A layer whose output is of another dtype than its input."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        """The layer in its own dtype, its output in float32."""
        return self.layer(hidden.bfloat16(), *arguments, **options).float()


def mixed(hf: Any) -> Any:
    hf = hf.bfloat16()
    hf.model.layers[-1] = Widening(hf.model.layers[-1])
    hf.model.norm.float()
    hf.lm_head.float()
    return hf


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda hf: object(), "cannot be a object"),
        (lambda hf: hf.to("meta"), "not in memory"),
        (spoilt, "NaN or infinite"),
        (mixed, "hidden states in"),
        (lambda hf: torch.nn.Linear(2, 2), "cannot be a Linear"),
        (lambda hf: hf.model, "no output head"),
    ],
    ids=["no model", "on meta", "not finite", "dtypes mixed", "no language model", "no head"],
)
def test_what_cannot_be_measured_is_refused(hf: Any, made: Callable[[Any], Any], said: str) -> None:
    with pytest.raises(ModelError, match=said) as refused:
        offramp.wrap(made(hf))
    assert refused.value.fix


class Around:
    """Wraps what it is told to, under the name that torch.compile has for it."""

    def __init__(self) -> None:
        self._orig_mod: Any = self


def test_what_wraps_itself_is_refused() -> None:
    with pytest.raises(ModelError, match="or itself"):
        offramp.wrap(Around())


@pytest.mark.parametrize("edit", [{"num_hidden_layers": 10**9}, {"loop": []}])
def test_a_config_that_nothing_can_be_made_of_is_refused(
    hf: Any, tiny_model: Path, edit: dict[str, Any]
) -> None:
    for name, value in edit.items():
        setattr(hf.config, name, value)
        if isinstance(value, list):
            value.append({"again": value})
    with pytest.raises(ModelError, match=r"states num_hidden_layers|holds itself"):
        offramp.wrap(hf, AutoTokenizer.from_pretrained(tiny_model))


@pytest.mark.parametrize("vocabulary", [4, 8, 12, 13, 64])
def test_a_probe_is_found_in_any_vocabulary(vocabulary: int) -> None:
    config = type(
        "Config", (), {"vocab_size": vocabulary, "to_dict": lambda self: {"eos_token_id": [1, 2]}}
    )()
    model = type("Model", (), {"config": config, "device": "cpu"})()
    config.get_text_config = lambda: config
    ids = probe_ids(model, 13)[0].tolist()
    assert len(ids) == 13
    assert set(ids) <= set(range(vocabulary)) - {1, 2}
    assert ids[0] != ids[-1], "another last token has to be another text"


@pytest.mark.parametrize(
    ("loaded_from", "named"),
    [
        ("", "LlamaForCausalLM"),
        ("some/folder/my-llama", "my-llama"),
        ("cache/models--owner--small/snapshots/0123456789abcdef0123", "small"),
        ("cache/dense/b179c9523d0e6a0f98a330c7-1da27292", "smollm2"),
        ("cache/dense/0123456789abcdef01234567-1da27292", "LlamaForCausalLM"),
    ],
)
def test_an_object_is_called_after_its_origin_and_told_from_a_tuned_copy(
    hf: Any, loaded_from: str, named: str
) -> None:
    hf.config._name_or_path = loaded_from
    base = offramp.wrap(hf).name
    assert re.fullmatch(rf"{named}-[0-9a-f]{{6}}", base)
    assert offramp.wrap(hf).name == base
    with torch.no_grad():
        hf.lm_head.weight.mul_(1.001)
    assert offramp.wrap(hf).name != base
