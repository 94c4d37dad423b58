"""What a model does to the output head's logits before it returns them: nothing, a scale, or a soft-cap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

SATURATING_LOGIT = 1e9


@dataclass(frozen=True)
class LogitScaling:
    """logits = z ("identity"), value * z ("scale") or value * tanh(z / value) ("softcap").

    divisor: set where the model divides instead of multiplying; 1 / value, kept so that `apply` is bit-exact.
    """

    kind: Literal["identity", "scale", "softcap"] = "identity"
    value: float = 1.0
    divisor: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """The scaled logits, same shape and dtype."""
        if self.kind == "identity":
            return logits
        if self.kind == "softcap":
            return torch.tanh(logits / self.value) * self.value
        return logits * self.value if self.divisor is None else logits / self.divisor


def find_logit_scaling(model: nn.Module, head: nn.Module, ids: Tensor) -> LogitScaling | None:
    """Find it by putting known float32 logits in place of the head's output.

    ids: int64 [batch, positions]. Returns None if what the model does is none of the three kinds, bit for
    bit.
    """
    known: list[Tensor] = []

    def put_known_logits(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        count = output.numel()
        values = torch.linspace(-90.0, 90.0, count, dtype=torch.float32, device=output.device)
        values[0], values[-1] = 1.0, SATURATING_LOGIT
        known.append(values.reshape(output.shape))
        return known[-1]

    handle = head.register_forward_hook(put_known_logits)
    try:
        with torch.no_grad():
            returned = model(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    if not known or known[-1].shape != returned.shape:
        return None
    given, returned = known[-1].to(returned.device), returned.float()
    for candidate in _candidates(model, returned):
        if torch.equal(candidate.apply(given), returned):
            return candidate
    return None


def _candidates(model: nn.Module, returned: Tensor) -> list[LogitScaling]:
    """Scalings that fit the two telling logits: 1 shows a scale, a saturating one shows a soft-cap."""
    at_one, at_saturation = float(returned.flatten()[0]), float(returned.flatten()[-1])
    candidates = [LogitScaling()]
    for value in _with_config_values(model, at_one):
        candidates.append(LogitScaling("scale", value))
    for divisor in _with_config_values(model, 1.0 / at_one if at_one else 0.0):
        if divisor:
            candidates.append(LogitScaling("scale", 1.0 / divisor, divisor))
    if 0.0 < at_saturation < SATURATING_LOGIT:
        for cap in _with_config_values(model, at_saturation):
            candidates.append(LogitScaling("softcap", cap))
    return candidates


def _with_config_values(model: nn.Module, measured: float) -> list[float]:
    """The measured value and any number of the model's config that float32 cannot tell from it.

    The config's number is the unrounded one, which bit-exactness may need; its key is not looked at.
    """
    config: Any = model.config
    numbers = [
        float(number)
        for number in config.get_text_config().to_dict().values()
        if isinstance(number, (int, float)) and not isinstance(number, bool)
    ]
    near = [number for number in numbers if abs(number - measured) <= 1e-6 * abs(measured)]
    return [*dict.fromkeys([*near, measured])]
