"""A mixture of experts and a state space: matched in size, ordinary models, the same to the bit."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import offramp
from command_line import run_offramp
from lab_recipes import TINY, TINY_KINDS, tiny, tiny_kind
from offramp.errors import InputError
from offramp.lab.design import design
from offramp.lab.sizes import SIZES, resized
from offramp.lab.text.folder import LabText
from offramp.lab.training import train as training
from offramp.lab.training.batches import Batches
from offramp.lab.training.code import CODE, training_code
from offramp.lab.training.comparison import require_comparable
from offramp.lab.training.folder import key_of
from offramp.lab.training.kinds import Mixture, active_parameters, architecture_of
from offramp.lab.training.objective import router_loss
from offramp.lab.training.recipe import AnyRecipe, Mamba2Recipe, MixtureRecipe, Recipe
from offramp.lab.training.record import RECORD, Request
from offramp.lab.training.state_space import made_fast, scan
from offramp.lab.training.train import train
from offramp.records.typed import from_json, to_json

KINDS = tuple(TINY_KINDS)


def on_meta(found: Any) -> Any:
    with torch.device("meta"):
        return found.make_model()


@pytest.mark.parametrize("heads", ["all", "grouped"])
@pytest.mark.parametrize("active", [1, 2, 3])
def test_parameters_of_a_mixture_are_those_of_its_modules(lab_text: LabText, heads: str, active: int) -> None:
    found = architecture_of(tiny_kind(lab_text, "mixture", heads=heads, active=active), 300)
    model = on_meta(found)
    weights = dict(model.named_parameters())
    assert found.parameters == sum(one.numel() for one in weights.values())
    experts = sum(one.numel() for name, one in weights.items() if ".experts." in name)
    assert active_parameters(found) == found.parameters - experts * (4 - active) // 4
    norms = sum(one.numel() for one in weights.values() if one.dim() == 1)
    assert found.products == found.parameters - experts * (4 - active) // 4 - norms


@pytest.mark.parametrize(("expand", "width", "heads"), [(2, 8, 4), (3, 16, 4), (1, 24, 2)])
def test_parameters_of_a_state_space_are_those_of_its_modules(
    lab_text: LabText, expand: int, width: int, heads: int
) -> None:
    recipe = tiny_kind(lab_text, "mamba2", expand=expand, width=width, query_heads=heads)
    found = architecture_of(recipe, 300)
    weights = dict(on_meta(found).named_parameters())
    assert found.parameters == sum(one.numel() for one in weights.values())
    assert found.products == sum(one.numel() for one in weights.values() if one.dim() > 1)
    assert active_parameters(found) is None


def test_kinds_of_the_design_meet_as_many_parameters_as_the_dense_model() -> None:
    runs = design("text", tokens=1000, rate=1e-3)
    wanted = architecture_of(runs["run-16"], 2048).parameters  # type: ignore[arg-type]
    for number in range(21, 29):
        recipe = runs[f"run-{number}"]
        assert isinstance(recipe, MixtureRecipe if number < 25 else Mamba2Recipe)
        found = architecture_of(recipe, 2048)
        met = active_parameters(found) or found.parameters
        assert abs(met / wanted - 1) < 0.01
        assert found.width == (152 if number < 25 else 136), "as docs/lab/preregistered.md says"
        assert (recipe.seed, recipe.layers, recipe.hidden) == (number, 12, 96)


def test_a_size_that_no_width_gives_is_refused(lab_text: LabText) -> None:
    with pytest.raises(InputError, match=r"; width of an expert 4; 4 more is") as refused:
        architecture_of(tiny_kind(lab_text, "mixture", width=None, parameters=9000), 300)
    assert "parameters, and 9,000 are asked for" in str(refused.value)
    with pytest.raises(InputError, match=r"; state 8; 8 more is"):
        architecture_of(tiny_kind(lab_text, "mamba2", width=None, parameters=9000), 300)


@pytest.mark.parametrize("size", sorted(SIZES))
def test_experts_of_every_size_of_the_design_can_be_multiplied(size: str) -> None:
    runs = resized(design("text", tokens=1000, rate=1e-3), SIZES[size], 2048)
    recipe, dense = runs["run-21"], runs["run-16"]
    assert isinstance(recipe, MixtureRecipe)
    assert isinstance(dense, Recipe)
    made = architecture_of(recipe, 2048)
    assert isinstance(made, Mixture)
    assert made.width * (2 if recipe.precision == "bfloat16" else 4) % 16 == 0
    assert abs(made.active / architecture_of(dense, 2048).parameters - 1) < 0.01
    if size in ("narrow", "smoke"):  # small enough to be tried here
        model = made.make_model()
        ids = torch.arange(16)[None]
        model(input_ids=ids, labels=ids).loss.backward()


def test_an_expert_that_cannot_be_multiplied_is_refused_before_anything_is_made(lab_text: LabText) -> None:
    with pytest.raises(InputError, match="in float32 it is a multiple of 4") as refused:
        architecture_of(tiny_kind(lab_text, "mixture", width=77), 300)
    assert "give 76 or 80" in str(refused.value)
    with pytest.raises(InputError, match="in bfloat16 it is a multiple of 8"):
        architecture_of(tiny_kind(lab_text, "mixture", width=76, precision="bfloat16"), 300)


@pytest.mark.parametrize("kind", KINDS)
def test_they_learn_and_leave_models_whose_exits_are_exact_also_after_kills(
    lab_text: LabText, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_kind(lab_text, kind)
    record = train(recipe, tmp_path / "whole")
    assert record.recipe == RECORD.read(tmp_path / "whole" / "training.json").recipe == recipe
    losses = [one.natural for one in record.history]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < math.log(300) - 0.5
    model = offramp.load_model(tmp_path / "whole")  # finds its exits and checks them
    assert (len(model.stack), model.stack.largest_difference, model.context_length) == (2, 0.0, 32)

    real, calls = training.take_step, []

    def killed(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) in (6, 12):
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "STATE_SECONDS", 0.0)
    monkeypatch.setattr(training, "WRITING_SHARE", math.inf)
    monkeypatch.setattr(training, "take_step", killed)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "killed")
    again = train(recipe, tmp_path / "killed")
    assert len(calls) == 19 + 2, "no step is taken twice"
    assert again.model == record.model
    for one in ("whole", "whole@4", "whole@9"):
        other = tmp_path / one.replace("whole", "killed") / "model.safetensors"
        assert (tmp_path / one / "model.safetensors").read_bytes() == other.read_bytes()


def test_the_loss_of_a_mixture_has_the_term_of_its_routers(lab_text: LabText) -> None:
    torch.manual_seed(0)
    recipe = tiny_kind(lab_text, "mixture")
    model = architecture_of(recipe, 300).make_model()
    batches = Batches.of(lab_text, recipe.context, recipe.batch, recipe.seed)
    sequences = torch.from_numpy(batches.sequences(3))
    routed: list[torch.Tensor] = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda module, given, found: routed.append(found[0]))
        for layer in model.model.layers
    ]
    logits = model(input_ids=sequences[:, :-1]).logits
    for hook in hooks:
        hook.remove()
    of_text = F.cross_entropy(logits.reshape(-1, 300), sequences[:, 1:].reshape(-1))
    shares = torch.cat(routed).softmax(-1)
    chosen = F.one_hot(shares.topk(2, dim=-1).indices, 4).sum(1).float()
    uneven = 4 * (chosen.mean(0) * shares.mean(0)).sum()  # arXiv 2101.03961, equations 4 to 6
    loss = router_loss(model, batches)(3)
    torch.testing.assert_close(loss, of_text + 0.001 * uneven)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(layer.mlp.gate.weight.grad.abs().max() > 0 for layer in model.model.layers)


@given(
    tokens=st.integers(1, 13),
    chunk=st.integers(1, 6),
    heads=st.integers(1, 3),
    strength=st.floats(0.0, 3.0),
    seed=st.integers(0, 2**32),
)
def test_a_scan_by_chunks_is_the_recurrence(
    tokens: int, chunk: int, heads: int, strength: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(2, tokens, heads, 4, generator=generator)
    decay = -strength * torch.rand(2, tokens, heads, generator=generator)
    written, read = (torch.randn(2, tokens, 5, generator=generator) for _ in range(2))
    state = torch.zeros(2, heads, 4, 5)
    for place, found in enumerate(scan(values, decay, written, read, chunk).unbind(1)):
        added = torch.einsum("bhp,bn->bhpn", values[:, place], written[:, place])
        state = decay[:, place, :, None, None].exp() * state + added
        expected = torch.einsum("bhpn,bn->bhp", state, read[:, place])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokens", [1, 3, 30])
def test_a_state_space_in_training_is_that_of_transformers(lab_text: LabText, tokens: int) -> None:
    torch.manual_seed(0)
    own = architecture_of(tiny_kind(lab_text, "mamba2"), 300).make_model()
    with torch.no_grad():
        for weight in own.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    fast = made_fast(copy.deepcopy(own))
    ids = torch.randint(0, 300, (2, tokens))
    for model in (own, fast):
        model(input_ids=ids, use_cache=False).logits.square().mean().backward()
    with torch.no_grad():
        torch.testing.assert_close(own(input_ids=ids).logits, fast(input_ids=ids).logits)
        plain, other = (model(input_ids=ids, use_cache=False).logits for model in (own, fast))
    torch.testing.assert_close(plain, other, rtol=1e-4, atol=1e-5)
    assert tokens == 1 or bool((plain != other).any()), "another order of sums"
    for weight, its in zip(own.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(weight.grad, its.grad, rtol=1e-3, atol=1e-6)


def test_what_a_state_space_computes_does_not_depend_on_its_chunks(lab_text: LabText) -> None:
    models = []
    for chunk in (1, 8, 32):
        torch.manual_seed(0)
        models.append(architecture_of(tiny_kind(lab_text, "mamba2", chunk=chunk), 300).make_model().eval())
    ids = torch.randint(0, 300, (2, 31))
    with torch.no_grad():
        one, *others = [model(input_ids=ids, use_cache=False).logits for model in models]
    for other in others:
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_recipes_of_kinds_are_read_from_files(lab_text: LabText, tmp_path: Path) -> None:
    def refused(*lines: str) -> str:
        path = tmp_path / "recipe.toml"
        path.write_text("\n".join([f'text = "{lab_text.folder}"', *lines, ""]))
        return run_offramp("lab", "train", path, "-o", tmp_path / "model").require(2).err

    sizes = ("tokens = 100", "seed = 1", "layers = 2", "hidden = 32", "query_heads = 4", "group = 2")
    err = refused('kind = "mixtur"', *sizes)
    assert "line 2" in err
    assert "did you mean 'mixture'" in err
    assert "no entry 'norm'" in refused('kind = "mixture"', *sizes, 'norm = "rmsnorm"', "width = 8")
    assert "5 of 4 experts" in refused('kind = "mixture"', *sizes, "width = 8", "experts = 4", "active = 5")
    assert "neither parameters nor width" in refused('kind = "mixture"', *sizes)
    assert "no entry 'group'" in refused('kind = "mamba2"', *sizes, "width = 8")
    assert "a multiple of 20" in refused('kind = "mamba2"', *sizes[:4], "query_heads = 10", "width = 8")


def test_a_dense_model_is_compared_with_no_other_kind(lab_text: LabText, tmp_path: Path) -> None:
    train(tiny_kind(lab_text, "mamba2", tokens=128, checkpoints=1), tmp_path / "mamba2")
    recipe = tiny(lab_text, against=str(tmp_path / "mamba2"), factor="norm")
    with pytest.raises(InputError, match="mamba2, and differs in more than one factor"):
        require_comparable(recipe, lab_text.fingerprint, architecture_of(recipe, 300))  # type: ignore[arg-type]


def test_records_hold_recipes_of_every_kind(lab_text: LabText) -> None:
    recipes: list[AnyRecipe] = [*design("text", tokens=1000, rate=1e-3).values()]
    recipes += [tiny(lab_text), tiny_kind(lab_text, "mixture"), tiny_kind(lab_text, "mamba2")]
    for recipe in recipes:
        assert from_json(AnyRecipe, to_json(recipe)) == recipe  # type: ignore[arg-type]


def test_a_dense_training_stays_the_same_whatever_is_added_beside_it() -> None:
    """Hours of training lie in folders: their key changes only with what a recipe holds."""
    recipe = from_json(Recipe, {"text": "text", **TINY})
    request = Request(recipe, "a text", "cpu", "code", {"torch": "2"})
    assert key_of(request) == "35a5d9a6dfa3bdf6a335f988e5c36187e3f34a55c17fe56c271e9a8abdb744a0"
    assert not any(name.endswith(("kinds.py", "objective.py", "train.py")) for name in CODE["dense"])
    assert len({training_code(kind) for kind in ("dense", "mixture", "continued")}) == 3
