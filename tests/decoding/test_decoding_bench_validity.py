"""Every rule of the verdict, each broken by a constructed case; and figures against hand-worked numbers."""

from __future__ import annotations

from typing import Any

import pytest
from bench_cases import LAYERS, NEW_TOKENS, QUIET, TOKENS, Fake, fakes, result_of

from offramp.decoding.bench.contenders import GENERATE, NEVER, NEVER_AGAIN
from offramp.decoding.bench.results import Interval
from offramp.decoding.bench.validity import CHECKS

POLICY = "static:exit=3 (propagate)"
OTHER = ((1, 2, 3, 4, 5),), ((6, 7, 99, 9, 10),)


def test_a_quiet_honest_run_is_valid() -> None:
    result = result_of(fakes())
    assert (result.validity, result.reasons, result.notes) == ("VALID", (), ())


def test_the_figures() -> None:
    result = result_of(fakes())
    assert result.plain == NEVER
    policy = result.contender(POLICY)
    assert policy.samples == pytest.approx((0.05,) * 6)
    assert policy.speedup == Interval(pytest.approx(2.0), pytest.approx(2.0), pytest.approx(2.0))
    assert policy.tokens_per_second == pytest.approx(20.0)
    assert policy.first_token_seconds == 0.5
    assert (policy.layers_per_token, policy.claimed_layers_per_token) == (3.0, 3.0)
    assert policy.peak_memory_bytes == 2**20
    assert result.contender(GENERATE).speedup == Interval(*[pytest.approx(1 / 1.1)] * 3)
    assert result.a_a == Interval(1.0, 1.0, 1.0)
    assert (result.rounds, result.prompts, result.batch, result.new_tokens) == (3, 2, 1, NEW_TOKENS)


def test_the_fastest_plain_decoder_is_the_denominator() -> None:
    fast = Fake("generate(static cache)", "plain", [0.08] * 6)
    peer = Fake("a peer", "peer", [0.01] * 6, claimed=None, counted=1)
    result = result_of(fakes(fast, peer))
    assert result.plain == fast.name
    assert result.contender(POLICY).speedup == Interval(*[pytest.approx(1.6)] * 3)
    assert result.contender("a peer").speedup == Interval(*[pytest.approx(8.0)] * 3)


BROKEN: dict[str, tuple[list[Fake], dict[str, Any], str]] = {
    "outputs": (
        fakes(Fake("lossless", "policy", [0.1] * 6, tokens=OTHER, must_match=True)),
        {},
        "lossless must give the full model's output, but new token 3 of prompt 2 is 99 instead of 8",
    ),
    "layers": (
        fakes(Fake("liar", "policy", [0.1] * 6, claimed=3, counted=4)),
        {},
        "liar says that it ran 3 layers a token, but 4 ran",
    ),
    "samples": (
        [
            Fake(one.name, one.role, one.seconds[:4], one.claimed, one.counted, must_match=one.must_match)
            for one in fakes()
        ],
        {},
        "there are too few samples for an interval: 4 of each contender, 6 are needed",
    ),
    "identical contenders": (
        fakes(again=[0.1, 0.1, 0.1, 0.1, 0.097, 0.097]),
        {},
        "two identical contenders come out unequal: ratio 1.000 [1.000, 1.031], allowed 0.98 to 1.02",
    ),
    "noise": (
        fakes(again=[0.1, 0.08, 0.12, 0.1, 0.08, 0.12]),
        {},
        "identical runs side by side spread by 31% between their quartiles, allowed 10%",
    ),
    "other work": (fakes(), {"other_load": 0.9}, "other work kept 0.9 processors busy, 0.3 are tolerable"),
    "waiting threads": (fakes(), {"omp_wait_policy": None}, "OMP_WAIT_POLICY is not set"),
}


def test_every_rule_has_a_case() -> None:
    assert set(BROKEN) == {check.name for check in CHECKS}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_rule_is_named_with_what_to_do(name: str) -> None:
    contenders, circumstances, sentence = BROKEN[name]
    check = next(check for check in CHECKS if check.name == name)
    result = result_of(contenders, **circumstances)
    said = [line for line in (result.notes if check.warns else result.reasons) if sentence in line]
    assert len(said) == 1
    assert said[0].endswith(f"({check.fix})")
    assert result.validity == ("VALID" if check.warns else "INVALID")
    quiet = result_of(fakes())
    assert not any(sentence in line for line in (*quiet.reasons, *quiet.notes))


def test_all_reasons_are_given_and_wrong_results_come_first() -> None:
    liar = Fake("liar", "policy", [0.1] * 6, claimed=3, counted=4, tokens=OTHER, must_match=True)
    result = result_of(fakes(liar, again=[0.1, 0.08, 0.12] * 2), other_load=2.0)
    assert len(result.reasons) == 5
    assert result.reasons[0].startswith("liar must give")
    assert result.reasons[1].startswith("liar says")


def test_another_output_is_fine_where_it_may_differ() -> None:
    result = result_of(fakes(Fake("lossy", "policy", [0.1] * 6, tokens=OTHER)))
    assert result.validity == "VALID"
    assert result.contender("lossy").same_output == 0.5
    assert result.contender(POLICY).same_output == 1.0


def test_an_output_that_changes_between_decodings_is_not_the_same() -> None:
    # Every second timed decoding of the first prompt differs; the untimed one does not.
    turned = Fake(
        "moody", "plain", [0.1] * 6, tokens=(*TOKENS, ((1, 2, 3, 4, 6),), TOKENS[1]), must_match=True
    )
    result = result_of(fakes(turned))
    assert result.contender("moody").same_output == 0.5
    assert "new token 5 of prompt 1 is 6 instead of 5" in result.reasons[0]


def test_who_says_nothing_of_layers_does_not_lie() -> None:
    result = result_of(fakes(Fake("a peer", "peer", [0.1] * 6, claimed=None, counted=LAYERS + 2)))
    assert result.validity == "VALID"
    assert result.contender("a peer").layers_per_token == LAYERS + 2
    assert result.contender("a peer").claimed_layers_per_token is None


def test_free_processors_may_be_busy() -> None:
    assert result_of(fakes(), cores=16, threads=4, other_load=12.2).validity == "VALID"
    assert result_of(fakes(), cores=16, threads=4, other_load=12.4).validity == "INVALID"


def test_the_twin_is_not_a_denominator() -> None:
    result = result_of(fakes(again=[0.0999] * 6))
    assert result.plain == NEVER
    assert result.contender(NEVER_AGAIN).role == "a/a"
    assert QUIET["other_load"] < 0.3
