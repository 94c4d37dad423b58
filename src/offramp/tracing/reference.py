"""What the untransformed full model says where a transformed one is traced: the measure of what is lost."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace

from offramp.errors import InputError, ModelError
from offramp.models.loading import Placement, load_source
from offramp.models.model import Model
from offramp.models.streamed_loading import load_streamed, would_not_fit
from offramp.tracing.measured_part import measure_part
from offramp.tracing.measurement import make_measurer
from offramp.tracing.part import Part, Reference
from offramp.tracing.plan import TracePlan
from offramp.tracing.progress import token_bar
from offramp.tracing.request import TraceRequest
from offramp.tracing.streamed_layers import capture_for


def check_reference(model: Model, given: Model | None) -> None:
    """Refuse a transformed model without its untransformed form, and a form that is not its own.

    given: the untransformed model, None to load it from where the model came from.

    Raises InputError, or ModelError if the model was built in memory and none is given.
    """
    if given is None:
        if model.transforms and model.source is None:
            raise ModelError(
                "the model was made in memory: its untransformed form cannot be loaded to compare it with",
                where=model.shown_name,
                fix="give the untransformed model as reference=, or use load_model(name, transforms=...)",
            )
        return
    if not model.transforms:
        raise InputError(
            "a reference was given for a model that no transform has changed",
            where=f"reference= for {model.shown_name}",
            fix="leave it out: the model is its own reference",
        )
    if given.identity.fingerprint != model.identity.base_fingerprint or given.dtype != model.dtype:
        raise InputError(
            f"the reference, {given.name} in {given.dtype}, is not the untransformed model",
            where=f"reference= for {model.shown_name} in {model.dtype}",
            fix="give the untransformed model, loaded in the same dtype",
        )


def measure_references(
    model: Model,
    given: Model | None,
    request: TraceRequest,
    plan: TracePlan,
    indices: Sequence[int],
    *,
    title: str,
    shown: bool,
) -> dict[int, Reference]:
    """The untransformed full model's top-1 on the contexts of some parts, by the part's number.

    It is measured as exit L of any trace is: the same batches, the logits in float32. Empty for a model
    without transforms. The untransformed model is loaded for this, unless given, and let go of; its layers
    are read from disk one at a time if the transformed one's are, or if it does not fit beside that.

    title, shown: of the progress bar.
    """
    if not model.transforms:
        return {}
    found = _measured(given or _load_untransformed(model), request, plan, indices, title, shown)
    gc.collect()  # models hold references to themselves, and the transformed one now needs the memory
    return found


def _measured(
    plain: Model, request: TraceRequest, plan: TracePlan, indices: Sequence[int], title: str, shown: bool
) -> dict[int, Reference]:
    """plain: the untransformed model."""
    alone = replace(request, exits=(plain.layers,), signals=(), heads=None)
    documents = len(plan.document_ids)
    rows = sum(context.rows for index in indices for context in plan.parts[index])
    with capture_for(
        plain, plan, indices, alone, folder=None, memory=None, title=title, shown=shown
    ) as capture:
        measurer = make_measurer(plain, alone, None, capture)
        with token_bar(title, rows, shown=shown) as advance:
            return {
                index: _reference_of(measure_part(measurer, index, plan.parts[index], documents, advance))
                for index in indices
            }


def _load_untransformed(model: Model) -> Model:
    """The model as it was before any transform."""
    assert model.source is not None  # `check_reference` has seen to it
    # Code that comes with a model ran when the model itself was loaded: it is trusted.
    own_code = type(model.hf).__module__.startswith("transformers_modules")
    on_disk = model.streamed is not None or would_not_fit(model.source, model.dtype)
    if on_disk:
        return load_streamed(model.source, dtype=model.dtype, trust_remote_code=own_code)
    # Where the transformed one is, spread over several devices as that is.
    placement = Placement(str(model.stack.device), getattr(model.hf, "hf_device_map", None), model.attention)
    return load_source(model.source, dtype=model.dtype, trust_remote_code=own_code, placement=placement)


def _reference_of(part: Part) -> Reference:
    """What is kept of a part that was measured on the untransformed model."""
    return Reference(
        document=part.tokens["document"],
        top1=part.facts["top1"][:, 0],
        reasons={
            document.index: "the untransformed model gives a non-finite number"
            for document in part.documents
            if not document.valid
        },
    )
