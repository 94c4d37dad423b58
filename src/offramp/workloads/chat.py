"""`chat`: everyday requests to an assistant, written for offramp."""

from __future__ import annotations

import json
from importlib.resources import files

from offramp.workloads.source import WorkloadSource
from offramp.workloads.workload import Document, Workload

LICENCE = "Apache-2.0"


def load_chat(argument: str = "") -> Workload:
    """One prompt per line of the packaged data file, in a fixed mixed order; the model answers them."""
    lines = (files("offramp.workloads") / "data" / "chat.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    return Workload(
        name="chat",
        mode="generation",
        documents=tuple(Document(record["id"], record["text"]) for record in records),
        licence=LICENCE,
        source="offramp, workloads/data/chat.jsonl",
        chat=True,
    )


CHAT = WorkloadSource(
    name="chat",
    load=load_chat,
    mode="generation",
    documents="100 prompts",
    licence=LICENCE,
    description="everyday requests: explain, summarise, write, list, translate, code, plan, compare, compute",
)
