"""What another full model says where one is traced: the measure of what is lost.

Of a transformed model that is the untransformed one; of a trained one, the model that it was before.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace

from offramp.errors import InputError, ModelError
from offramp.models.loading import Placement, load_source
from offramp.models.model import Model
from offramp.models.streaming import load_streamed, would_not_fit
from offramp.tracing.measured_part import measure_part
from offramp.tracing.measurement import make_measurer
from offramp.tracing.part import Part, Reference
from offramp.tracing.plan import TracePlan
from offramp.tracing.progress import token_bar
from offramp.tracing.request import TraceRequest
from offramp.tracing.streamed_layers import capture_for


def check_reference(model: Model, given: Model | None) -> None:
    """Refuse a transformed model without its untransformed form, a form that is not its own, and of a model
    without transforms a reference that is itself or of another vocabulary.

    given: the reference; None for none, or to load the untransformed model from where the model came from.

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
        _require_same_vocabulary(model, given)
        return
    if given.identity.fingerprint != model.identity.base_fingerprint or given.dtype != model.dtype:
        raise InputError(
            f"the reference, {given.name} in {given.dtype}, is not the untransformed model",
            where=f"reference= for {model.shown_name} in {model.dtype}",
            fix="give the untransformed model, loaded in the same dtype",
        )


def _require_same_vocabulary(model: Model, given: Model) -> None:
    """Raise InputError unless both are of one vocabulary, and two models."""
    where = f"reference= (--reference): {given.shown_name}, for {model.shown_name}"
    if given.identity.fingerprint == model.identity.fingerprint:
        raise InputError(
            "the reference is the model itself", where=where, fix="leave it out: a model is its own reference"
        )
    same = model.identity.tokenizer == given.identity.tokenizer or _tokens(model) == _tokens(given)
    if model.shape.vocabulary_size != given.shape.vocabulary_size or not same:
        raise InputError(
            "the reference has another vocabulary, so its tokens cannot be compared",
            where=where,
            fix="give the model that this one was before it was trained",
        )


def _tokens(model: Model) -> dict[str, int] | None:
    """Ids by token; None without a tokenizer that lists them."""
    listed = getattr(model.tokenizer, "get_vocab", None)
    return None if listed is None else dict(listed())


def describe_reference(model: Model, given: Model | None) -> dict[str, str] | None:
    """What a trace's request says of a reference; nothing of a transformed model's own."""
    if given is None or model.transforms:
        return None
    return {
        "name": given.shown_name,
        "fingerprint": given.identity.fingerprint,
        "dtype": given.dtype,
        "source": given.identity.source,
    }


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
    """The reference's top-1 on the contexts of some parts, by the part's number.

    It is measured as exit L of any trace is: the same batches, the logits in float32. Empty for a model
    without transforms for which none is given. The untransformed model is loaded for this, unless given, and
    let go of; its layers are read from disk one at a time if the transformed one's are, or if it does not fit
    beside that.

    title, shown: of the progress bar.
    """
    if not model.transforms and given is None:
        return {}
    found = _measured(given or _load_untransformed(model), request, plan, indices, title, shown)
    gc.collect()  # models hold references to themselves, and the transformed one now needs the memory
    return found


def _measured(
    plain: Model, request: TraceRequest, plan: TracePlan, indices: Sequence[int], title: str, shown: bool
) -> dict[int, Reference]:
    """plain: the reference."""
    alone = replace(request, exits=(plain.layers,), signals=(), heads=None)
    documents = len(plan.document_ids)
    rows = sum(context.rows for index in indices for context in plan.parts[index])
    with capture_for(
        plain, plan, indices, alone, folder=None, memory=None, title=title, shown=shown
    ) as capture:
        measurer = make_measurer(plain, alone, None, capture)
        with token_bar(title, rows, shown=shown) as advance:
            kind = "untransformed model" if request.model.get("transforms") else "reference"
            return {
                index: _reference_of(
                    measure_part(measurer, index, plan.parts[index], documents, advance), kind
                )
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


def _reference_of(part: Part, kind: str) -> Reference:
    """What is kept of a part that was measured on the reference. kind: what that is called."""
    return Reference(
        document=part.tokens["document"],
        top1=part.facts["top1"][:, 0],
        reasons={
            document.index: f"the {kind} gives a non-finite number"
            for document in part.documents
            if not document.valid
        },
    )
