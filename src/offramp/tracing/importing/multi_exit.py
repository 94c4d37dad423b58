"""The layout multi-exit: an output head per exit behind the model's own norm, in the model's own files.

As github.com/IBM/auto-contrastive-generation writes it (arXiv 2305.01628; read at commit 04efae2,
autocontrastive_gen/modeling/multi_exit_modeling.py), in which `ibm-research/gpt2-medium-multiexit` is.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from offramp.tracing.importing.base_weights import check_same_names
from offramp.tracing.importing.key_map import EXIT, KeyMap, OutputKeys
from offramp.tracing.importing.layout import Config, Described, Layout, cannot_be_read, read_config
from offramp.tracing.importing.tensors import Tensors

NAME = "multi-exit"
HEAD = f"name_to_lm_exit_head.lm_head_{EXIT}.weight"
"""[vocabulary, hidden], of the state after so many layers: hidden_states[k] of transformers. That of
"original" is the model's own head."""

MAPS = "name_to_conv_matrix."


class _Config(Config):
    lm_head_layer_indices: list[int | str]


def _describe(path: Path, tensors: Tensors) -> Described:
    config = read_config(path, _Config, NAME)
    maps = [key for key in tensors.stored if key.startswith(MAPS)]
    if maps:
        raise cannot_be_read(tensors, maps, "a matrix between the final norm and the model's own head")
    exits = tuple(sorted({exit for exit in config.lm_head_layer_indices if isinstance(exit, int)}))
    return Described(
        KeyMap(exits, 1, NAME, output=OutputKeys(HEAD, norm="model")),
        partial(check_same_names, tensors=tensors),
    )


MULTI_EXIT = Layout(NAME, _describe, of_exits=r"name_to_lm_exit_head\.(?!lm_head_original\.).*")
