"""The public interface from Python, on a tiny model: what DESIGN's contract promises so far."""

from __future__ import annotations

import inspect
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import offramp
from offramp.tracing.facts import FACTS
from tiny_models import LAYERS, VOCABULARY, write_documents

FACT_NAMES = (
    *("top1", "max_prob", "margin", "entropy", "kl_to_final", "nll", "final_rank", "final_logprob"),
    *("logit_cosine", "centred_logit_cosine", "shuffled_logit_cosine", "hidden_cosine_to_final"),
    *("hidden_cosine_to_previous", "update_norm"),
)
TOKENS = 900
STRATEGIES = Path(__file__).parents[1] / "studies" / "strategies.toml"


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> offramp.Model:
    return offramp.load_model(str(tiny_model), dtype="float32")


@pytest.fixture(scope="module")
def workload(documents: Path) -> str:
    return f"jsonl:{documents}#text"


@pytest.fixture(scope="module")
def trace(model: offramp.Model, workload: str) -> offramp.Trace:
    return offramp.trace(model, workload, tokens=TOKENS, exits="all", signals=(), heads=None)


def test_every_public_name_is_there_and_documented() -> None:
    for name in offramp.__all__:
        assert inspect.getdoc(getattr(offramp, name)), name
    parameters = inspect.signature(offramp.trace).parameters
    assert list(parameters)[:6] == ["model", "workload", "tokens", "exits", "signals", "heads"]
    assert [parameters[name].default for name in ("exits", "signals", "heads")] == ["all", (), None]
    assert dir(offramp) == sorted(offramp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        offramp.no_such_name  # noqa: B018


def test_help_begins_with_the_public_names() -> None:
    """Python lists a package's contents before its names: what the module says itself stands above them."""
    shown = pydoc.render_doc(offramp, renderer=pydoc.plaintext)
    said, _, listed = shown.partition("\nPACKAGE CONTENTS\n")
    assert set(offramp.__all__) <= set(re.findall(r"\w+", said))
    functions = listed.partition("\nFUNCTIONS\n")[2]
    shown_functions = set(re.findall(r"^    (\w+)(?:\(| = )", functions, flags=re.MULTILINE))
    assert shown_functions == {name for name in offramp.__all__ if inspect.isfunction(getattr(offramp, name))}
    assert "\nDATA\n" not in listed


def test_importing_and_reading_back_load_no_torch(trace_folder: Path) -> None:
    program = (
        "import sys, offramp\n"
        f"trace = offramp.Trace.load({str(trace_folder)!r})\n"
        "card = offramp.score(trace)\n"
        "result = offramp.replay(trace, offramp.parse_policy('static:exit=2'))\n"
        "offramp.judge(trace)\n"
        "offramp.load_workload('chat')\n"
        "offramp.compare\n"
        f"assert offramp.read_study({str(STRATEGIES)!r}).name == 'strategies'\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()\n"
        "print(trace.max_prob.shape, card.representation.value, result.skip_ratio)\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"({TOKENS}, {LAYERS}) ")


@pytest.fixture(scope="module")
def trace_folder(tmp_path_factory: pytest.TempPathFactory, model: offramp.Model, workload: str) -> Path:
    folder = tmp_path_factory.mktemp("traces") / "trace"
    offramp.trace(model, workload, TOKENS, output=folder)
    return folder


def test_what_python_prints_of_a_result_is_a_line(model: offramp.Model, trace: offramp.Trace) -> None:
    policy = offramp.parse_policy("static:exit=2")
    results = (
        model,
        trace,
        offramp.load_workload("chat"),
        offramp.score(trace),
        offramp.replay(trace, policy),
        offramp.frontier(trace, "margin", (2,)),
        offramp.judge(trace)[0],
        offramp.rerun(model, trace, policy),
        offramp.generate(model, "the cat", policy=policy, max_new_tokens=4),
    )
    for result in results:
        assert repr(result).startswith(f"{type(result).__name__}("), repr(result)
        assert "array(" not in repr(result)
        assert len(repr(result)) < 400, repr(result)


def test_a_notebook_shows_a_replay_and_a_generated_text(model: offramp.Model, trace: offramp.Trace) -> None:
    shown = offramp.replay(trace, "static:exit=2")._repr_html_()
    assert "static:" in shown
    made = offramp.generate(model, "the cat", policy="static:exit=2", max_new_tokens=6)
    assert isinstance(made, offramp.Generation)
    assert "".join(made.pieces) == made.text
    page = made._repr_html_()
    left = [exit for piece, exit in zip(made.pieces, made.exits, strict=True) if piece]
    assert page.count("class=&quot;t e") == len(left)
    assert page.count("class=&quot;t e2") == left.count(2) > 0


def test_trace_by_position_and_by_keyword_are_the_same(model: offramp.Model, workload: str) -> None:
    first = offramp.trace(model, workload, 64, "2,4", (), None)
    second = offramp.trace(
        heads=None, signals=(), exits=[2, 4], tokens=64, workload=offramp.load_workload(workload), model=model
    )
    assert first.exits.tolist() == second.exits.tolist() == [2, 4]
    assert np.array_equal(first.kl_to_final, second.kl_to_final)
    for option in ({"signals": ("top_k",)}, {"heads": "no/such.safetensors"}):
        with pytest.raises(offramp.InputError, match=r"top_k|no/such\.safetensors"):
            offramp.trace(model, workload, **option)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["tokens", "document_tokens", "memory"])
def test_a_count_of_a_trace_is_one_at_least(model: offramp.Model, workload: str, option: str) -> None:
    with pytest.raises(offramp.InputError, match="must be at least 1, not 0"):
        offramp.trace(model, workload, **{option: 0})  # type: ignore[arg-type]
    with pytest.raises(offramp.InputError, match="tokens must be at least 1, not 0"):
        offramp.exit_scores(model, workload=workload, tokens=0)


def test_facts_are_arrays_of_tokens_and_exits(trace: offramp.Trace) -> None:
    assert {fact.name for fact in FACTS} == set(FACT_NAMES)
    for name in FACT_NAMES:
        column = getattr(trace, name)
        assert isinstance(column, np.ndarray)
        assert column.shape == (TOKENS, LAYERS)
        assert column.dtype == (np.int32 if name in ("top1", "final_rank") else np.float32)
        assert np.isfinite(column).all()
    assert trace.exits.tolist() == list(range(1, LAYERS + 1))
    for name in ("token", "next_token", "document", "position"):
        assert getattr(trace, name).shape == (TOKENS,)
    assert (trace.token < VOCABULARY).all()
    assert (trace.position >= 1).all(), "position 0 is the BOS token, which is no row"
    within = trace.document[1:] == trace.document[:-1]
    assert np.array_equal(trace.next_token[:-1][within], trace.token[1:][within])
    with pytest.raises(AttributeError):
        trace.no_such_fact  # noqa: B018


def test_a_trace_is_read_back_equal(trace: offramp.Trace, trace_folder: Path) -> None:
    for folder in (trace_folder, str(trace_folder)):
        back = offramp.Trace.load(folder)
        for name in (*FACT_NAMES, "token", "next_token", "document", "position", "exits"):
            assert np.array_equal(getattr(back, name), getattr(trace, name)), name
    assert offramp.score(back).to_json() == offramp.score(trace).to_json()


def test_the_score_card(trace: offramp.Trace) -> None:
    card = offramp.score(trace)
    for name in ("representation", "increment", "calibration", "composite"):
        estimate = getattr(card, name)
        assert 0 <= estimate.value <= 1
        assert estimate.low <= estimate.value <= estimate.high
    eas = card.eas(similarity="hidden", alpha=0.25)
    assert (eas.similarity, eas.alpha) == ("hidden", 0.25)
    assert eas.floor < eas.ceiling
    assert card.eas().score.value == card.eas("centred_logit", 0.5).score.value
    with pytest.raises(offramp.OfframpError, match="cosine"):
        card.eas(similarity="cosine")
    with pytest.raises(offramp.OfframpError, match="alpha"):
        card.eas(alpha=0)


def test_errors_have_three_parts(tmp_path: Path) -> None:
    for call in (
        lambda: offramp.load_model(str(tmp_path)),
        lambda: offramp.load_workload("proes"),
        lambda: offramp.parse_policy("statik"),
        lambda: offramp.Trace.load(tmp_path),
    ):
        with pytest.raises(offramp.InputError) as error:
            call()
        assert error.value.what
        assert error.value.fix
        assert error.value.fix in str(error.value)


def test_generation_mode_traces_what_the_model_said(model: offramp.Model) -> None:
    trace = offramp.trace(model, "chat", tokens=64)
    assert trace.generated.all()
    within = trace.document[1:] == trace.document[:-1]
    said = trace.top1[:-1, -1][within]
    assert np.array_equal(said, trace.token[1:][within]), "greedy answers are the full model's top-1"


def test_documents_of_a_workload_are_kept_apart(model: offramp.Model, tmp_path: Path) -> None:
    path = write_documents(tmp_path / "two.jsonl", documents=2, words=200)
    trace = offramp.trace(model, f"jsonl:{path}#text", tokens=400, context=50)
    assert trace.position.max() == 49
    assert [document.tokens for document in trace.documents] == np.bincount(trace.document).tolist()


def test_a_call_made_of_a_request_says_what_it_gives() -> None:
    assert inspect.signature(offramp.run).return_annotation == "Findings"
