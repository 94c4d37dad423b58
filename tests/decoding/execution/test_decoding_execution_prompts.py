"""Openings: whose, in which order, how long, and what is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from execution_cases import NumberTokenizer, agreeable_llama, llama, texts, tiny_model, traced, workload_of

from offramp.decoding.openings import (
    EMPTY,
    NO_ROOM,
    TOO_SHORT,
    choose_openings,
    further_documents,
    traced_workload,
)
from offramp.errors import InputError, WorkloadError
from offramp.tracing.tracer import trace
from offramp.tuning.splits import split_roles


def test_certify_documents_come_first_in_their_order_then_untraced_ones() -> None:
    model, found, work = traced(20, 50)
    roles = split_roles(found, 0)
    openings = choose_openings(model, found, work, roles, seed=0, prompt_tokens=6, new_tokens=4)
    ids = [opening.document for opening in openings.certify]
    first = [found.documents[int(place)].id for place in roles.certify]
    assert ids[: len(first)] == first
    assert all(opening.traced for opening in openings.certify[: len(first)])
    # Every untraced document once, none of the trace's others.
    rest = ids[len(first) :]
    known = {record.id for record in found.documents}
    assert sorted(rest) == sorted(one.id for one in work.documents if one.id not in known)
    assert len(set(ids)) == len(ids)
    assert [one.document for one in openings.report] == [
        found.documents[int(place)].id for place in roles.report
    ]
    # The order of the untraced is drawn, by the seed alone.
    assert rest != sorted(rest, key=lambda one: int(one.split()[1]))
    again = choose_openings(model, found, work, roles, seed=0, prompt_tokens=6, new_tokens=4)
    assert again == openings
    other = choose_openings(model, found, work, roles, seed=1, prompt_tokens=6, new_tokens=4)
    assert [one.document for one in other.certify[len(first) :]] != rest
    some = choose_openings(model, found, work, roles, seed=0, prompt_tokens=6, new_tokens=4, most=25)
    assert some.certify == openings.certify[:25]
    texts_by_id = {document.id: document.text for document in work.documents}
    for opening in openings.certify:
        assert opening.ids == tuple(model.encode(texts_by_id[opening.document])[:6])


def test_documents_that_heads_were_fitted_on_are_never_openings() -> None:
    model, found, work = traced(20, 50)
    fitted = [record.id for record in found.documents[:3]] + ["document 40", "document 41"]
    request = {**found.request, "heads": {"documents": {work.fingerprint: fitted}}}
    found = found.subset(np.arange(20))
    found.provenance = {**found.provenance, "request": request}
    openings = choose_openings(
        model, found, work, split_roles(found, 0), seed=0, prompt_tokens=6, new_tokens=4
    )
    assert not set(fitted) & {one.document for one in (*openings.certify, *openings.report)}
    assert "document 40" not in [one.id for one in further_documents(found, work, 0)]


def test_documents_that_are_too_short_are_left_out_and_counted() -> None:
    model = agreeable_llama()
    work = workload_of(lengths=(12,) * 10 + (6,) * 4 + (7,) * 3, vocabulary=58)
    found = trace(model, work, tokens=40, document_tokens=4, progress=False)
    openings = choose_openings(
        model, found, work, split_roles(found, 0), seed=0, prompt_tokens=6, new_tokens=4
    )
    assert openings.left_out == {TOO_SHORT: 4}
    # Seven tokens are an opening of six, and a first token of the answer.
    assert {f"document {number}" for number in (14, 15, 16)} <= {one.document for one in openings.certify}


def test_prompts_of_a_generation_workload_are_taken_whole() -> None:
    tokenizer = NumberTokenizer(eos=2, chat=True)
    model = tiny_model(llama(max_position_embeddings=40), tokenizer=tokenizer, name="answers")
    work = workload_of("", mode="generation", chat=True, lengths=(5, 9, 20, 3, 8, 12, 37), vocabulary=58)
    found = trace(model, work, tokens=24, document_tokens=6, progress=False)
    openings = choose_openings(
        model, found, work, split_roles(found, 0), seed=0, prompt_tokens=4, new_tokens=8
    )
    by_id = {document.id: document.text for document in work.documents}
    for opening in (*openings.certify, *openings.report):
        assert opening.ids == tuple(model.encode_chat(by_id[opening.document]))
    assert openings.left_out == {NO_ROOM: 1}
    plain = replace(work, chat=False)
    found.provenance["request"]["workload"]["fingerprint"] = plain.fingerprint
    left = choose_openings(model, found, plain, split_roles(found, 0), seed=0, prompt_tokens=4, new_tokens=8)
    assert left.left_out == {EMPTY: 1, NO_ROOM: 1}


def test_openings_that_leave_no_room_are_refused() -> None:
    model, found, work = traced(20, 50)
    with pytest.raises(InputError, match="prompts of 90 tokens do not leave room for 10 new tokens"):
        choose_openings(model, found, work, split_roles(found, 0), seed=0, prompt_tokens=90, new_tokens=10)


def test_other_documents_than_those_traced_are_refused() -> None:
    _, found, work = traced(20, 50)
    assert traced_workload(found, work) is work
    with pytest.raises(InputError, match="not those that were traced"):
        traced_workload(found, texts(49))
    # Loaded by its name, if it has one.
    with pytest.raises(WorkloadError):
        traced_workload(found)
