"""The README's commands and its Python example run in order, on fewer tokens, and say what they should."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from command_line import Here, Outcome, run_offramp
from offramp.models import source
from offramp.models.model import Model
from offramp.models.source import BUNDLED
from offramp.report.summary import summary_schema
from offramp.runs import stages as run_study
from offramp.studies.engines import registry
from offramp.tracing.loading import ModelRequest
from tiny_models import CHAT_TEMPLATE, write_llama

README = Path(__file__).parents[1] / "README.md"
MAKE_TARGETS = ("run", "test")
# What keeps the commands short here.
FEW = ["--tokens", "128", "--exits", "10,20,25"]
STUDY = """
models = ["smollm2"]
workloads = ["prose"]
policies = ["league"]
machines = ["h100"]

[study]
name = "strategies"
tokens = 128
exits = [10, 20, 25]
"""
"""In the place of the shipped one, which takes too long here."""
LESS = {
    "run": [*FEW, "--no-decode", "--hardware", "h100"],  # the next command times this machine
    "trace": FEW,
    "hardware": ["--seconds", "4", "--batches", "1,4"],  # 4: a draft and the token after it
    "generate": ["--max-new-tokens", "8"],
    "tune": ["--seconds", "2", "--new-tokens", "4"],
    "bench": ["--new-tokens", "4", "--rounds", "1", "--prompts", "1", "--no-peers"],
}


def blocks(language: str, page: Path = README) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Every line of the shell blocks, as words, comments left out."""
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def test_the_readme_shows_every_command_and_nothing_else() -> None:
    shown = [words for words in commands() if words[0] == "offramp"]
    commands_shown = {words[1] for words in shown}
    assert commands_shown == {
        *("run", "hardware", "trace", "score", "replay", "tune", "predict", "list", "doctor"),
        *("generate", "bench", "study", "compare"),
    }
    others = [words for words in commands() if words[0] != "offramp"]
    assert others == [*(["make", target] for target in MAKE_TARGETS), ["pip", "install", "."]]
    makefile = (README.parent / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, flags=re.MULTILINE) for target in MAKE_TARGETS)


@pytest.fixture
def loaded_once(smollm2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundled model as it is, is not loaded again by every command of this process."""
    load = ModelRequest.load

    def reuse(request: ModelRequest, *placement: Any) -> Model:
        is_it = request.source.name == smollm2.name and not request.transforms
        return smollm2 if is_it else load(request, *placement)

    monkeypatch.setattr(ModelRequest, "load", reuse)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small random model of as many layers has the bundled one's name: what commands and examples say of
    the real one, its exits apart, is of its weights."""
    settings = {"num_hidden_layers": 30, "max_position_embeddings": 2048, "initializer_range": 0.2}
    folder = write_llama(tmp_path / "smollm2", chat_template=CHAT_TEMPLATE, **settings)
    monkeypatch.setattr(source, "_bundled_source", lambda *_: source.folder_source(folder))


@pytest.mark.real_model
@pytest.mark.slow
@pytest.mark.usefixtures("loaded_once")
def test_the_first_command_and_the_answer_of_the_bundled_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_study, "FITTING_TOKENS", 100)
    by_name = {words[1]: words[1:] for words in commands() if words[0] == "offramp"}
    ran = run_offramp(*by_name["run"], *LESS["run"]).require(0)
    assert "Report: runs/prose/report.html" in ran.out
    check_run(tmp_path / "runs/prose")
    # An example that shows what it can do: a policy that keeps what the full model would say.
    said = run_offramp(*by_name["generate"], *LESS["generate"]).require(0).err
    assert "agreement with the full model on the same text: 100.0 % (7 of 7 tokens after the first)" in said


@pytest.mark.slow
@pytest.mark.usefixtures("stand_in")
def test_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_study, "FITTING_TOKENS", 100)
    monkeypatch.setitem(registry.ENGINES, "local", Here())
    outcomes: dict[str, Outcome] = {}
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies/strategies.toml").write_text(STUDY)
    for words in commands():
        if words[0] == "offramp":
            less = LESS.get(words[1], [])
            name = " ".join(words[1:3]) if words[1] == "study" else words[1]
            outcomes[name] = run_offramp(*words[1:], *less).require(0)
    assert "Report: runs/prose/report.html" in outcomes["run"].out
    assert "128 tokens" in outcomes["trace"].out
    assert "Representation" in outcomes["score"].out
    assert "timed to add up to" in outcomes["hardware"].out
    assert "agreement with the full model" in outcomes["replay"].out
    assert "probe, restricted head" in outcomes["replay"].out
    assert "written: policy.json" in outcomes["tune"].out
    assert "prices of this machine: " in outcomes["tune"].out
    assert "h100" in outcomes["predict"].out
    assert "agreement with the full model on the same text" in outcomes["generate"].err
    assert "unresolved: one prompt has no interval" in " ".join(outcomes["bench"].out.split())
    assert "2 to do" in outcomes["study plan"].out
    assert "Report: runs/study-strategies/report.html" in outcomes["study run"].out
    assert "2 done" in outcomes["study status"].out
    assert "Report: runs/study-strategies/report.html" in outcomes["study report"].out
    assert (tmp_path / "runs/comparison/report.html").is_file()
    assert (tmp_path / "runs/comparison/citation.bib").is_file()


def check_run(folder: Path) -> None:
    """A run of the bundled model on 128 tokens of prose says what is true of it on any machine."""
    summary = json.loads((folder / "summary.json").read_text())
    jsonschema.validate(summary, summary_schema())
    assert summary["verdict"]["decision"] in ("does not pay", "inconclusive")
    assert "smollm2" in summary["verdict"]["headline"]
    assert summary["measured"]["plain_seconds_per_token"] is None, "nothing was timed here"
    (scores,) = summary["scores"]
    assert scores["tokens"] == 128
    assert scores["curves"]["exits"] == [10, 20, 25, 30]
    agreement = scores["curves"]["values"]["agreement"]
    assert 0 < agreement[0] < agreement[1] < agreement[2] < agreement[3] == 1
    # An untrained model of this vocabulary would be at ln(49152) = 10.8.
    assert scores["curves"]["values"]["nll"][-1] < 5
    assert summary["provenance"]["model_licence"] == "Apache-2.0"
    assert "Q4_1" in summary["provenance"]["model_weights"]
    page = (folder / "report.html").read_text().replace("\u00a0", " ")
    assert summary["verdict"]["headline"].split(":")[0] in page


def test_a_stranger_reads_it_in_a_minute() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 120
    (sample,) = blocks("text")
    settled = r"For smollm2 at 95 % agreement, early exit (does not pay|pays) on "
    answer = f"^({settled}|Early exit makes smollm2 .* × as fast .*: (pays|does not pay|inconclusive, ))"
    assert re.search(answer, " ".join(sample.split()))
    start = text[: text.index("## On the command line")]
    for word in ("*exit*", "*floor*", "*K,V repair*", "*executed*", "*certified*"):
        assert word in start


def printed(program: str) -> str:
    """What a program prints that knows nothing but itself."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "example", "exec"), {"__name__": "__main__"})
    return out.getvalue()


@pytest.mark.usefixtures("stand_in")
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (example,) = blocks("python")
    for shown, less in (("seconds=60", "seconds=2"), ("tokens=1280", "tokens=512")):  # decodes something
        assert shown in example
        example = example.replace(shown, less)
    card, replayed, answer, decoded = printed(example).strip().splitlines()
    assert card.startswith("ScoreCard(representation 0.")
    assert replayed.startswith("ReplayResult(threshold:signal=margin,value=0.9,exits=20+25: agreement ")
    # It decodes, with the documents that were not traced; whether anything passes is not known.
    assert "replay bound" not in answer
    assert "not certifiable" not in answer
    assert "certified after" in answer or "The full model stays" in answer or "Nothing beats" in answer
    assert decoded == "[30 25 25 25 25 25 25 25] 17% of the layers skipped"


@pytest.mark.usefixtures("stand_in")
def test_the_examples_of_decoding_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    examples = blocks("python", README.parent / "docs/decoding.md")
    assert len(examples) == 2
    shown = printed("\n".join(examples))
    assert "17% of the layers skipped" in shown
    assert "True [" in shown  # forced tokens are what was fed


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)", README.read_text()) if "://" not in link]
    assert links
    missing = [link for link in links if not (README.parent / link).exists()]
    assert missing == []


def test_how_the_bundled_weights_were_stored_is_said_wherever_their_figures_are() -> None:
    """In the words of the registry, which `list models`, traces and runs print too."""
    pages = [README, *sorted((README.parent / "docs" / "results").glob("*.md"))]
    texts = {page: " ".join(page.read_text(encoding="utf-8").replace("`", "").split()) for page in pages}
    of_them = {page: words for page, words in texts.items() if "smollm2" in words.lower()}
    assert len(of_them) > 4
    for page, words in of_them.items():
        assert BUNDLED["smollm2"].weights in words.replace("The weights", "the weights"), page
