"""A tiny image-text model is trained on drawn pictures, loads, and answers what a workload of them asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer, LlamaForCausalLM

import image_model
import image_training
from answers import count_right
from image_model import IMAGE_TOKENS, SPARE, around_picture, processor_of, read_ahead
from image_training import IGNORED, begin_with_words, say, train
from offramp import InputError
from offramp.training.request import Effort
from questions import Question, kinds_of, read_questions, write_workload
from tiny_models import VOCABULARY, write_llama

HUES = ("red", "blue")
STEPS = 40


def write_easy_vqa(folder: Path) -> None:
    """A package like easy-VQA, with rectangles and circles at several places."""
    (folder / "easy_vqa").mkdir(parents=True)
    (folder / "easy_vqa" / "__init__.py").touch()
    for part, count in (("train", 60), ("test", 20)):
        data = folder / "easy_vqa" / "data" / part
        (data / "images").mkdir(parents=True)
        asked: list[tuple[str, str, int]] = []
        for number in range(count):
            hue, shape = HUES[number % 2], ("rectangle", "circle")[number // 2 % 2]
            image = Image.new("RGB", (64, 64), "white")
            draw, corner = ImageDraw.Draw(image), (4 + 5 * number % 32, 4 + 7 * number % 32)
            box = [*corner, corner[0] + 24, corner[1] + 24]
            (draw.rectangle if shape == "rectangle" else draw.ellipse)(box, fill=hue)
            image.save(data / "images" / f"{number}.png")
            asked.append((f"what color is the {shape}?", hue, number))
            asked.append(("is there not a red shape?", "no" if hue == "red" else "yes", number))
        (data / "questions.json").write_text(json.dumps(asked))


@pytest.fixture(scope="module")
def easy_vqa(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The package of drawn pictures is installed."""
    folder = tmp_path_factory.mktemp("site")
    write_easy_vqa(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """A random Llama, its head tied as smollm2's is, and a tokenizer with a token to spare."""
    folder = write_llama(
        tmp_path_factory.mktemp("llama") / "text",
        vocab_size=VOCABULARY + 1,
        tie_word_embeddings=True,
        pad_token_id=1,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": [SPARE]})
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer


EFFORTS = [Effort(steps=STEPS, precision="float32")] * 2


@pytest.fixture(scope="module")
def trained(
    easy_vqa: None, text: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The folder of a model with a vision part of one layer, and what came of its training."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    small = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_model, "VISION", small)
        patch.setattr(image_training, "ANSWERING_RATE", 1e-2)
        yield folder, train(folder, *text, EFFORTS)


@pytest.mark.parametrize(
    ("asked", "answer", "shown"),
    [
        ("what is the blue shape?", "circle", {"blue", "circle"}),
        ("is there a red shape?", "yes", {"red"}),
        ("is there a red shape?", "no", set()),
        ("is no red shape present?", "no", {"red"}),
        ("does the image not contain a circle?", "yes", set()),
    ],
)
def test_answers_tell_what_a_picture_shows(asked: str, answer: str, shown: set[str]) -> None:
    known = {"red", "blue", "circle"}
    assert Question(asked, answer, Path("0.png")).shown & known == shown


def test_a_picture_of_which_only_the_colour_is_told_has_no_kind() -> None:
    first, second = Path("0.png"), Path("1.png")
    told = [
        Question("what color is the shape?", "teal", first),
        Question("what color is the shape?", "red", second),
        Question("is a triangle present?", "yes", second),
    ]
    assert kinds_of(told) == {second: ("red", "triangle")}


@pytest.mark.usefixtures("easy_vqa")
def test_kinds_are_those_that_were_drawn() -> None:
    kinds = kinds_of(read_questions("train"))
    assert len(kinds) == 60
    for picture, (hue, shape) in kinds.items():
        number = int(picture.stem)
        assert (hue, shape) == (HUES[number % 2], ("rectangle", "circle")[number // 2 % 2])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="easy-vqa") as refused:
        read_questions("train")
    assert refused.value.fix == "pip install easy-vqa"


def test_a_tokenizer_without_a_spare_token_is_refused(text: tuple[Any, Any]) -> None:
    with pytest.raises(InputError, match=SPARE):
        processor_of(AutoTokenizer.from_pretrained(text[0].name_or_path))


def test_both_losses_fall(trained: tuple[Path, dict[str, Any]]) -> None:
    for name in ("seeing", "answering"):
        before, after = trained[1][name]["loss"]
        assert after < 0.9 * before, name
        assert trained[1][name]["steps"] == STEPS


def test_the_folder_is_an_ordinary_one_around_the_same_language_model(
    trained: tuple[Path, dict[str, Any]], text: tuple[Any, Any]
) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(trained[0])
    processor = AutoProcessor.from_pretrained(trained[0])
    language_model, tokenizer = text
    weights = model.model.language_model.state_dict()
    for name, weight in language_model.model.state_dict().items():
        assert torch.equal(weights[name], weight), name
    assert torch.equal(model.lm_head.weight, language_model.lm_head.weight)
    assert processor.image_token_id == tokenizer.convert_tokens_to_ids(SPARE)
    asked = [{"type": "image"}, {"type": "text", "text": "is it red?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": asked}])
    assert prompt == Question("is it red?", "yes", Path("0.png")).prompt


def test_what_is_read_ahead_gives_the_logits_of_the_whole_prompt(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(trained[0]).eval()
    processor = AutoProcessor.from_pretrained(trained[0])
    picture = Image.new("RGB", (64, 64), "red")
    prompts = [Question(asked, "", Path("0.png")).prompt for asked in ("why?", "is there a red shape?")]
    before, after = zip(*(around_picture(processor, prompt) for prompt in prompts), strict=True)
    targets = torch.tensor([[5, 6, 1], [7, 1, IGNORED]])
    with torch.no_grad():
        pixels = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
        seen = model.model.vision_tower(pixels).last_hidden_state
        asked = torch.tensor([[0, 0], [0, 1]])
        read = read_ahead(model.model.language_model, before)
        answers = say(model, seen, read, torch.tensor(after[0]), asked, targets)
        parameters = dict(model.model.multi_modal_projector.named_parameters())
        logits, right = answers(parameters, torch.tensor([1, 0]), None)
        assert torch.equal(right, targets[[1, 0]])
        for row, place in enumerate((1, 0)):
            given = processor(images=[picture], text=[prompts[place]], return_tensors="pt")
            written = [int(token) for token in targets[place] if token != IGNORED]
            ids = torch.cat([given["input_ids"], torch.tensor([written[:-1]])], 1)
            whole = model(input_ids=ids, pixel_values=given["pixel_values"]).logits[0, -len(written) :]
            assert torch.allclose(logits[row, : len(written)], whole, rtol=1e-4, atol=1e-4)


def test_a_projector_begins_with_words(trained: tuple[Path, dict[str, Any]]) -> None:
    model: Any = AutoModelForImageTextToText.from_pretrained(trained[0])
    tokenizer = AutoProcessor.from_pretrained(trained[0]).tokenizer
    torch.manual_seed(0)
    seen = torch.randn(6, IMAGE_TOKENS, 64)
    begin_with_words(model, tokenizer, seen, [("red", "circle"), ("blue", "circle")] * 3)
    with torch.no_grad():
        said = model.model.multi_modal_projector(seen)[:, -1]
        colon = model.get_input_embeddings()(torch.tensor(tokenizer(":", add_special_tokens=False).input_ids))
        # The prompt's last word is the same for every picture.
        assert float((said - colon).square().mean()) < 0.5 * float(colon.square().mean())


@pytest.mark.usefixtures("easy_vqa")
def test_a_workload_is_read_back_and_answered(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    asked = read_questions("test")
    write_workload(tmp_path / "test.jsonl", asked, 12)
    lines = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    known = {(question.picture.read_bytes(), question.prompt, question.answer) for question in asked}
    assert len(lines) == len({line["image"] for line in lines}) == 12
    for line in lines:
        assert set(line) == {"image", "prompt", "answer"}
        assert ((tmp_path / line["image"]).read_bytes(), line["prompt"], line["answer"]) in known
    counts = count_right(trained[0], tmp_path / "test.jsonl")
    most = max(sum(line["answer"] == answer for line in lines) for answer in ("red", "blue", "yes", "no"))
    assert next(right for how, right in counts.items() if how.startswith("always")) == (most, 12)
    named = sum(line["answer"] in HUES for line in lines)
    assert {questions for _, questions in counts.values()} == {12, named}


@pytest.mark.usefixtures("easy_vqa")
def test_a_training_that_ended_is_not_made_again(
    trained: tuple[Path, dict[str, Any]], text: tuple[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = (trained[0] / "model.safetensors").read_bytes()
    assert train(trained[0], *text, EFFORTS) == trained[1]
    assert (trained[0] / "model.safetensors").read_bytes() == weights
