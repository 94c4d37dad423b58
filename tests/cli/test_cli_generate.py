"""`offramp generate`: what it prints, to whom, whole characters in their colours, and what it refuses."""

from __future__ import annotations

import functools
import io
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import offramp
from command_line import run_offramp
from offramp.cli.generation_shown import PALETTE, Painter, TokenStream
from offramp.decoding.generation.result import Pieces, pieces_of
from offramp.models.discovery import probe_ids
from tiny_models import LAYERS, write_granite, write_tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tracing"))

PROMPT = "the cat sat"
POLICY = "threshold:signal=max_prob,value=0.08,exits=1+2+3"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> offramp.Model:
    return offramp.load_model(str(tiny_model))


def test_the_text_alone_goes_to_a_pipe(tiny_model: Path, model: offramp.Model) -> None:
    found = run_offramp(
        "generate", tiny_model, "--policy", POLICY, "--prompt", PROMPT, "--max-new-tokens", 12
    ).require(0)
    expected = offramp.generate(model, PROMPT, policy=POLICY, max_new_tokens=12)
    assert found.out == expected.text + "\n"
    loading, first, second = found.err.splitlines()
    assert loading == "- loading the model and checking its exits"
    assert re.fullmatch(r"12 new tokens \(ended by: length\), [\d.]+ tokens/s, first after [\d.]+ m?s", first)
    executed, plain = expected.layers_executed - expected.prompt_layers, 11 * LAYERS
    mean = expected.exits[1:].mean()
    assert second == (
        f"layers skipped: {100 * expected.skip_ratio:.1f} % ({executed} of {plain} ran after the prompt); "
        f"tokens left after layer {mean:.1f} of {LAYERS} on average"
    )
    assert 0 < expected.skip_ratio < 1


def test_a_generation_config_that_asks_for_more_is_no_warning(
    tiny_model: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "generation_config.json").write_text('{"min_new_tokens": 1000}')
    run_offramp("generate", folder, "--prompt", PROMPT, "--max-new-tokens", 3).require(0)
    assert not [one for one in recwarn if "Unfeasible length" in str(one.message)]


def test_without_a_policy_it_is_the_full_model(tiny_model: Path, model: offramp.Model) -> None:
    found = run_offramp("generate", tiny_model, "--prompt", PROMPT, "--max-new-tokens", 8, "--check")
    text = offramp.generate(model, PROMPT, max_new_tokens=8).text
    assert found.require(0).out == text + "\n"
    assert "layers skipped: 0.0 % (28 of 28 ran after the prompt)" in found.err
    assert (
        "agreement with the full model on the same text: 100.0 % (7 of 7 tokens after the first)" in found.err
    )
    assert "answer: the full model's own answer, token for token" in found.err
    assert "--heads" not in found.err


def test_json_says_everything(tiny_model: Path, model: offramp.Model) -> None:
    command = ["generate", tiny_model, "--policy", POLICY, "--prompt", PROMPT, "--max-new-tokens", 16]
    found = run_offramp(*command, "--check", "--json").require(0)
    value = found.json
    expected = offramp.generate(model, PROMPT, policy=POLICY, max_new_tokens=16)
    assert len(found.out.splitlines()) == 1
    assert expected.text in found.err
    (row,) = value["rows"]
    assert row["text"] == value["text"] == expected.text
    assert value["prompt"] == PROMPT
    assert row["tokens"] == expected.tokens
    assert row["exits"] == expected.exits.tolist()
    assert row["layers_executed"] == expected.layers_executed
    assert value["skip_ratio"] == row["skip_ratio"] == expected.skip_ratio
    assert (row["layers"], value["kv"], row["stopped"]) == (LAYERS, "propagate", "length")
    assert (value["prompts"], value["policy"], row["problem"]) == ([PROMPT], POLICY, None)
    assert value["tokens_per_second"] == pytest.approx(15 / value["seconds"])
    assert value["first_token_seconds"] > 0
    plain = offramp.generate(model, PROMPT, max_new_tokens=16)
    shared = next(place for place in range(17) if expected.tokens[: place + 1] != plain.tokens[: place + 1])
    check = value["check"]
    assert [row["tokens"] for row in check["plain"]] == [plain.tokens]
    assert check["shared"] == [shared]
    assert 0 < shared < 16
    choices = full_models_choices(model, PROMPT, expected.tokens)
    assert check["agreement"]["value"] == pytest.approx(choices)
    assert f"({round(15 * choices)} of 15 tokens after the first)" in found.err
    assert f"parts from the full model's own at new token {shared + 1}: " in found.err
    assert "exits are read through the model's own head (no --heads given)" in found.err


def full_models_choices(model: offramp.Model, prompt: str, answer: list[int]) -> float:
    """Share of the answer's tokens after the first that are the full model's best, from one plain forward."""
    import torch

    ids = [*model.encode(prompt), *answer]
    best = model.hf(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    start = len(ids) - len(answer)
    right = [best[start - 1 + place] == token for place, token in enumerate(answer)]
    return sum(right[1:]) / len(right[1:])


def test_several_prompts_are_decoded_together(tiny_model: Path, model: offramp.Model, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("a model reads\n", encoding="utf-8")
    command = ["generate", tiny_model, "--policy", "static:exit=2", "--prompt", PROMPT]
    command += ["--prompt-file", tmp_path / "prompt.txt", "--max-new-tokens", 6]
    found = run_offramp(*command, "--batching", "rebatch", "--check").require(0)
    expected = offramp.generate(
        model,
        [PROMPT, "a model reads"],
        policy="static:exit=2",
        max_new_tokens=6,
        batching="rebatch",
    )
    assert isinstance(expected, list)
    assert found.out == "".join(f"[{place}]\n{row.text}\n" for place, row in enumerate(expected, 1))
    assert "answer 2: " in found.err
    value = run_offramp(*command, "--json").require(0).json
    assert value["prompts"] == [PROMPT, "a model reads"]
    assert "text" not in value
    assert [row["text"] for row in value["rows"]] == [row.text for row in expected]
    assert value["check"] is None


def test_prompts_come_from_standard_input(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["generate", tiny_model, "--max-new-tokens", 4]
    expected = run_offramp(*command, "--prompt", "line one\nline two").require(0).out
    for option in ("--prompt", "--prompt-file"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"line one\nline two\n")))
        assert run_offramp(*command, option, "-").require(0).out == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), errors="surrogateescape"))
    assert "standard input is not UTF-8" in run_offramp(*command, "--prompt", "-").require(2).err


def test_a_chat_turn_and_samples(tiny_model: Path, model: offramp.Model) -> None:
    command = ["generate", tiny_model, "--prompt", PROMPT, "--max-new-tokens", 8, "--chat"]
    sampled = [*command, "--temperature", 2.0, "--top-k", 50, "--top-p", 0.9, "--seed", 7]
    first, again = (run_offramp(*sampled).require(0).out for _ in range(2))
    expected = offramp.generate(
        model, PROMPT, max_new_tokens=8, chat=True, temperature=2.0, top_k=50, top_p=0.9, seed=7
    )
    assert first == again == expected.text + "\n"
    assert run_offramp(*command).require(0).out != first


def test_speculation_prints_the_full_models_answer(tiny_model: Path, model: offramp.Model) -> None:
    command = ["generate", tiny_model, "--prompt", PROMPT, "--max-new-tokens", 12, "--kv", "speculate"]
    for length in (3, "auto"):
        found = run_offramp(*command, "--policy", "static:exit=2", "--draft-length", length).require(0)
        assert found.out == offramp.generate(model, PROMPT, max_new_tokens=12).text + "\n"
        assert "drafts left after layer" in found.err


def test_colours_on_a_terminal(
    tiny_model: Path, model: offramp.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLORTERM": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    command = ["generate", tiny_model, "--policy", POLICY, "--prompt", PROMPT, "--max-new-tokens", 60]
    shown = run_offramp(*command).require(0).out
    legend, _, text = shown.partition("\n")
    assert ESCAPE.sub("", legend) == "colour: the layer a token left after: 1, 2, 3; plain: all 4"
    expected = offramp.generate(model, PROMPT, policy=POLICY, max_new_tokens=60)
    codes = dict(zip((1, 2, 3), re.findall(r"\x1b\[(\d+)m\d", legend), strict=True))
    assert len(set(codes.values())) == 3
    pieces = Pieces(model.decode)
    visible = {
        exit
        for token, exit in zip(expected.tokens, expected.exits.tolist(), strict=True)
        if pieces.add(token).strip() and exit < LAYERS
    }
    assert visible == {exit for exit, code in codes.items() if f"\x1b[{code}m" in text}
    assert len(visible) > 1
    plain = "".join(character for character in expected.text if character >= " " or character in "\n\t")
    assert ESCAPE.sub("", text) == plain + "\n"
    monkeypatch.setenv("NO_COLOR", "1")
    assert run_offramp(*command).require(0).out == plain + "\n"


@pytest.fixture(scope="module")
def broken_model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A model whose fourth new token gives a number that is not finite, and the text before."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = write_granite(tmp_path_factory.mktemp("models") / "granite", poisoned="~")
    whole = offramp.load_model(str(folder))
    answer = offramp.generate(whole, PROMPT, max_new_tokens=30)
    # A model is checked with some tokens when it is loaded.
    harmless = {*answer.tokens[:3], *probe_ids(whole.hf, 12)[0].tolist()}
    place = next(place for place in range(3, 30) if answer.tokens[place] not in harmless)
    assert answer.tokens[place] not in answer.tokens[:place]
    weights = load_file(folder / "model.safetensors")
    weights["model.embed_tokens.weight"][answer.tokens[place]] = torch.tensor(3e38)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder, whole.decode(answer.tokens[: place + 1])


def test_a_broken_logit_ends_it_after_what_was_produced(broken_model: tuple[Path, str]) -> None:
    folder, text = broken_model
    command = ["generate", folder, "--prompt", PROMPT, "--check"]
    found = run_offramp(*command).require(1)
    assert found.out == text + "\n"
    assert "offramp: the generation stopped early: new token" in found.err
    assert "layer 1" in found.err
    assert "Warning" not in found.err
    value = run_offramp(*command, "--json").require(1).json
    (row,) = value["rows"]
    assert row["text"] == text
    assert row["stopped"] == "problem"
    assert "layer 1" in row["problem"]
    assert value["check"] is None


def test_no_prompt_and_no_model(tiny_model: Path, tmp_path: Path) -> None:
    assert "there is no prompt" in run_offramp("generate", tiny_model).require(2).err
    assert run_offramp("generate", tmp_path / "nothing", "--prompt", "a").require(2).out == ""
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    found = run_offramp("generate", tiny_model, "--prompt-file", tmp_path / "latin.txt").require(2)
    assert "not UTF-8" in found.err


def console(**options: Any) -> Any:
    from rich.console import Console

    return Console(file=io.StringIO(), force_terminal=True, color_system="standard", **options)


def test_early_exits_lie_at_one_end_of_the_scale() -> None:
    painter = Painter(console(), (10, 15, 20, 25), 30)
    colours = [PALETTE.index(str(painter.colour_of(exit))) for exit in (10, 15, 20, 25)]
    assert colours == sorted(set(colours))
    assert (colours[0], colours[-1]) == (0, len(PALETTE) - 1)
    assert painter.colour_of(30) is None
    assert Painter(console(), (7,), 30).colour_of(7) == PALETTE[0]
    legend = Painter(console(), tuple(range(1, 30)), 30).legend()
    assert legend is not None
    assert ESCAPE.sub("", legend).startswith("colour: the layer a token left after: 1-4, ")


def test_a_terminal_obeys_nothing_that_a_model_writes() -> None:
    painter = Painter(console(), (1,), 2)
    painter.write("\x1b]0;title\x07a\tb\x9b31m\n", 2)
    assert painter.console.file.getvalue() == "]0;titlea\tb31m\n"


def test_text_is_shown_as_it_comes_and_the_end_token_is_not() -> None:
    tokenizer = byte_tokenizer()
    words = tokenizer("the cat sat", add_special_tokens=False)["input_ids"]
    painter = Painter(console(no_color=True), (1,), 2)
    stream = TokenStream(painter, tokenizer.decode, {tokenizer.eos_token_id})
    stream.put(np.array([[3, 4, 5]]))  # the prompt, as transformers' generate gives it
    seen = [painter.console.file.getvalue()]
    for token in (*words, tokenizer.eos_token_id):
        stream.put_exits(np.array([1]))
        stream.put(np.array([token]))
        seen.append(painter.console.file.getvalue())
    assert seen == [tokenizer.decode(words[:count]) for count in (*range(len(words) + 1), len(words))]
    stream.end()
    stream.end()
    assert painter.console.file.getvalue() == "the cat sat\n"


@settings(max_examples=60)
@given(st.lists(st.integers(2, 319), max_size=30))
def test_pieces_together_are_the_text(tokens: list[int]) -> None:
    decode = byte_tokenizer().decode
    pieces = Pieces(lambda ids: str(decode(ids, clean_up_tokenization_spaces=False)))
    given = [pieces.add(token) for token in tokens]
    assert "".join(given) + pieces.rest() == decode(tokens, clean_up_tokenization_spaces=False)
    assert "".join(pieces_of(decode, tokens)) == decode(tokens)
    assert len(pieces_of(decode, tokens)) == len(tokens)


def test_a_character_of_several_tokens_comes_whole() -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer("naïve 🙂 ok", add_special_tokens=False)["input_ids"]
    pieces = Pieces(tokenizer.decode)
    given = [pieces.add(token) for token in tokens]
    assert "".join(given) == "naïve 🙂 ok"
    assert "🙂" in given
    assert given[given.index("🙂") - 3 : given.index("🙂")] == ["", "", ""]
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in given)
    assert pieces.rest() == ""


@functools.cache
def byte_tokenizer() -> Any:
    """A byte-level tokenizer: every byte is a token."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return AutoTokenizer.from_pretrained(folder)


def test_pieces_keep_spaces_that_a_tokenizer_strips_at_the_start() -> None:
    words = {1: "▁the", 2: "▁cat", 3: "s"}

    def decode(ids: list[int]) -> str:
        return "".join(words[token] for token in ids).replace("▁", " ").removeprefix(" ")

    pieces = Pieces(decode)
    assert [pieces.add(token) for token in (1, 2, 3, 1)] == ["the", " cat", "s", " the"]
