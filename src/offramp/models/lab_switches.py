"""The switches of offramp's own family of models, without the library that the models need."""

from typing import Literal

LAB_FAMILY = "offramp_lab"
"""The `model_type` in the config of a model of `offramp.models.lab_family`."""

Norm = Literal["layernorm", "rmsnorm"]
Mlp = Literal["gelu", "swiglu"]
Positions = Literal["learned", "rotary"]
Heads = Literal["all", "grouped"]
Residual = Literal["plain", "depth_scaled"]
