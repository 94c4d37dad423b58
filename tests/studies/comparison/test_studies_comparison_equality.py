"""What may be compared: other texts, token counts and models of one name are refused, or said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from comparison_traces import bare_row, floor, with_card

from comparison_examples import answer, card, decided
from offramp.errors import InputError
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.equality import per_byte_notes, require_equal, without_twins
from offramp.studies.comparison.results import Row

A = bare_row("a", "prose", source="study one")
B = bare_row("b", "prose", source="run two")


def test_equals_are_compared_without_a_word() -> None:
    other = bare_row("b", "code", tokens=640, workload_fingerprint="c")
    assert require_equal([A, B, other], mixed=False) == ()


SETTINGS = {"dtype": "float32", "context": 512, "document_tokens": None}


def alike(row: Row, **changes: object) -> Row:
    return replace(row, settings={**SETTINGS, **changes})


def with_exits(*exits: int) -> Row:
    return replace(alike(B), card=card(exits=exits))


@pytest.mark.parametrize(
    ("row", "what", "fix"),
    [
        (with_card(B, tokens=1900), "1,920 and 1,900 tokens of prose were traced", "with the same --tokens"),
        (
            replace(B, workload_fingerprint="f" * 64),
            "the workload prose is not the same text everywhere: fingerprints prose and ffffffffffff",
            "on the same version of the text",
        ),
        (
            alike(B, dtype="bfloat16"),
            "prose was traced with --dtype float32 and bfloat16",
            "file: dtype",
        ),
        (alike(B, context=128), "prose was traced with --context 512 and 128", "file: context"),
        (
            alike(B, document_tokens=32),
            "prose was traced with --document-tokens by default and 32",
            "file: document_tokens",
        ),
        (with_exits(2, 4, 6), "prose was traced at the exits all and 2, 4, 6: ", "the same --exits"),
        (with_exits(1, 2, 3, 4, 6), "prose was traced at the exits all and 1, 2, 3, 4, 6: ", "--exits"),
        (with_exits(3, 9, 12), "prose was traced at the exits all and 3, 9, 12: ", "the same --exits"),
    ],
    ids=lambda part: part if isinstance(part, str) else "",
)
def test_what_is_not_equal_is_refused_unless_asked_for(row: Row, what: str, fix: str) -> None:
    rows = [alike(A), row]
    with pytest.raises(InputError) as refused:
        require_equal(rows, mixed=False)
    assert refused.value.what.startswith(what)
    assert fix in refused.value.fix
    assert refused.value.fix.endswith(", or give --mixed to offramp compare or offramp study report")
    assert refused.value.where == "a of study one and b of run two"
    (note,) = require_equal(rows, mixed=True)
    assert note.startswith(f"Not of equals: {what}")
    assert refused.value.where in note


def test_settings_are_held_together_on_one_text_and_only_where_they_are_known() -> None:
    assert require_equal([alike(A), alike(B)], mixed=False) == ()
    assert require_equal([alike(A), alike(bare_row("b", "code"), dtype="bfloat16")], mixed=False) == ()
    assert require_equal([alike(A), replace(B, settings={"dtype": "float32"})], mixed=False) == ()
    unknown = bare_row("c", "prose")  # it comes first, and hides no difference of those behind it
    with pytest.raises(InputError, match="--context 512 and 256"):
        require_equal([unknown, alike(A), alike(B, context=256)], mixed=False)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1, 2, 3, 4), (1, 2, 3)),  # all, of a model and of one with a layer less
        ((2, 4, 6), (2, 4, 5)),  # 2 and 4, of models of 6 and 5 layers
        ((2, 4, 6), (2, 4)),
    ],
)
def test_exits_that_were_asked_for_alike_are_equal(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    rows = [replace(A, card=card(exits=first)), with_exits(*second)]
    assert require_equal(rows, mixed=False) == ()
    assert require_equal(rows[::-1], mixed=False) == ()


def test_some_exits_are_not_others() -> None:
    with pytest.raises(InputError, match="at the exits 3, 6, 9, 12 and 3, 6:"):
        require_equal([replace(A, card=card(exits=(3, 6, 9, 12))), with_exits(3, 6)], mixed=False)


def test_two_models_of_one_name_are_refused() -> None:
    first = replace(A, model_fingerprint="1" * 64)
    other = replace(bare_row("a", "code"), model_fingerprint="2" * 64)
    with pytest.raises(InputError, match="two models are called a: fingerprints 111111111111 and 2222"):
        require_equal([first, A, other], mixed=False)
    assert require_equal([first, replace(other, model_fingerprint="")], mixed=False) == ()
    int8 = bare_row("a", "prose", transform="int8", model_fingerprint="3" * 64)
    assert require_equal([first, int8], mixed=False) == ()


def test_a_row_that_is_in_two_folders_is_shown_once_with_the_answers_of_both() -> None:
    answers = tuple(answer(Estimate(1.0), "", machine=machine) for machine in ("x", "y"))
    verdicts = {(tuned.floor, tuned.machine): decided(tuned) for tuned in answers}
    here = {(answers[0].floor, "x"): replace(decided(answers[0]), reason="decided here")}
    first = replace(A, answers=answers[:1], verdicts=here, exit_speedup={floor(0.9, "x"): 1.5})
    speedups = {floor(0.9, "x"): 1.6, floor(0.9, "y"): 2.0}
    other = replace(A, answers=answers, verdicts=verdicts, exit_speedup=speedups, source="study two")
    (row,) = without_twins([first, other])
    assert row.answers == answers
    # Pages look the verdict of every answer up.
    assert row.verdicts == {**verdicts, **here}
    assert row.exit_speedup == {floor(0.9, "x"): 1.5, floor(0.9, "y"): 2.0}
    assert row.source == "study one"


def test_a_row_that_is_in_two_folders_with_other_results_is_refused() -> None:
    other = replace(with_card(A, candidates={"composite": 0.3}), source="study two")
    with pytest.raises(InputError, match="a · prose is there twice, with different results") as refused:
        without_twins([A, B, other])
    assert refused.value.where == "a of study one and a of study two"
    assert len(without_twins([A, replace(other, heads="lens")])) == 2


def test_what_rounding_explains_is_no_other_result() -> None:
    scores = {"composite": 0.25, "mean_kl": 4.0, "eas_logit": None}
    first = with_card(A, candidates=scores)
    near = with_card(A, candidates={**scores, "composite": 0.2505, "mean_kl": 4.003})
    assert without_twins([first, near]) == (first,)
    for other in ({**scores, "composite": 0.252}, {**scores, "eas_logit": 0.5}, {"composite": 0.25}):
        with pytest.raises(InputError, match="with different results"):
            without_twins([first, with_card(near, candidates=other)])


def test_tokens_of_other_lengths_are_said() -> None:
    rows = [bare_row("a", "prose", bytes_per_token=4.0), bare_row("b", "prose", bytes_per_token=4.8)]
    (note,) = per_byte_notes([*rows, bare_row("c", "prose"), bare_row("a", "code", bytes_per_token=1.0)])
    assert note.startswith("On prose a token of a is 4.00 bytes of text, one of b 4.80: nats per token")
    assert per_byte_notes([rows[0], bare_row("b", "prose", bytes_per_token=4.01)]) == ()
    assert per_byte_notes([A, B]) == ()
    assert per_byte_notes([rows[0], replace(rows[1], own_text=True)]) == ()  # another text, not other tokens
