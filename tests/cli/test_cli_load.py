"""`offramp load`: predicted from a trace, served with a model, and refused before anything is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from command_line import run_offramp
from offramp.policies.short_names import short_name

POLICY = "threshold:signal=max_prob,value=0.06,exits=1+2"
SMALL = ("--requests", "20", "--seeds", "2", "--lengths", "prompt=6,output=5,sigma=0.3", "--rows", "3")

REFUSED = [
    ("", "no policy is given", "--policy"),
    ("-p statik:exit=2", "unknown policy 'statik'", "static"),
    ("-p oracle:which=first_match", "looks at what no decoder knows", "threshold"),
    ("-p static:exit=2 --kv recompute", "kv must be propagate", "propagate"),
    ("-p static:exit=2 --kv propagat", "unknown strategy for K and V 'propagat'", "propagate"),
    (
        "-p static:exit=2 --rates 0",
        "rates must be rising, each 0.0001 to 1e+06 requests/s, not '0'",
        "rising rates",
    ),
    *(
        (f"-p static:exit=2 --rates {rate}", f"0.0001 to 1e+06 requests/s, not '{rate}'", "rising rates")
        for rate in ("1e-30", "1e30", "nan", "inf", "0.00001,1", "1,1e7")
    ),
    ("-p static:exit=2 --rates 2,1", "requests/s, not '2,1'", "each once"),
    ("-p static:exit=2 --rates fast", "requests/s, not 'fast'", "0.5,1,2,4, or auto"),
    ("-p static:exit=2 --arrivals gamma", "means nothing in --arrivals gamma:", "gamma:cv=4"),
    ("-p static:exit=2 --arrivals bursts", "does not say how requests arrive", "gamma:cv=4"),
    ("-p static:exit=2 --arrivals csv:nowhere.csv", "cannot be read", "path"),
    ("-p static:exit=2 --lengths long", "means nothing", "prompt=64"),
    ("-p static:exit=2 --slo latency=2", "means nothing", "ttft"),
    ("-p static:exit=2 --rule select", "rule", "gain"),
    ("-p static:exit=2 --rows 0", "rows must be at least 1", "at least 1"),
    ("-p static:exit=2 --rows 64 --budget 32", "budget must be 64 or more, not 32", "give 64 or more"),
    ("-p static:exit=2 --requests 3", "requests must be at least 20", "at least 20"),
    ("--ladder 4:static:exit=2", "begin at queues of 4", "rise from 0"),
    ("--ladder 0:never,8:static:exit=2,4:static:exit=1", "0, 8, 4", "rise from 0"),
    ("--ladder never", "is no ladder", "0:never"),
    ("--ladder 0:never,1e3:static:exit=2", "is no ladder", "0:never"),
    ("-p static:exit=2 --model smollm2", "means nothing without --execute", "--execute"),
    (
        "-p static:exit=2 --execute --hardware h100",
        "means nothing with --execute",
        "leave --hardware out",
    ),
    ("-p static:exit=2 --execute --paged", "--paged means nothing with --execute", "leave --paged out"),
    ("-p static:exit=2 --hardware h1000", "unknown hardware 'h1000'", "h100"),
    ("-p static:exit=2 -o x.txt", "does not end in .json", "x.json"),
    (
        "-p static:exit=2 --lengths prompt=100,output=40,sigma=0",
        "the prompt's 100 tokens and 40 new ones exceed the context of 128 positions",
        "lower prompt",
    ),
    ("-p static:exit=200 --hardware h100", "exit 200 is beyond the model", "1 to"),
    ("-p static:exit=2 --hardware h100 --rates 1e6", "more than 10 times what", "auto"),
    (
        "--ladder 0:static:exit=1,4:static:exit=2 --hardware h100",
        "leaves later",
        "order the rungs from cautious to bold",
    ),
]


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, documents: Path) -> Path:
    folder = tmp_path_factory.mktemp("load") / "trace"
    words = ("trace", tiny_model, "-w", f"jsonl:{documents}#text", "--tokens", "600", "-o", folder)
    run_offramp(*words).require(0)
    return folder


@pytest.mark.parametrize(("options", "what", "fix"), REFUSED, ids=[options for options, *_ in REFUSED])
def test_refused(
    trace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str, what: str, fix: str
) -> None:
    import re

    monkeypatch.chdir(tmp_path)
    found = run_offramp("load", trace, *SMALL[4:6], *options.split())
    found.require(2)
    assert what in found.err
    assert re.search(fix, found.err)
    assert list(tmp_path.iterdir()) == []


def test_a_model_alone_says_nothing(tiny_model: Path) -> None:
    found = run_offramp("load", tiny_model, "-p", "static:exit=2", "--hardware", "h100")
    found.require(2)
    assert "a model says nothing of where its tokens leave" in found.err
    assert "--execute" in found.err


def test_an_answer_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "load.json").write_text("{}")
    found = run_offramp("load", tmp_path / "load.json", "-p", "static:exit=2", "--hardware", "h100")
    assert "there is no trace here" in found.require(2).err


def test_a_mistyped_trace_is_no_model(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trace.parents[1])
    mistyped = f"{trace.parent.name}/{trace.name}x"
    for name in (mistyped, f"./{mistyped}", trace.with_name(f"{trace.name}x")):
        said = run_offramp("load", name, "-p", "static:exit=2", "--hardware", "h100").require(2).err
        assert "there is no trace here" in said
        assert f"did you mean {Path(name).parent / trace.name}?" in said
    said = run_offramp("load", "owner/name", "-p", "static:exit=2", "--hardware", "h100").require(2).err
    assert "a model says nothing of where its tokens leave" in said


def test_exits_that_the_model_lacks_are_refused_before_it_is_loaded(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.tracing.loading.ModelRequest.load", lambda *_: pytest.fail("loaded"))
    for policy in (("-p", "static:exit=40"), ("--ladder", "0:never,8:static:exit=40")):
        found = run_offramp("load", tiny_model, *policy, *SMALL, "--execute").require(2)
        assert "exit 40 is beyond the model, which has 4 layers" in found.err


def test_predicted(trace: Path, tmp_path: Path) -> None:
    place = tmp_path / "load.json"
    words = ("load", trace, "-p", POLICY, "--hardware", "h100", *SMALL, "-o", place, "--json")
    found = run_offramp(*words)
    found.require(0)
    value = json.loads(found.out.splitlines()[-1])
    assert set(value["pays"]) == {POLICY}
    assert value["result"]["servers"][0]["role"] == "plain"
    assert value["answer"].startswith(short_name(POLICY))
    assert place.is_file()
    assert place.with_suffix(".html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "p95 of a request" in found.err
    assert "simulating 20 requests x 11 loads x 2 seeds x 2 contenders" in found.err
    again = run_offramp(*words)
    again.require(0)
    assert again.out == found.out


def test_the_page_of_somebody_else_is_not_replaced(trace: Path, tmp_path: Path) -> None:
    place, page = tmp_path / "load.json", tmp_path / "load.html"
    words = ("load", trace, "-p", POLICY, "--hardware", "h100", *SMALL, "-o", place)
    run_offramp(*words).require(0)
    page.write_text("<!doctype html> mine")
    assert "something else stands where the result's page is written" in run_offramp(*words).require(2).err
    assert page.read_text() == "<!doctype html> mine"


def test_requests_longer_than_the_context_are_refused_before_the_model_is_loaded(
    trace: Path, tmp_path: Path
) -> None:
    """With a model that is not there, and by the lengths of a file."""
    lengths = tmp_path / "arrivals.csv"
    lengths.write_text("arrival,prompt_tokens,output_tokens\n0,9,9\n1,9,9\n2,120,9\n")
    asked = ("load", trace, "-p", POLICY, "--execute", "--model", tmp_path / "gone")
    found = run_offramp(*asked, "--arrivals", f"csv:{lengths}", "--json").require(2).json["error"]
    assert "120 tokens and 9 new ones exceed the context of 128 positions" in found["what"]
    assert found["where"] == "--arrivals"
    found = run_offramp(*asked, "--workload", "prose", "--json").require(2).json["error"]
    assert "a workload means nothing beside a trace" in found["what"]


def test_served(trace: Path, tmp_path: Path) -> None:
    place = tmp_path / "load.json"
    served = ("--execute", "--seeds", "1", "--rates", "0.5,1", "--dtype", "bfloat16")
    words = ("load", trace, "-p", POLICY, *SMALL, *served, "-o", place, "--json")
    found = run_offramp(*words)
    found.require(0)
    result = json.loads(found.out.splitlines()[-1])["result"]
    execution = result["execution"]
    assert "The trace was made in float32, and is served in bfloat16." in result["notes"]
    assert len({row["rate"] for row in execution["compared"]}) == 2
    assert {row["contender"] for row in execution["compared"]} == {"plain", short_name(POLICY)}
    assert "saved of mean_e2el" in {row["figure"] for row in execution["compared"]}
    assert set(execution["own"]) == {"1", "3"}
    page = place.with_suffix(".html").read_text(encoding="utf-8")
    assert "Served" in page
    assert "against itself in the same turns" in page


def test_a_recurrent_state_is_predicted_and_not_served() -> None:
    """Refused by the trace's own words, before its model is looked for."""
    import offramp
    from policy_traces import make_shape, make_trace, with_states

    trace = make_trace(shape=with_states(make_shape(6), 2))
    asked = {"policy": "static:exit=2", "hardware": "h100", "requests": 20, "rows": 2}
    assert offramp.load(trace, **asked).servers  # type: ignore[arg-type]
    with pytest.raises(offramp.OfframpError, match="recurrent state") as error:
        offramp.load(trace, policy="static:exit=2", execute=True)
    assert "predicts" in error.value.fix
