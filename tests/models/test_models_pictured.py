"""An image-text model: prompts with pictures as transformers runs them, texts alone as before."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoProcessor, LlavaForConditionalGeneration

import offramp
from offramp.costs.counting import request_flops
from offramp.errors import InputError, ModelError
from offramp.kit.given import given_of
from offramp.kit.picture import given_picture, picture_of
from offramp.models.loading import check_maker
from offramp.models.model import Model
from offramp.models.pictured import Pictured, probe_picture
from offramp.workloads.workload import Document, Workload
from tiny_models import IMAGE, write_llava, write_picture

PLACES = 4


@pytest.fixture(scope="module")
def model(llava: Path) -> Model:
    return offramp.load_model(llava)


@pytest.fixture(scope="module")
def own(llava: Path) -> Any:
    return LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(llava: Path) -> Any:
    return AutoProcessor.from_pretrained(llava)


@pytest.fixture(scope="module")
def workload(pictures: Path) -> Workload:
    return offramp.load_workload(f"images:{pictures}")


def inputs_of(processor: Any, document: Document) -> dict[str, Any]:
    """What the processor makes of a picture with its question, as its users call it."""
    given = given_of(document)
    assert given is not None
    text = f"{IMAGE}\n{given.prompt}"
    return dict(processor(text=text, images=picture_of(given), return_tensors="pt"))


def test_an_answer_is_what_transformers_generates(
    model: Model, own: Any, processor: Any, workload: Workload
) -> None:
    answers = set()
    for document in workload.documents[:6]:
        inputs = inputs_of(processor, document)
        expected = own.generate(**inputs, max_new_tokens=10, do_sample=False)
        tokens = expected[0, inputs["input_ids"].shape[1] :].tolist()
        given = given_of(document)
        assert given is not None
        asked: Any = {"image": given.text, "prompt": given.prompt, "max_new_tokens": 10}
        for how in ({}, {"policy": "static:exit=2", "kv": "speculate"}, {"policy": "never"}):
            answer: Any = offramp.generate(model, **asked, **how)
            assert list(answer.tokens) == tokens
        answers.add(tuple(tokens))
    assert len(answers) == 6


def test_an_answer_depends_on_the_picture(model: Model, tmp_path: Path) -> None:
    files = [write_picture(tmp_path / f"{seed}.png", seed=seed) for seed in range(6)]
    answers = offramp.generate(model, "the cat", image=files, max_new_tokens=6)
    assert isinstance(answers, list)
    assert len({tuple(answer.tokens) for answer in answers}) > 1


def test_a_trace_is_what_the_model_cut_at_each_exit_says(
    model: Model, llava: Path, processor: Any, workload: Workload
) -> None:
    trace = offramp.trace(model, workload, tokens=60)
    documents = {document.id: document for document in workload.documents}
    for exit in trace.exits.tolist():
        cut = LlavaForConditionalGeneration.from_pretrained(llava, dtype=torch.float32).eval()
        language = cut.model.language_model
        language.layers = language.layers[:exit]
        for number, record in enumerate(trace.documents):
            document = documents[record.id]
            inputs = inputs_of(processor, document)
            ids = model.encode(document.text, document.given)
            front = inputs["input_ids"].shape[1]
            assert ids[:front] == inputs["input_ids"][0].tolist()
            assert ids[-1] == model.tokenizer.eos_token_id
            with torch.no_grad():
                logits = cut(input_ids=torch.tensor([ids]), pixel_values=inputs["pixel_values"]).logits[0]
            rows = np.flatnonzero(trace.document == number)
            place = trace.position[rows]
            assert place.min() == front  # what was asked is no row
            log_probability = logits.log_softmax(-1)[place]
            assert (logits.argmax(-1).numpy()[place] == trace.top1[rows, exit - 1]).all()
            nll = -log_probability[range(len(rows)), trace.next_token[rows]].numpy()
            np.testing.assert_allclose(trace.nll[rows, exit - 1], nll, rtol=1e-4, atol=1e-4)


def test_a_text_alone_is_that_of_the_language_model(model: Model, own: Any, documents: Path) -> None:
    ids = torch.tensor([model.encode("the cat sat")])
    expected = own.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
    answer: Any = offramp.generate(model, "the cat sat", max_new_tokens=8)
    assert list(answer.tokens) == expected
    trace = offramp.trace(model, f"jsonl:{documents}#text", tokens=40)
    assert trace.shape.encoder is None  # nothing is seen
    assert offramp.rerun(model, trace, "static:exit=2").exits.tolist() == [2] * 40


def test_a_request_costs_what_runs_before_its_first_token(
    model: Model, own: Any, processor: Any, workload: Workload
) -> None:
    """Counted by hooks on transformers' own forward, all but the last position of the prompt."""
    document = workload.documents[0]
    shape = model.shape_given([document])
    inputs = inputs_of(processor, document)
    counted = []
    for ids in (inputs["input_ids"], inputs["input_ids"][:, :-1]):
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):
            own(input_ids=ids, pixel_values=inputs["pixel_values"])
        counted.append(counter.get_total_flops())
    assert shape.encoder is not None
    assert shape.encoder.positions == inputs["input_ids"].shape[1]
    positions = inputs["input_ids"].shape[1] - 1
    head = 2 * positions * model.shape.head_parameters
    # Full attention scores every pair, also those that a mask hides; the formula counts what is attended.
    hidden = 4 * sum(layer.attention_width for layer in shape.layers) * positions * (positions - 1) / 2
    assert request_flops(shape) == pytest.approx(counted[1] - head - hidden, rel=0.02)


def test_a_model_object_is_wrapped_with_its_processor(
    own: Any, processor: Any, model: Model, workload: Workload
) -> None:
    document = workload.documents[0]
    given = given_of(document)
    assert given is not None
    asked: Any = {"image": given.text, "prompt": given.prompt, "max_new_tokens": 6}
    answers: Any = [offramp.generate(each, **asked) for each in (offramp.wrap(own, processor), model)]
    assert answers[0].tokens == answers[1].tokens
    without = offramp.wrap(own, processor.tokenizer)
    with pytest.raises(InputError, match="so it sees no pictures"), without.given([given]):
        pass
    assert isinstance(without.hf, Pictured)
    assert without.shape.encoder is None


def test_a_template_of_the_processor_writes_the_prompt(tmp_path: Path) -> None:
    template = (
        "{% for turn in messages %}{% for part in turn.content %}"
        "{% if part.type == 'image' %}<image>{% else %}[{{ part.text }}]{% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %} A: {% endif %}"
    )
    model = offramp.load_model(write_llava(tmp_path / "llava", chat_template=template))
    given = given_picture(write_picture(tmp_path / "a.png"), "the cat")
    front = model.front(given)
    place = model.hf.place
    assert front[: 1 + PLACES] == (0, *[place] * PLACES)
    assert model.decode(front[1 + PLACES :]) == "[the cat] A: "
    said = given_picture(tmp_path / "a.png", f"the{IMAGE}cat")
    assert model.decode(model.front(said)) == "<s>the" + PLACES * IMAGE + "cat"  # it says where
    answer = model.encode("sat", given)[len(front) :]
    assert model.decode(answer) == "sat</s>"  # no space: the prompt ends with one


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 + '' }}", "the model's chat template cannot write these turns: TypeError"),
        ("hello", "the processor cannot put the picture into the prompt: .*\nwhere: 'hello'"),
    ],
)
def test_a_template_that_takes_no_picture_is_blamed_and_not_the_family(
    template: str, said: str, tmp_path: Path
) -> None:
    model = offramp.load_model(write_llava(tmp_path / "llava", chat_template=template))
    with pytest.raises(InputError) as refused:
        model.front(given_picture(write_picture(tmp_path / "a.png"), "the cat"))
    assert re.match(said, str(refused.value))
    assert "repair the" in refused.value.fix
    assert model.encode("the cat")


def test_a_size_of_what_sees_that_the_weights_do_not_have_is_named(tmp_path: Path) -> None:
    folder = write_llava(tmp_path / "llava")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["vision_config"]["intermediate_size"] = 10**11
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"fc1.bias is \[24\] in the weight files, and \[100000000000\] by"):
        offramp.load_model(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"image_processor": {"size": {"shortest_edge": 100_000}}},
            "shortest_edge .* 100000, not a whole number from 1 to 4,096",
        ),
        (
            {"image_processor": {"merge_size": 2, "size": {"longest_edge": 10**9}}},
            "longest_edge .* 1000000000, not",
        ),
        ({"image_processor": {"max_pixels": 10**9}}, "max_pixels .* is 1000000000, not .* 1 to 50,000,000"),
        (
            {"image_processor": {"image_std": [0.5, 0, 0.5]}},
            "image_std .* is 0, not a number from 1e-06 to 1,",
        ),
        ({"image_processor": {"image_std": [0.5, float("nan"), 0.5]}}, "image_std .* is nan, not a number"),
        ({"image_processor": {"image_mean": "gray"}}, "image_mean .* is 'gray', not a number from -1000 to"),
        ({"image_processor": {"image_mean": [0.5, 0.5]}}, "is .0.5, 0.5., .* for each of 3 colours"),
        ({"image_processor": {"image_mean": [0.5, None, 0.5]}}, "image_mean .* is None, not a number"),
        ({"image_processor": {"resample": 9}}, "resample .* is 9, not a whole number from 0 to 5"),
        ({"image_processor": {"resample": 2.5}}, "resample .* is 2.5, not a whole number from 0 to 5"),
        ({"patch_size": 0}, "patch_size in processor_config.json is 0, not a"),
        ({"num_additional_image_tokens": 10**8}, "num_additional_image_tokens in processor_config.json is"),
    ],
)
def test_numbers_by_which_no_picture_is_scaled_are_refused_before_weights(
    change: dict[str, Any], what: str, tmp_path: Path, no_weights: None
) -> None:
    file = write_llava(tmp_path / "llava") / "processor_config.json"
    stated = json.loads(file.read_text())
    inner = {"image_processor": stated["image_processor"] | change.get("image_processor", {})}
    file.write_text(json.dumps(stated | change | inner))
    with pytest.raises(ModelError, match=what) as refused:
        offramp.load_model(file.parent)
    assert refused.value.where == str(file)


def test_an_answer_with_the_token_of_a_picture_is_refused_by_its_picture(
    model: Model, tmp_path: Path
) -> None:
    given = given_picture(write_picture(tmp_path / "a.png"), "What is it?")
    with pytest.raises(InputError, match=f"the answer to a picture holds {IMAGE}") as refused:
        model.hf.answer(given, f"it is {IMAGE} here")
    assert str(tmp_path / "a.png") in refused.value.where


def test_edges_that_count_pixels_may_be_long(tmp_path: Path) -> None:
    stated = {"merge_size": 2, "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    check_maker(tmp_path)


def test_a_prompt_with_pictures_is_taken_whole_and_rows_alike(
    model: Model, workload: Workload, tmp_path: Path
) -> None:
    document = workload.documents[0]
    with model.given([document]), pytest.raises(ModelError, match="has 0 places for features of pictures"):
        model.hf(input_ids=torch.tensor([[3, 4, 5]]))
    with (
        pytest.raises(InputError, match="1 of 2 prompts have a picture"),
        model.given([document, Document("t", "a text")]),
    ):
        pass
    given = given_picture(write_picture(tmp_path / "a.png", seed=98), "q")
    write_picture(tmp_path / "a.png", seed=99)
    with pytest.raises(InputError, match="the picture changed since it was given"), model.given([given]):
        pass


@pytest.mark.parametrize(
    ("shown", "said"),
    [
        ({"mm_token_type_ids": None}, "the parts of a picture attend to each other"),
        ({"get_rope_index": None}, "it counts the positions of a picture along two axes"),
    ],
)
def test_a_family_that_cannot_be_driven_with_pictures_says_why(
    shown: dict[str, Any], said: str, own: Any, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(input_ids: Any = None, mm_token_type_ids: Any = None) -> None: ...

    if "get_rope_index" in shown:
        monkeypatch.setattr(own.model, "get_rope_index", lambda: None, raising=False)
    else:
        monkeypatch.setattr(own, "forward", forward)
    with pytest.raises(InputError, match=f"is not driven with pictures: {said}"):
        Pictured(own, processor).asked(probe_picture(), "q")
