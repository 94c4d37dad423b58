"""Exit heads that others trained: named tensors of safetensors files, renamed by a key map."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

from offramp.kit.rules import OneOf


def _layouts() -> Collection[str]:
    from offramp.heads.importing.layouts import LAYOUTS  # pydantic comes with it

    return LAYOUTS


LayoutName = Annotated[str, OneOf("format", _layouts)]
"""Of exits that others trained."""
