"""Prompts that the model answers: `chat`, written for offramp, and `math`, made by reasoning-gym."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

from offramp.errors import WorkloadError
from offramp.workloads.workload import Document, Workload, WorkloadSize, WorkloadSource

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


SEED = 20260323
PROBLEMS_PER_FAMILY = 12
SHORT_SEED = 20261125
SHORT_PER_FAMILY = 50
FAMILIES = (
    "basic_arithmetic",
    "bitwise_arithmetic",
    "calendar_arithmetic",
    "chain_sum",
    "count_primes",
    "fraction_simplification",
    "gcd",
    "gsm_symbolic",
    "lcm",
    "leg_counting",
    "number_sequence",
    "prime_factorization",
    "simple_equations",
    "time_intervals",
)


def load_math(argument: str = "") -> Workload:
    """Problems of several families with a fixed seed, one of each family in turn; the model answers them.

    Raises WorkloadError if the extra is not installed.
    """
    return _problems("math", SEED, PROBLEMS_PER_FAMILY)


def load_short_math() -> Workload:
    """Many more problems of the same families, none of them in `math`, one of each family in turn.

    A problem that repeats another is left out. A guarantee takes the problems as independent; those of one
    family share their wording.

    Raises WorkloadError if the extra is not installed.
    """
    known = {document.text for document in load_math().documents}
    drawn = _problems("math:short", SHORT_SEED, SHORT_PER_FAMILY)
    documents = []
    for document in drawn.documents:
        if document.text not in known:
            known.add(document.text)
            documents.append(document)
    return replace(drawn, documents=tuple(documents))


def _problems(name: str, seed: int, per_family: int) -> Workload:
    try:
        import reasoning_gym
    except ModuleNotFoundError as error:
        raise WorkloadError(
            f"the workload {name!r} needs the package {error.name}", fix="pip install 'offramp[math]'"
        ) from error
    columns = [
        [item["question"] for item in reasoning_gym.create_dataset(family, size=per_family, seed=seed)]
        for family in FAMILIES
    ]
    return Workload(
        name=name,
        mode="generation",
        documents=tuple(
            Document(f"{family}-{place + 1}", column[place], kind=family)
            for place in range(per_family)
            for family, column in zip(FAMILIES, columns, strict=True)
        ),
        licence=LICENCE,
        source=f"reasoning-gym {reasoning_gym.__version__}, seed {seed}",
        chat=True,
    )


MATH = WorkloadSource(
    name="math",
    load=load_math,
    mode="generation",
    documents=f"{PROBLEMS_PER_FAMILY * len(FAMILIES)} problems",
    licence=LICENCE,
    description=f"word problems and arithmetic of {len(FAMILIES)} families (needs offramp[math])",
    sizes=(
        WorkloadSize(
            "short",
            load_short_math,
            documents="more than 600 problems",
            description="many more problems of the same families, enough to certify agreement 0.99 (needs "
            "offramp[math]); they are taken as independent",
        ),
    ),
)
