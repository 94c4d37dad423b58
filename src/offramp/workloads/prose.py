"""`prose`: the Python language reference, as every Python carries it for `help()`."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping

from offramp.workloads.source import WorkloadSource
from offramp.workloads.workload import Document, Workload

SHORTEST_TOPIC = 300
LICENCE = "PSF-2.0"
ORDER_SEED = "offramp prose 1"


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


def without_containers(texts: Mapping[str, str]) -> dict[str, str]:
    """The texts that do not hold most long lines of a shorter one; of equal texts the first by name stays."""
    lines = {
        name: frozenset(line.strip() for line in text.splitlines() if len(line.strip()) >= 40)
        for name, text in texts.items()
    }
    kept: dict[str, str] = {}
    for name in sorted(texts, key=lambda name: (len(texts[name]), name)):
        if not any(
            len(lines[name] & lines[other]) > 0.7 * len(lines[other]) for other in kept if lines[other]
        ):
            kept[name] = texts[name]
    return kept


PROSE = WorkloadSource(
    name="prose",
    load=load_prose,
    mode="text",
    documents="one per topic (more than 60)",
    licence=LICENCE,
    description="English prose: the topics of the Python language reference",
)
