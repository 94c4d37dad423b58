"""`offramp generate`: what it prints, to whom, and what it refuses."""

from __future__ import annotations

import io
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import offramp
from command_line import finish, run_offramp, start_offramp
from offramp.cli.token_text import Pieces
from offramp.models.discovery import probe_ids
from tiny_models import LAYERS, write_granite

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


def test_without_a_policy_it_is_the_full_model(tiny_model: Path, model: offramp.Model) -> None:
    found = run_offramp("generate", tiny_model, "--prompt", PROMPT, "--max-new-tokens", 8, "--check")
    text = offramp.generate(model, PROMPT, max_new_tokens=8).text
    assert found.require(0).out == text + "\n"
    assert "layers skipped: 0.0 % (28 of 28 ran after the prompt)" in found.err
    assert "agreement with the full model on the same text: 100.0 % (8 of 8 tokens)" in found.err
    assert "answer: the full model's own answer, token for token" in found.err
    assert "--heads" not in found.err


def test_json_says_everything(tiny_model: Path, model: offramp.Model) -> None:
    command = ["generate", tiny_model, "--policy", POLICY, "--prompt", PROMPT, "--max-new-tokens", 16]
    found = run_offramp(*command, "--check", "--json").require(0)
    value = found.json
    expected = offramp.generate(model, PROMPT, policy=POLICY, max_new_tokens=16)
    assert len(found.out.splitlines()) == 1
    assert expected.text in found.err
    assert value["text"] == expected.text
    assert value["tokens"] == expected.tokens
    assert value["exits"] == expected.exits.tolist()
    assert value["layers_executed"] == expected.layers_executed
    assert value["skip_ratio"] == expected.skip_ratio
    assert (value["layers"], value["kv"], value["stopped"]) == (LAYERS, "propagate", "length")
    assert (value["prompt"], value["policy"], value["problem"]) == (PROMPT, POLICY, None)
    assert value["tokens_per_second"] == pytest.approx(15 / value["seconds"])
    assert value["first_token_seconds"] > 0
    plain = offramp.generate(model, PROMPT, max_new_tokens=16)
    shared = next(place for place in range(17) if expected.tokens[: place + 1] != plain.tokens[: place + 1])
    check = value["check"]
    assert check["plain_tokens"] == [plain.tokens]
    assert check["tokens_before_divergence"] == [shared]
    assert 0 < shared < 16
    choices = full_models_choices(model, PROMPT, expected.tokens)
    assert check["agreement"] == pytest.approx(choices)
    assert f"({round(16 * choices)} of 16 tokens)" in found.err
    assert f"parts from the full model's own at new token {shared + 1}: " in found.err
    assert "exits are read through the model's own head (no --heads given)" in found.err


def full_models_choices(model: offramp.Model, prompt: str, answer: list[int]) -> float:
    """Share of the answer's tokens that are the full model's best ones, from one plain forward."""
    import torch

    ids = [*model.encode(prompt), *answer]
    best = model.hf(torch.tensor([ids])).logits[0].argmax(-1).tolist()
    start = len(ids) - len(answer)
    return sum(best[start - 1 + place] == token for place, token in enumerate(answer)) / len(answer)


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
    assert [row["prompt"] for row in value["generations"]] == [PROMPT, "a model reads"]
    assert value["check"] is None
    assert "text" not in value


def test_prompts_come_from_standard_input(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["generate", tiny_model, "--max-new-tokens", 4]
    expected = run_offramp(*command, "--prompt", "line one\nline two").require(0).out
    for option in ("--prompt", "--prompt-file"):
        monkeypatch.setattr(sys, "stdin", io.StringIO("line one\nline two\n"))
        assert run_offramp(*command, option, "-").require(0).out == expected


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
    assert value["text"] == text
    assert value["stopped"] == "problem"
    assert "layer 1" in value["problem"]
    assert value["check"] is None


BAD = {
    "an unknown policy": (["--policy", "statik:exit=2"], "unknown policy", "static"),
    "an oracle": (["--policy", "oracle:kind=first_match"], "", ""),
    "an oracle as it is written": (
        ["--policy", "oracle:which=first_match"],
        "which a decoder does not",
        "offramp replay",
    ),
    "a policy file that is none": (["--policy", "missing.json"], "missing.json", ""),
    "an exit out of range": (
        ["--policy", "static:exit=40"],
        "beyond the model, which has 4 layers",
        "1 to 4",
    ),
    "a policy without its heads": (
        ["--policy", "threshold:signal=correctness,value=0.5,exits=2"],
        "correctness",
        "--heads",
    ),
    "no heads": (["--heads", "missing.heads"], "missing.heads does not exist", "offramp heads fit"),
    "an unknown strategy": (["--kv", "propagat"], "unknown strategy 'propagat'", "'propagate'"),
    "an unknown batching": (
        ["--prompt", "b", "--batching", "rebach"],
        "unknown batching 'rebach'",
        "'rebatch'",
    ),
    "no tokens": (["--max-new-tokens", 0], "max-new-tokens cannot be 0", "1 or more"),
    "too many tokens": (["--max-new-tokens", 500], "exceed the context of 128 positions", "max_new_tokens"),
    "a cold temperature": (["--temperature", 0], "temperature cannot be 0.0", "above 0"),
    "no temperature": (["--temperature", "nan"], "temperature cannot be nan", "above 0"),
    "a top-k of nothing": (["--top-k", 0], "top-k cannot be 0", "1 or more"),
    "a top-p beyond": (["--top-p", 1.5], "top-p cannot be 1.5", "1 at most"),
    "a negative seed": (["--temperature", 1, "--seed", -1], "seed cannot be -1", "from 0 to 2^63 - 1"),
    "a seed without samples": (["--seed", 1], "--seed means nothing with greedy decoding", "--temperature"),
    "a check of samples": (["--temperature", 1, "--check"], "by chance", "leave --check out"),
    "an idle draft length": (["--draft-length", 2], "means nothing with --kv propagate", "--kv speculate"),
    "no draft length": (
        ["--kv", "speculate", "--draft-length", 0],
        "a draft length of 0 is not possible",
        "auto",
    ),
    "an idle batching": (["--batching", "rebatch"], "means nothing with one prompt", "another --prompt"),
    "an unknown dtype": (["--dtype", "float12"], "unknown dtype 'float12'", "float32"),
    "an empty prompt": (["--prompt", " \n"], "the prompt is empty", "write some text"),
    "no prompt file": (["--prompt-file", "missing.txt"], "the prompt's file does not exist", "text file"),
    "standard input twice": (["--prompt", "-", "--prompt-file", "-"], "can be read once", "one - only"),
}

AFTER_LOADING = {"an exit out of range", "a policy without its heads", "too many tokens"}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options, what, fix = BAD[case]
    if case not in AFTER_LOADING:
        monkeypatch.setattr("offramp.models.loading.load_source", lambda *_, **__: pytest.fail("loaded"))
    found = run_offramp("generate", tiny_model, "--prompt", PROMPT, *options, "--json").require(2)
    error = found.json["error"]
    assert what in error["what"] + error["where"]
    assert fix in error["fix"] + error["where"]
    assert len(found.out.splitlines()) == 1


def test_no_prompt_and_no_model(tiny_model: Path, tmp_path: Path) -> None:
    assert "there is no prompt" in run_offramp("generate", tiny_model).require(2).err
    assert run_offramp("generate", tmp_path / "nothing", "--prompt", "a").require(2).out == ""
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    found = run_offramp("generate", tiny_model, "--prompt-file", tmp_path / "latin.txt").require(2)
    assert "not UTF-8" in found.err
    assert "is a folder" in run_offramp("generate", tiny_model, "--prompt-file", tmp_path).require(2).err


def test_heads_of_another_model_are_refused_before_loading(
    tiny_model: Path, model: offramp.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from random_heads import random_heads

    from offramp.tracing.heads_file import write_heads

    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 99}), encoding="utf-8")
    write_heads(random_heads(model, (1, 2, 3)), tmp_path / "own.heads")
    command = ["--prompt", PROMPT, "--policy", "static:exit=2", "--heads", tmp_path / "own.heads"]
    found = run_offramp("generate", tiny_model, *command, "--max-new-tokens", 6).require(0)
    plain = run_offramp("generate", tiny_model, *command[:4], "--max-new-tokens", 6).require(0)
    assert found.out != plain.out, "the lens changes nothing: this tests little"
    monkeypatch.setattr("offramp.models.loading.load_source", lambda *_, **__: pytest.fail("loaded"))
    refused = run_offramp("generate", other, *command).require(2)
    assert "the exit heads were fitted on" in refused.err


@pytest.mark.parametrize(
    "command", [("generate", "--prompt", PROMPT), ("bench", "--policy", "static:exit=2")]
)
def test_other_heads_than_tuned_with_are_refused_before_loading(
    command: tuple[str, ...],
    tiny_model: Path,
    model: offramp.Model,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from random_heads import random_heads

    from offramp.tracing.heads_file import write_heads

    write_heads(random_heads(model, (1, 2, 3)), tmp_path / "own.heads")
    base = {"fingerprint": model.identity.fingerprint, "heads": {"fingerprint": "abc", "lens": True}}
    tuned = SimpleNamespace(kv="propagate", model=base, heads_file=None)
    source = (offramp.parse_policy("static:exit=2"), tuned)
    monkeypatch.setattr("offramp.decoding.options.read_policy_source", lambda _: source)
    monkeypatch.setattr("offramp.models.loading.load_source", lambda *_, **__: pytest.fail("loaded"))
    name, *options = command
    refused = run_offramp(name, tiny_model, *options, "--heads", tmp_path / "own.heads").require(2)
    assert "the policy was tuned with the exit heads abc, but is to decode with" in refused.err


@pytest.mark.real_model
def test_the_default_model_writes_english() -> None:
    command = ["generate", "smollm2", "--prompt", "The capital of France is", "--max-new-tokens", 6]
    found = finish(start_offramp(*command, "--policy", "static:exit=29", "--kv", "speculate", "--check"))
    assert "Paris" in found.require(0).out
    assert "the full model's own answer, token for token" in found.err
