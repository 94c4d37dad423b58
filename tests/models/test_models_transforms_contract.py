from __future__ import annotations

import dataclasses
import re
import sys
import types
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from offramp.errors import InputError, ModelError
from offramp.models.model import Model
from offramp.testing import check_transform
from offramp.testing.transforms import example_model


@dataclasses.dataclass(frozen=True)
class Damped:
    """Halves what the last layer adds."""

    name: ClassVar[str] = "damped"
    by: int = 2

    @property
    def text(self) -> str:
        return f"damped:by={self.by}"

    def check(self, dtype: str | None = None) -> None:
        """Nothing is needed."""

    def change(self, model: Model) -> None:
        model.hf.model.layers[-1].mlp.down_proj.weight /= self.by

    def apply(self, model: Model) -> Model:
        if self.text in model.identity.transforms:
            raise ModelError("damped before", where=model.name)
        self.change(model)
        transforms = (*model.identity.transforms, self.text)
        return model.with_identity(dataclasses.replace(model.identity, transforms=transforms))


class Misspelt(Damped):
    """Its text reads back as another."""

    @property
    def text(self) -> str:
        return f"damped:by={self.by + 1}"


class Foreign(Damped):
    """Its text is that of another transform."""

    @property
    def text(self) -> str:
        return "int8"


class Nameless(Damped):
    """Leaves the identity as it was."""

    def apply(self, model: Model) -> Model:
        return model


class Rebased(Damped):
    """Changes what the base is."""

    def apply(self, model: Model) -> Model:
        model = super().apply(model)
        return model.with_identity(dataclasses.replace(model.identity, weights="other"))


class Repeatable(Damped):
    """Can be applied again and again."""

    def apply(self, model: Model) -> Model:
        bare = dataclasses.replace(model.identity, transforms=())
        return super().apply(model.with_identity(bare))


class Breaking(Damped):
    """Leaves weights that are no numbers."""

    def change(self, model: Model) -> None:
        model.hf.model.norm.weight[0] = torch.nan


class Random(Damped):
    """Gives another model each time."""

    def change(self, model: Model) -> None:
        model.hf.model.norm.weight *= torch.rand(())


class Shapeless(Damped):
    """Leaves a layer out of the shape alone."""

    def apply(self, model: Model) -> Model:
        model = super().apply(model)
        return dataclasses.replace(
            model, shape=dataclasses.replace(model.shape, layers=model.shape.layers[1:])
        )


class Stale(Damped):
    """Replaces a layer behind the back of the stack."""

    def change(self, model: Model) -> None:
        import copy

        model.hf.model.layers[2] = copy.deepcopy(model.hf.model.layers[2])


class Forgetful(Damped):
    """Attends to the prompt alone once there is a cache."""

    def change(self, model: Model) -> None:
        attention = model.hf.model.layers[0].self_attn
        own = attention.forward

        def forward(hidden_states: Any, **keywords: Any) -> Any:
            return own(hidden_states * (1 if hidden_states.shape[1] > 1 else 2), **keywords)

        attention.forward = forward


def test_a_transform_that_keeps_the_rules_passes(plug_in: Any) -> None:
    plug_in("damped", f"{__name__}:Damped")
    transform = Damped(by=3)
    assert check_transform(transform) is transform
    assert check_transform(transform, lambda: example_model("bfloat16")) is transform


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        (Misspelt, "reads back as"),
        (Foreign, "its text begins with 'int8' instead of its name 'damped'"),
        (Nameless, r"the identity names \(\), not its text last"),
        (Rebased, "it changes the fingerprint of the base"),
        (Repeatable, "it can be applied twice"),
        (Breaking, "logits are NaN or infinite"),
        (Random, "two models that were loaded alike become different ones"),
        (Shapeless, "the shape has 5 layers, the stack 6"),
        (Stale, "its stack does not hold the layers that the transformed model runs"),
        (Forgetful, "tokens that are decoded with a cache get other logits"),
    ],
)
def test_every_broken_rule_is_named(plug_in: Any, kind: type[Damped], what: str) -> None:
    plug_in("damped", f"{__name__}:{kind.__name__}")
    with pytest.raises(InputError, match=what):
        check_transform(kind())


def test_a_transform_that_is_not_registered_is_found_out() -> None:
    with pytest.raises(InputError, match="unknown transform 'damped'"):
        check_transform(Damped())


def test_the_one_on_the_page_keeps_the_rules(plug_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "transforms.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)[0]
    module = types.ModuleType("documented")
    monkeypatch.setitem(sys.modules, "documented", module)
    exec(compile(code, "docs/transforms.md", "exec"), vars(module))
    plug_in("damped", "documented:Damped")
    assert vars(module)["Damped"].name == "damped"
    check_transform(vars(module)["Damped"](by=3))
