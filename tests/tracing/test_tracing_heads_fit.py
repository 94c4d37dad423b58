"""Fitting heads of small models, against direct computations on states collected by hand."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting_cases import DOCUMENTS, plain_ridge, states_by_hand, texts
from tracing_models import NumberTokenizer, build_family, llama, tiny_llama, tiny_model, workload_of

from offramp.defaults import SHORTLIST
from offramp.errors import InputError, ModelError
from offramp.heads.described import describe_heads
from offramp.heads.exit_heads import ExitHeads, build_heads
from offramp.heads.file import read_heads, write_heads
from offramp.heads.parts import ExitReading
from offramp.tracing.facts import HEAD_FACTS, TRAINED_FACTS
from offramp.tracing.fitting.classifiers import KINDS
from offramp.tracing.fitting.fit import fit_heads, frequent_tokens
from offramp.tracing.fitting.fitting_documents import plan_rows, split_documents
from offramp.tracing.fitting.fitting_inputs import take_readings
from offramp.tracing.tracer import trace
from offramp.workloads.shared_text import sketches_of
from offramp.workloads.workload import Workload


@pytest.fixture(scope="module")
def fitted() -> ExitHeads:
    return fit_heads(tiny_llama(), texts(), tokens=800, progress=False)


def test_the_lens_is_a_ridge_regression_of_the_last_state(fitted: ExitHeads) -> None:
    model, workload = tiny_llama(), texts()
    parts = split_documents(workload, [0.5, 0.5], 0)
    planned = plan_rows(model, [(workload, parts[-1])], 600, context=None, shown=False)
    states, document = states_by_hand(model, planned.contexts)
    assert fitted.lens is not None
    held_out = planned.held_out[document]
    for index, penalty in enumerate(fitted.lens.penalty):
        x, y = states[index], states[-1]
        weight, bias = plain_ridge(x, y, penalty)
        np.testing.assert_allclose(fitted.lens.weight[index], weight, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(fitted.lens.bias[index], bias, atol=1e-3)
        # The explained share is that of a map fitted without the held-out documents.
        weight, bias = plain_ridge(x[~held_out], y[~held_out], penalty)
        error = y[held_out] - x[held_out] @ weight.T - bias
        explained = 1 - (error**2).sum() / ((y[held_out] - y[held_out].mean(0)) ** 2).sum()
        assert fitted.lens.explained[index] == pytest.approx(explained, abs=1e-4)


def test_reading_through_the_lens_agrees_more_often(fitted: ExitHeads) -> None:
    unseen = dataclasses.replace(texts(), documents=texts().documents[: DOCUMENTS // 2])
    plain = trace(tiny_llama(), unseen, tokens=400, progress=False).agreement.mean(0)
    through = trace(tiny_llama(), unseen, tokens=400, heads=fitted, progress=False).agreement.mean(0)
    assert through[0] > plain[0]
    assert through[-1] == 1.0


def test_readings_are_what_a_trace_of_the_same_tokens_says(fitted: ExitHeads) -> None:
    model, workload = tiny_llama(), texts(6)
    traced = trace(model, workload, tokens=100, heads=fitted, progress=False)
    planned = plan_rows(model, [(workload, workload.documents)], 100, context=None, shown=False)
    readings = take_readings(
        model, planned.contexts, (1, 2), ExitReading(fitted.lens), None, torch.arange(20), lambda tokens: None
    )
    np.testing.assert_array_equal(readings.agrees, traced.agreement[:, :-1])
    np.testing.assert_allclose(readings.max_prob, traced.max_prob[:, :-1], rtol=1e-4)
    np.testing.assert_allclose(readings.margin, traced.margin[:, :-1], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(readings.cosine, traced.hidden_cosine_to_final[:, :-1], rtol=1e-4)
    np.testing.assert_array_equal(readings.document, traced.document)
    listed = trace(
        model,
        workload,
        tokens=100,
        heads=dataclasses.replace(fitted, shortlist=np.arange(20, dtype=np.int32)),
        signals=["restricted"],
        progress=False,
    )
    short = listed.restricted_top1[:, :-1] == listed.top1[:, -1:]
    assert short.any()
    np.testing.assert_array_equal(readings.short_agrees, short)


def test_the_short_list_holds_the_tokens_that_follow_most_often() -> None:
    planned = plan_rows(tiny_llama(), [(texts(6), texts(6).documents)], 100, context=None, shown=False)
    followed = Counter(token for context in planned.contexts for token in context.next_tokens)
    found = frequent_tokens(planned.contexts, 5000)
    assert len(found) == SHORTLIST
    assert set(followed) <= set(found.tolist())
    filled = [token for token in range(5000) if token not in followed][: SHORTLIST - len(followed)]
    assert found.tolist() == sorted([*followed, *filled])
    heads = fit_heads(tiny_llama(), texts(), tokens=300, classifiers=False, short_list=9, progress=False)
    assert heads.shortlist is not None
    assert len(heads.shortlist) == 9
    assert describe_heads(heads)["short_list"] == 9


def test_candidates_are_the_best_tokens_of_the_candidate_exit(fitted: ExitHeads) -> None:
    model, workload = tiny_llama(), texts(4)
    planned = plan_rows(model, [(workload, workload.documents)], 60, context=None, shown=False)
    readings = take_readings(
        model, planned.contexts, (1, 2), ExitReading(), 0, torch.arange(20), lambda tokens: None
    )
    states, _ = states_by_hand(model, planned.contexts)
    logits = [model.stack.readout(torch.from_numpy(layer).float()[None])[0] for layer in states[:2]]
    tokens = logits[0].topk(8, dim=-1).indices
    assert readings.candidates is not None
    for index in range(2):
        expected = logits[index].gather(1, tokens)
        torch.testing.assert_close(readings.candidates[:, index], expected, rtol=1e-4, atol=1e-4)


def test_each_kind_predicts_its_own_label() -> None:
    model, workload = tiny_llama(), texts(6)
    planned = plan_rows(model, [(workload, workload.documents)], 100, context=None, shown=False)
    readings = take_readings(
        model, planned.contexts, (1, 2), ExitReading(), None, torch.arange(20), lambda tokens: None
    )
    cosine = torch.linspace(0.9, 1.0, 100)[:, None].expand(-1, 2)
    changed = dataclasses.replace(readings, cosine=cosine)
    np.testing.assert_array_equal(KINDS["convergence"].labels(changed, 1), cosine[:, 1].numpy() > 0.98)
    assert 0 < KINDS["convergence"].labels(changed, 1).sum() < 100
    for name in ("correctness", "correctness_network", "adainfer", "candidate_score"):
        np.testing.assert_array_equal(KINDS[name].labels(changed, 1), readings.agrees[:, 1])
    np.testing.assert_array_equal(KINDS["short_correctness"].labels(changed, 1), readings.short_agrees[:, 1])
    states, _ = states_by_hand(model, planned.contexts)
    np.testing.assert_allclose(KINDS["correctness"].features(changed, 1), states[1], rtol=1e-4, atol=1e-5)
    assert {*KINDS, *TRAINED_FACTS} == {fact.name for fact in HEAD_FACTS}


def test_fitting_reads_the_later_half_and_says_which_documents(fitted: ExitHeads) -> None:
    workload = texts()
    (ids,) = fitted.documents.values()
    assert set(fitted.documents) == {workload.fingerprint}
    later = {document.id for document in workload.documents[DOCUMENTS // 2 :]}
    assert set(ids) <= later
    assert (
        len(set(ids))
        == len(ids)
        == sum(fitted.provenance[part]["documents"] for part in ("lens", "classifiers"))
    )


@pytest.mark.parametrize(
    ("count", "seed", "share"),
    [(4, 0, 0.5), (5, 1, 0.5), (9, 0, 0.5), (40, 1, 0.5), (40, 0, 0.99), (40, 0, 0.01)],
)
def test_lens_and_classifiers_share_no_document(count: int, seed: int, share: float) -> None:
    workload = texts(count)
    first, second = split_documents(workload, [share, 1.0 - share], seed)
    assert len(first) >= 2
    assert len(second) >= 2
    assert not {document.id for document in first} & {document.id for document in second}
    taken = {document.id for document in (*first, *second)}
    assert taken == {document.id for document in workload.documents[-max(count // 2, 4) :]}


def test_fitting_again_gives_the_same_heads_and_a_workload_given_twice_counts_once(
    fitted: ExitHeads,
) -> None:
    again = fit_heads(tiny_llama(), [texts(), texts()], tokens=800, progress=False)
    assert again.fingerprint == fitted.fingerprint
    other = fit_heads(tiny_llama(), texts(), tokens=800, seed=1, classifiers=False, progress=False)
    assert fitted.lens is not None
    assert other.lens is not None
    assert not np.array_equal(other.lens.weight, fitted.lens.weight)
    with pytest.raises(InputError, match="no workload"):
        fit_heads(tiny_llama(), [], progress=False)


def test_only_what_is_asked_for_is_fitted() -> None:
    heads = fit_heads(
        tiny_llama(),
        texts(),
        tokens=300,
        exits=[2],
        lens=False,
        classifiers=("correctness", "adainfer"),
        progress=False,
    )
    assert heads.exits == (2,)
    assert heads.lens is None
    assert heads.candidate_exit is None
    assert list(heads.classifiers) == ["correctness", "adainfer"]
    assert heads.classifiers["correctness"].mean.shape == (1, 32)
    assert heads.classifiers["adainfer"].mean.shape == (1, 2)
    assert heads.provenance["lens"] is None
    assert heads.provenance["classifiers"]["tokens"] == 300
    lens_only = fit_heads(tiny_llama(), texts(), tokens=300, classifiers=False, progress=False)
    assert lens_only.classifiers == {}
    assert lens_only.provenance["lens"]["tokens"] == 300


def test_classifiers_do_not_read_first_positions_which_never_leave() -> None:
    model, workload = tiny_llama(), texts()
    heads = fit_heads(
        model, workload, tokens=300, exits=[2], lens=False, classifiers=["correctness"], progress=False
    )
    documents = split_documents(workload, [1.0], 0)[0]
    planned = plan_rows(model, [(workload, documents)], 300, context=None, shown=False)
    states, document = states_by_hand(model, planned.contexts)
    position = np.concatenate([np.arange(one.first_row, len(one.ids)) for one in planned.contexts])
    assert (position == 0).any()
    read = states[1, (position > 0) & ~planned.held_out[document]]
    np.testing.assert_allclose(heads.classifiers["correctness"].mean[0], read.mean(0), rtol=1e-4, atol=1e-6)


def test_there_is_no_candidate_score_up_to_the_candidate_exit() -> None:
    heads = fit_heads(
        tiny_llama(),
        texts(),
        tokens=900,
        lens=False,
        classifiers=["candidate_score"],
        candidate_exit=1,
        progress=False,
    )
    score = heads.classifiers["candidate_score"]
    assert heads.candidate_exit == 1
    assert score.mean.shape == (2, 24)
    assert np.isnan(score.auroc[0])
    assert not score.weights[0][0].any()
    assert score.weights[0][1].any()


def test_answers_of_prompts_serve_too() -> None:
    model = tiny_model(llama(), tokenizer=NumberTokenizer(chat=True), head_scale=3.0)
    prompts = workload_of(*[f"{number} 7 9" for number in range(6, 26)], mode="generation")
    heads = fit_heads(model, prompts, tokens=200, classifiers=["adainfer"], progress=False)
    assert heads.lens is not None
    assert np.isfinite(heads.lens.weight).all()


def test_a_bfloat16_model_is_fitted_in_float64() -> None:
    exact, rounded = (
        fit_heads(
            tiny_model(llama(), dtype=dtype, head_scale=3.0),
            texts(),
            tokens=600,
            classifiers=False,
            progress=False,
        )
        for dtype in ("float32", "bfloat16")
    )
    assert exact.lens is not None
    assert rounded.lens is not None
    np.testing.assert_allclose(rounded.lens.explained, exact.lens.explained, atol=0.03)


def test_a_sequence_with_a_number_that_is_not_finite_is_left_out() -> None:
    model = tiny_model(llama(), head_scale=3.0)
    clean = workload_of(lengths=[20] * 16, vocabulary=60)
    bad = dataclasses.replace(clean.documents[-1], text="5 60 7 8")
    poisoned = dataclasses.replace(clean, documents=(*clean.documents[:-1], bad))
    everything = dataclasses.replace(
        clean,
        documents=tuple(
            dataclasses.replace(document, text=f"5 60 {place}")
            for place, document in enumerate(clean.documents)
        ),
    )
    model.hf.model.embed_tokens.register_forward_hook(
        lambda module, arguments, output: output.masked_fill(arguments[0][..., None] == 60, torch.inf)
    )
    heads = fit_heads(model, poisoned, tokens=150, exits="1", classifiers=["correctness"], progress=False)
    assert heads.lens is not None
    assert np.isfinite(heads.lens.weight).all()
    for lens in (True, False):
        with pytest.raises(ModelError, match="not finite"):
            fit_heads(model, everything, tokens=20, lens=lens, classifiers=not lens, progress=False)


def test_logits_that_overflow_are_refused() -> None:
    model = tiny_model(llama(), head_scale=3.0)
    model.hf.lm_head.weight[5, :2] = torch.tensor([3e38, -3e38])  # finite, and so is their sum
    with pytest.raises(ModelError, match="logits that are not finite"):
        fit_heads(model, texts(), tokens=200, lens=False, progress=False)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            {"classifiers": ["corectness"]},
            "unknown exit classifier 'corectness'",
        ),
        ({"lens": False, "classifiers": False}, "lens must be on where neither classifiers nor"),
        ({"exits": [3]}, "no exit below the last layer"),
        ({"exits": [7]}, "no exit 7"),
        ({"short_list": 3}, "short list of 3 tokens"),
        ({"short_list": 62}, "short list of 62 tokens"),
        ({"exits": [1, 2], "candidate_exit": 3}, "candidate exit 3 is not among"),
        ({"tokens": 0}, "tokens must be at least 1"),
        ({"tokens": 8, "lens": False}, "all of one document"),
        ({"context": 4096}, "longer than the model's"),
        ({"workload": texts(3)}, "has 3 documents; fitting needs 4"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], why: str) -> None:
    workload = options.get("workload", texts())
    options = {name: value for name, value in options.items() if name != "workload"}
    with pytest.raises(InputError, match=why):
        fit_heads(tiny_llama(), workload, progress=False, **options)


def test_layers_with_several_streams_are_refused() -> None:
    model = tiny_model(build_family("gemma3n_text"), tokenizer=NumberTokenizer(bos=2))
    with pytest.raises(ModelError, match="not one hidden state"):
        fit_heads(model, texts(), progress=False)


def test_sums_beyond_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.tracing.fitting.maps.MEMORY_SHARE", 1e-9)
    with pytest.raises(InputError, match="sums of a linear lens at 2 exits take") as caught:
        fit_heads(tiny_llama(), texts(), progress=False)
    assert "--no-lens" in caught.value.fix


# -- documents that share text


def repeated(workload: Workload, *places: tuple[int, int]) -> Workload:
    """The workload with some documents' texts put in place of others'."""
    documents = list(workload.documents)
    for source, place in places:
        documents[place] = dataclasses.replace(documents[place], text=documents[source].text)
    return dataclasses.replace(workload, documents=tuple(documents))


def test_the_lens_and_the_classifiers_share_no_text() -> None:
    """Every document twice: neither the parts nor what is held out of them repeats what the other read."""
    clean = texts(40)
    doubled = repeated(clean, *((place, place + 10) for place in range(20, 30)))
    heads = fit_heads(tiny_llama(), doubled, tokens=1000, classifiers=["correctness"], progress=False)
    read = {document.id: document.text for document in doubled.documents}
    (ids,) = heads.documents.values()
    lens = heads.provenance["lens"]["documents"]
    parts = [{read[id] for id in ids[:lens]}, {read[id] for id in ids[lens:]}]
    assert not parts[0] & parts[1]
    assert parts[1]


def test_what_is_held_out_shares_no_text_with_what_is_fitted() -> None:
    workload = repeated(texts(9), (0, 1), (2, 4))
    model, parts = tiny_llama(), [(workload, workload.documents)]
    planned = plan_rows(model, parts, 500, context=None, shown=False)
    # Groups 0+1, 2+4, 3, 5, 6, 7, 8: the second and the fifth.
    assert np.flatnonzero(planned.held_out).tolist() == [2, 4, 6]
    other = workload_of(workload.documents[2].text, workload.documents[8].text, "4 5 6 7", "8 9 10 11")
    planned = plan_rows(model, [*parts, (other, other.documents)], 1000, context=None, shown=False)
    # Of the other workload two documents are known, so its second group is its last document.
    assert np.flatnonzero(planned.held_out).tolist() == [2, 4, 6, 9, 12]
    assert [len(ids) for ids in planned.ids.values()] == [9, 4]
    assert {context.document for context in planned.contexts} == set(range(13))
    with pytest.raises(InputError, match="the 2 documents share text with each other"):
        plan_rows(model, [(workload, workload.documents[:2])], 500, context=None, shown=False)


def test_documents_that_all_repeat_each_other_leave_none_for_the_classifiers() -> None:
    clean = texts(12)
    of_classifiers, of_lens = split_documents(clean, [0.5, 0.5], 0)
    places = {document.id: place for place, document in enumerate(clean.documents)}
    pairs = [(places[one.id], places[other.id]) for one, other in zip(of_lens, of_classifiers, strict=True)]
    workload = repeated(clean, *pairs)
    with pytest.raises(InputError, match="so none can be judged on"):
        fit_heads(tiny_llama(), repeated(texts(6), *((5, n) for n in range(5))), tokens=300, progress=False)
    with pytest.raises(InputError, match="share text with documents for the lens"):
        fit_heads(tiny_llama(), workload, tokens=300, progress=False)


def test_heads_keep_what_they_read_and_say_so_in_their_file(fitted: ExitHeads, tmp_path: Path) -> None:
    workload = texts()
    (ids,) = fitted.documents.values()
    assert fitted.texts is not None
    for sketch, expected in zip(fitted.texts, sketches_of(workload, ids), strict=True):
        assert np.array_equal(sketch, expected)
    write_heads(fitted, tmp_path / "heads")
    again = read_heads(tmp_path / "heads")
    assert again.texts is not None
    assert [one.tolist() for one in again.texts] == [one.tolist() for one in fitted.texts]
    assert again.fingerprint == fitted.fingerprint
    # A file has workloads in the order of their fingerprints, whatever the order they were given in.
    given = sorted((texts(12), texts(9)), key=lambda work: work.fingerprint, reverse=True)
    two = fit_heads(tiny_llama(), given, tokens=300, exits=[1], classifiers=(), progress=False)
    write_heads(two, tmp_path / "two")
    read = read_heads(tmp_path / "two")
    assert read.texts is not None
    of_file = [
        sketch
        for fingerprint, seen in read.documents.items()
        for work in given
        if work.fingerprint == fingerprint
        for sketch in sketches_of(work, seen)
    ]
    for sketch, expected in zip(read.texts, of_file, strict=True):
        assert np.array_equal(sketch, expected)
    arrays = fitted.arrays()
    hashes, sizes = arrays["texts.hashes"], arrays["texts.sizes"]
    for wrong in (
        {"texts.sizes": sizes[:-1]},
        {"texts.hashes": np.append(hashes, hashes[:1])},
        {"texts.hashes": hashes[:-1]},
        {"texts.sizes": sizes.astype(np.int32)},
        {"texts.sizes": np.append(sizes[:-2], [sizes[-2:].sum(), 0])},
    ):
        with pytest.raises(InputError, match="sketches of their texts do not belong"):
            build_heads(fitted.header(), arrays | wrong, "here")


def test_a_trace_knows_the_documents_that_share_text_with_what_heads_read(fitted: ExitHeads) -> None:
    """Of another workload: the documents have other ids, and lie inside longer ones."""
    workload = texts()
    (ids,) = fitted.documents.values()
    read = next(document.text for document in workload.documents if document.id == ids[0])
    unread = next(document.text for document in workload.documents if document.id not in ids)
    other = workload_of(f"1 2 3 4 5 6 7 8 {read} 9 9 9", unread, "60 59 58 57", read)
    found = trace(tiny_llama(), other, tokens=500, heads=fitted, progress=False)
    assert [document.heads_saw for document in found.documents] == [True, False, False, True]
    assert found.request["heads"]["texts"] is True
    plain = trace(tiny_llama(), other, tokens=500, progress=False)
    assert not any(document.heads_saw for document in plain.documents)
    assert [document.text for document in plain.documents] == [document.text for document in found.documents]
