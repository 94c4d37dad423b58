"""How good the texts are that a policy writes, where a command decodes them: run, tune and bench."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from command_line import run_offramp, summary_of
from offramp.decoding import openings
from offramp.kit.typed import from_json
from offramp.report.answer_words import quality_words
from offramp.report.summary import summary_schema
from offramp.runs import stages
from offramp.scoring.text_quality import TextQuality
from offramp.tuning import executed
from page_reader import Page
from tiny_models import write_pairs


def test_a_run_says_beside_its_agreement_how_many_answers_are_right(
    bart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "DECODE_MINUTES", 20.0)
    monkeypatch.setattr(stages, "ROUNDS", 1)
    monkeypatch.setattr(openings, "PROMPTS", 2)
    monkeypatch.setattr(executed, "TEXTS", executed.TEXTS_AT_ONCE)
    pairs = f"pairs:{write_pairs(tmp_path / 'pairs.jsonl', documents=30)}#en,de"
    folder = tmp_path / "run"
    found = run_offramp(
        *("run", bart, "-w", pairs, "--tokens", 120, "--exits", 2, "--floor", 0.5, "--worth", 0.01),
        *("--hardware", "h100", "-o", folder, "--json"),
    ).require(0)
    (verdict,) = found.json["verdicts"]
    quality = from_json(TextQuality, verdict["text_quality"])
    assert quality.measure == "exact match"
    assert 0 < quality.documents <= 64
    said = f"At 50 %: {quality_words(quality)}."
    assert said in " ".join(found.err.split())
    page = Page((folder / "report.html").read_text(encoding="utf-8")).text
    assert said in page.replace("\N{NO-BREAK SPACE}", " ")
    sources = [json.loads(line)["en"] for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert page.partition("The prompt, as it was given")[2].lstrip().startswith(tuple(sources))
    summary = summary_of(found)
    jsonschema.validate(summary, summary_schema())
    assert summary["verdict"]["by_workload"][0]["text_quality"] == verdict["text_quality"]
    assert summary["tuned"][0]["text_quality"] == verdict["text_quality"]


def test_a_bench_counts_the_words_of_the_answers_that_it_timed(whisper: Path, sounds: Path) -> None:
    found = run_offramp(
        *("bench", whisper, "--policy", "static:exit=2", "--workload", f"audio:{sounds}", "--prompts", 2),
        *("--new-tokens", 8, "--seconds", 0, "--no-peers", "--json"),
    ).require(0)
    (result,) = found.json["results"]
    quality = from_json(TextQuality, result["text_quality"])
    assert (quality.measure, quality.documents, quality.new_tokens) == ("word error rate", 2, 8)
    assert quality_words(quality) in " ".join((found.out + found.err).split())


def test_texts_without_an_answer_have_none_of_it(tiny_model: Path, documents: Path) -> None:
    found = run_offramp(
        *("bench", tiny_model, "--policy", "static:exit=2", "--workload", f"jsonl:{documents}#text"),
        *("--prompts", 2, "--new-tokens", 8, "--seconds", 0, "--no-peers", "--json"),
    ).require(0)
    assert "text_quality" not in found.json["results"][0]
    assert "free_running" in json.dumps(found.json["results"][0])
