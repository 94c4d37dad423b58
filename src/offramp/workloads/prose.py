"""`prose`: the Python language reference, as every Python carries it for `help()`."""

from __future__ import annotations

import hashlib
import platform
import re

from offramp.workloads.source import WorkloadSize, WorkloadSource
from offramp.workloads.standard_library import FEWEST_ITEMS, Piece, short_items, without_containers
from offramp.workloads.workload import Document, Workload

SHORTEST_TOPIC = 300
LICENCE = "PSF-2.0"
ORDER_SEED = "offramp prose 1"
SHORTEST_DOCSTRING = 200
SHORT_PER_FILE = 5
SHORT_ORDER_SEED = "offramp prose short 1"


def load_prose(argument: str = "") -> Workload:
    """One document per topic of `pydoc_data.topics`, in a fixed shuffled order.

    Topics under 300 characters, and topics that repeat a shorter one (the chapter that holds a section), are
    left out: documents must not share text, since every interval resamples them as independent units.
    """
    from pydoc_data.topics import topics

    texts = {name: clean_topic(text) for name, text in topics.items()}
    texts = {name: text for name, text in texts.items() if len(text) >= SHORTEST_TOPIC}
    kept = without_containers(texts)
    # Ordered by a hash: the first N topics are a fair sample, and a new topic moves no other.
    names = sorted(kept, key=lambda name: hashlib.sha256(f"{ORDER_SEED} {name}".encode()).hexdigest())
    return Workload(
        name="prose",
        mode="text",
        documents=tuple(Document(name, kept[name]) for name in names),
        licence=LICENCE,
        source=f"pydoc_data.topics of Python {platform.python_version()}",
    )


def clean_topic(text: str) -> str:
    """A topic without its headings' underlines, and with single blank lines."""
    text = re.sub(r"^[*=\-~^]{3,}\n", "", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def load_short_prose() -> Workload:
    """One document per docstring of the standard library, at most five of one file, in a mixed order.

    Not paragraphs of the topics: there are only some sixty topics of a few authors, and paragraphs of one
    text depend on each other, while these come from about 260 files by many hands. A guarantee takes the
    items as independent; those of one file still share their subject, which five of a file at most keeps
    small beside the whole. Docstrings under 200 characters (about 45 tokens) or with doctests are left out.

    Raises WorkloadError if this Python comes without its library's sources.
    """
    return Workload(
        name="prose:short",
        mode="text",
        documents=short_items("prose:short", _docstring, seed=SHORT_ORDER_SEED, per_file=SHORT_PER_FILE),
        licence=LICENCE,
        source=f"docstrings of the standard library of Python {platform.python_version()}",
    )


def _docstring(piece: Piece) -> str | None:
    text = piece.docstring
    return None if len(text) < SHORTEST_DOCSTRING or ">>>" in text else text + "\n"


PROSE = WorkloadSource(
    name="prose",
    load=load_prose,
    mode="text",
    documents="one per topic (more than 60)",
    licence=LICENCE,
    description="technical English, no literature: the topics of the Python language reference",
    sizes=(
        WorkloadSize(
            "short",
            load_short_prose,
            documents=f"one per docstring (more than {FEWEST_ITEMS})",
            description="technical English in short items, enough to certify agreement 0.99: docstrings of "
            f"the standard library, at most {SHORT_PER_FILE} of one file; they are taken as independent",
        ),
    ),
)
