"""The layouts that are known, by name."""

from __future__ import annotations

from offramp.tracing.importing.balcony import BALCONY
from offramp.tracing.importing.ee_llm import EE_LLM
from offramp.tracing.importing.multi_exit import MULTI_EXIT
from offramp.tracing.importing.tuned_lens import TUNED_LENS

LAYOUTS = {layout.name: layout for layout in (TUNED_LENS, MULTI_EXIT, EE_LLM, BALCONY)}
