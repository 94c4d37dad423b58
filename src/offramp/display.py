"""Values that a notebook shows as the page shows them."""

from __future__ import annotations

import importlib

PAGES = "offramp.report.notebook"


class ShownAsHtml:
    """Gives a notebook the page's own fragment of a value."""

    def _repr_html_(self) -> str:
        """A frame that needs no network and touches nothing of the notebook around it."""
        # The pages stand above what they show: they are loaded when a notebook asks, and never imported.
        return str(importlib.import_module(PAGES).html_of(self))
