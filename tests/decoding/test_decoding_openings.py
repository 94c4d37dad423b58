"""Which prompts are timed and executed, and that peak memory sees what is held."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from execution_cases import NumberTokenizer, agreeable_llama, llama, texts, tiny_model, traced, workload_of
from generation_cases import tiny_llama

from offramp.cli.bench_stage import SEARCHED, prompts_for
from offramp.decoding.openings import (
    EMPTY,
    NO_ROOM,
    TOO_SHORT,
    choose_openings,
    further_documents,
    kinds_in_turn,
    prompts_of,
    traced_workload,
)
from offramp.errors import InputError, WorkloadError
from offramp.timing.session import start_peak
from offramp.tracing.tracer import trace
from offramp.tuning.splits import split_roles
from offramp.workloads.registry import load_workload
from offramp.workloads.shared_text import sketches_of, write_sketch
from offramp.workloads.workload import Document, Workload


def test_peak_memory_sees_what_is_held_and_no_more() -> None:
    def peak(size: int) -> int | None:
        found = start_peak(torch.device("cpu"))
        torch.ones(size // 4).sum()
        return found()

    small, large = peak(2**20), peak(2**27)
    if small is None or large is None:
        pytest.skip("this system does not reset a high-water mark")
    assert 0.9 * 2**27 < large < 1.5 * 2**27
    assert small < 2**25


def text_workload(*texts: str, mode: Any = "text") -> Workload:
    documents = tuple(Document(f"d{place}", text) for place, text in enumerate(texts))
    return Workload("texts", mode, documents, licence="none", source="a test")


def test_prompts_are_the_starts_of_the_last_documents() -> None:
    model = tiny_llama()
    workload = text_workload("the cat sat", "a model reads one token after another", "deep layers change")
    found = prompts_of(model, workload, 2, new_tokens=8, prompt_tokens=4)
    assert found == [
        model.encode("deep layers change")[:4],
        model.encode("a model reads one token after")[:4],
    ]
    whole = prompts_of(model, replace(workload, mode="generation"), 1, new_tokens=8, prompt_tokens=2)
    assert whole == [model.encode("deep layers change")]


def fitted_on(documents: dict[str, tuple[str, ...]], texts: Any = None) -> Any:
    """Exit heads of which only this is asked."""
    return type("Heads", (), {"seen_documents": documents, "seen_texts": texts})()


def test_prompts_share_no_text_with_what_heads_were_fitted_on() -> None:
    words = np.random.default_rng(0).integers(0, 10_000, (2, 200)).astype(str)
    ours, theirs = (" ".join(row) for row in words)
    workload = text_workload(ours, f"{theirs} and then some", mode="generation")
    fitted = replace(text_workload(f"as somebody wrote: {theirs}"), name="other texts")
    heads = fitted_on({fitted.fingerprint: ("d0",)}, sketches_of(fitted, ["d0"]))
    model = tiny_llama()
    model = replace(model, context_length=None)
    assert prompts_of(model, workload, 1, new_tokens=8) == [model.encode(f"{theirs} and then some")]
    assert prompts_of(model, workload, 1, new_tokens=8, heads=[heads]) == [model.encode(ours)]
    with pytest.raises(InputError, match="2 were asked for"):
        prompts_of(model, workload, 2, new_tokens=8, heads=[heads])


def test_prompts_to_time_with_are_of_documents_that_chose_no_policy_while_there_are_so_many() -> None:
    model, workload = tiny_llama(), text_workload("the cat sat", "deep layers change")
    searched = tuple(map(write_sketch, sketches_of(workload, ["d1"])))

    def request(fewest: int, tuned: Any) -> Any:
        options = SimpleNamespace(tuned=tuned, heads=None, new_tokens=8)
        numbers = {"fewest_prompts": fewest, "most_prompts": 2, "prompt_tokens": 3, "batches": (1,)}
        return SimpleNamespace(options=options, text=workload, **numbers)

    first, second = (model.encode(document.text)[:3] for document in workload.documents)
    tuned = SimpleNamespace(document_texts={"search": searched, "certify": ()})
    assert prompts_for(model, request(1, None)) == ([second, first], ())
    assert prompts_for(model, request(1, tuned)) == ([first], ())
    assert prompts_for(model, request(2, tuned)) == ([second, first], (SEARCHED,))
    with pytest.raises(WorkloadError, match="3 were asked for"):
        prompts_for(model, request(3, tuned))


def test_each_kind_of_problem_has_its_turn() -> None:
    kinds = ["sum", "sum", "gcd", "sum", "lcm", "gcd"]
    documents = [Document(str(number), "text", kind=kind) for number, kind in enumerate(kinds)]
    assert [document.id for document in kinds_in_turn(documents)] == ["0", "2", "4", "1", "5", "3"]
    alike = [replace(document, kind=None) for document in documents]
    assert kinds_in_turn(alike) == alike
    problems = load_workload("continued:+48:math:short").documents
    assert len({document.kind for document in kinds_in_turn(problems)[:14]}) == 14


def test_prompts_leave_room_and_avoid_what_heads_were_fitted_on() -> None:
    model = tiny_llama()
    workload = text_workload("the cat sat", "deep layers change", "numbers such as 12", mode="generation")
    heads = fitted_on({workload.fingerprint: ("d2",)})
    assert prompts_of(model, workload, 1, new_tokens=8, heads=[heads]) == [model.encode("deep layers change")]
    others = fitted_on({workload.fingerprint: ("d1",), "another": ("d0",)})
    assert prompts_of(model, workload, 1, new_tokens=8, heads=[heads, others]) == [
        model.encode("the cat sat")
    ]
    with pytest.raises(InputError, match=r"has 2 prompts .* 3 were asked for"):
        prompts_of(model, workload, 3, new_tokens=8, heads=[heads])
    with pytest.raises(InputError, match="has 0 prompts that leave room for 127 new tokens"):
        prompts_of(model, workload, 1, new_tokens=127)


def test_prompts_longer_than_the_context_leaves_room_for_are_refused() -> None:
    model, workload = tiny_llama(), text_workload("the cat sat on the mat " * 20)
    (found,) = prompts_of(model, workload, 1, new_tokens=28, prompt_tokens=100)
    assert len(found) == 100
    with pytest.raises(
        InputError, match="prompts of 101 tokens do not leave room for 28 new tokens"
    ) as caught:
        prompts_of(model, workload, 1, new_tokens=28, prompt_tokens=101)
    assert "128 positions" in caught.value.what
    assert "lower --prompt-tokens to 100" in caught.value.fix


# --- of executions


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


def test_a_text_that_is_continued_is_decoded_from_its_first_tokens() -> None:
    """The same as starts of the texts, but that a shorter text is taken whole."""
    model = tiny_model(llama(), name="continues")
    work = replace(
        workload_of("", mode="generation", lengths=(9, 12, 20, 3, 8), vocabulary=58), prompt_tokens=6
    )
    found = trace(model, work, tokens=20, document_tokens=4, progress=False)
    openings = choose_openings(
        model, found, work, split_roles(found, 0), seed=0, prompt_tokens=4, new_tokens=8
    )
    by_id = {document.id: tuple(model.encode(document.text)) for document in work.documents}
    chosen = (*openings.certify, *openings.report)
    assert {len(one.ids) for one in chosen} == {3, 6}
    assert all(one.ids == by_id[one.document][:6] for one in chosen)


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
