"""The baselines by rule: which take part on a model, what is known of them, and which may be the best."""

from __future__ import annotations

import pytest
import torch
from bench_cases import made_up_result

from offramp.errors import InputError
from offramp.models.transforms.quantise import Int4, Int8
from offramp.scoring.estimate import Estimate
from offramp.studies.work.baselines import TimedBaselines, best_at, known_of
from offramp.testing.transforms import example_model
from offramp.timing.baselines import BY_RULE, by_rule
from offramp.timing.results import NO_TIME, Contender
from offramp.timing.variants import sharing_weights
from offramp.tuning.baseline import Baseline


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (Int4, Int8):
        monkeypatch.setattr(kind, "check", lambda self, dtype=None: None)


@pytest.mark.usefixtures("able")
def test_a_processor_has_a_model_in_few_bits_alone_and_with_a_short_list() -> None:
    assert by_rule(None, (), "llama") == BY_RULE == ("int4", "int4 + shortlist", "int8", "int8 + shortlist")
    assert by_rule("cpu", ("prune:drop=2",), None) == BY_RULE
    assert by_rule("cuda", (), "llama") == ()
    assert by_rule(None, ("prune:drop=2", "int8"), "llama") == ()
    assert by_rule(None, (), "mixtral") == ()  # whose experts are no linear modules


def test_bits_without_a_kernel_here_are_no_baseline(monkeypatch: pytest.MonkeyPatch, able: None) -> None:
    def refuse(self: Int8, dtype: str | None = None) -> None:
        raise InputError("no kernel")

    monkeypatch.setattr(Int8, "check", refuse)
    assert by_rule(None, (), "llama") == ("int4", "int4 + shortlist")


def test_of_each_floor_the_fastest_that_keeps_it() -> None:
    known = (Baseline("a", 0.4, 0.93), Baseline("b", 0.5, 0.98), Baseline("c", 0.6, 0.97))
    assert best_at(known, (0.9, 0.95)) == ("a", "b")
    assert best_at(known, (0.99,)) == ()
    assert best_at(known, (0.9, 0.93)) == ("a",)
    assert best_at((), (0.9,)) == ()


def test_what_is_known_is_the_lower_limit_of_what_was_timed_and_judged() -> None:
    """Neither policies with exits, nor what was left out or not judged, nor plain decoders."""
    kept, depth = Estimate(0.97), {"full_depth": True}
    known = known_of(
        made_up_result(
            Contender("int8", "peer", ratio=Estimate(1.5, 1.25, 1.8), executed_agreement=kept, **depth),
            Contender("int4", "peer", ratio=Estimate(2.0), executed_agreement=Estimate(0.9), **depth),
            Contender("with exits", "peer", ratio=Estimate(9.0), executed_agreement=kept),
            Contender("not judged", "peer", ratio=Estimate(9.0), **depth),
            Contender("left out", "peer", left_out=NO_TIME, executed_agreement=kept, **depth),
        )
    )
    assert known == (Baseline("int4", 0.5, 0.9), Baseline("int8", 0.8, 0.97))


def test_what_is_clearly_slower_at_every_floor_is_not_timed_again() -> None:
    """Not where limits touch, nor where what is faster breaks a floor; never a plain decoder."""
    kept, depth = Estimate(1.0), {"full_depth": True}
    bench = made_up_result(
        Contender("int4", "peer", ratio=Estimate(2.0, 1.8, 2.2), executed_agreement=Estimate(0.96), **depth),
        Contender("int8", "peer", ratio=Estimate(1.4, 1.3, 1.5), executed_agreement=Estimate(0.995), **depth),
        Contender("list", "short list", ratio=Estimate(1.2, 1.1, 1.29), executed_agreement=kept, **depth),
        Contender("near", "peer", ratio=Estimate(1.2, 1.1, 1.31), executed_agreement=kept, **depth),
        Contender("not judged", "peer", ratio=Estimate(0.8, 0.7, 0.9), **depth),
        Contender("no interval", "peer", ratio=Estimate(0.8), executed_agreement=kept, **depth),
        Contender("generate()", "plain", ratio=Estimate(0.9, 0.8, 1.0), **depth),
        Contender("with exits", "policy", ratio=Estimate(0.9, 0.8, 1.0)),
    )
    slower = TimedBaselines(bench).slower
    assert slower((0.9, 0.99)) == {"list": "int8", "not judged": "int8"}
    assert slower((0.9, 0.95)) == dict.fromkeys(("int8", "list", "near", "not judged"), "int4")
    assert slower((0.999,)) == {"not judged": "list"}
    assert slower((1.0001,)) == {"not judged": "generate()"}
    assert TimedBaselines(None, "no prompts").slower((0.9,)) == {}


def test_modules_of_their_own_hold_the_same_tensors() -> None:
    model = example_model()
    ids = torch.tensor([[5, 9, 33, 7]])
    before = model.hf(input_ids=ids).logits
    other = sharing_weights(model)
    own, theirs = dict(model.hf.named_parameters()), dict(other.hf.named_parameters())
    assert all(own[name] is theirs[name] for name in own)
    assert not {id(module) for module in model.hf.modules()} & {id(module) for module in other.hf.modules()}
    assert torch.equal(other.hf(input_ids=ids).logits, before)
    Int8().apply(other)
    assert torch.equal(model.hf(input_ids=ids).logits, before)
    changed = dict(other.hf.named_parameters())
    assert {name for name in own if changed[name] is not own[name]} == {n for n in own if "_proj" in n}
