"""`hf:dataset#split#field`: a field of a data set on the Hugging Face Hub, through the package datasets."""

from __future__ import annotations

from typing import Any

from offramp.errors import WorkloadError, refused_as
from offramp.workloads.workload import Document, Workload, WorkloadSource

GRAMMAR = "dataset#split#field"


def load_hub_dataset(argument: str) -> Workload:
    """One document per row of a split, in its order; rows whose text is empty are left out.

    Raises WorkloadError for an argument that does not parse, a missing extra, an unknown data set, split or
    field, and a field that does not hold text.
    """
    parts = argument.split("#")
    if len(parts) != 3 or not all(parts):
        raise WorkloadError(
            f"{argument!r} does not name a data set, a split and a field", fix=f"write hf:{GRAMMAR}"
        )
    name, split, field = parts
    dataset = _load(name, split)
    if field not in dataset.column_names:
        raise WorkloadError(
            f"the data set has no field {field!r}",
            where=f"{name}, split {split}",
            fix="choose one of: " + ", ".join(dataset.column_names),
        )
    documents = []
    for row, text in enumerate(dataset[field]):
        if not isinstance(text, str):
            raise WorkloadError(
                f"the field {field!r} holds {type(text).__name__}, not text",
                where=f"{name}, split {split}, row {row}",
                fix="choose a field of text",
            )
        if text.strip():
            documents.append(Document(f"row {row}", text))
    return Workload(
        name=f"hf:{argument}",
        mode="text",
        documents=tuple(documents),
        licence=dataset.info.license or "not stated by the data set",
        source=f"Hugging Face data set {name}, split {split}, field {field}",
    )


def _load(name: str, split: str) -> Any:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise WorkloadError(
            f"the workload 'hf' needs the package {error.name}", fix="pip install 'offramp[datasets]'"
        ) from error
    where, fix = f"{name}, split {split}", "check the names of the data set and the split, and the network"
    # An unknown data set and no network are both OSErrors there; an unknown split is a ValueError.
    with refused_as(
        WorkloadError, "the data set cannot be loaded", OSError, ValueError, where=where, fix=fix
    ):
        return datasets.load_dataset(name, split=split)


HUB_DATASET = WorkloadSource(
    name="hf",
    load=load_hub_dataset,
    mode="text",
    documents="one per row",
    licence="as the data set states",
    description="a field of a data set on the Hugging Face Hub (needs offramp[datasets])",
    argument=GRAMMAR,
)
