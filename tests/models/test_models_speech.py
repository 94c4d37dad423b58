"""A Whisper: its features, what stands in front of an answer, tokens that are suppressed at every exit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_folders import edit_json
from transformers import (
    GenerationMixin,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
)

import offramp
from offramp.errors import InputError, ModelError
from offramp.kit.given import Given
from offramp.kit.sound import given_sound, sound_of
from offramp.models.model import Model
from offramp.workloads.workload import Workload
from tiny_models import (
    NO_TIMESTAMPS,
    NOT_FIRST,
    SOUND_SECONDS,
    SUPPRESSED,
    write_wav,
    write_whisper,
)

FRONT = (0, NO_TIMESTAMPS)


@pytest.fixture(scope="module")
def model(whisper: Path) -> Model:
    return offramp.load_model(whisper)


@pytest.fixture(scope="module")
def own(whisper: Path) -> Any:
    return WhisperForConditionalGeneration.from_pretrained(whisper, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def workload(sounds: Path) -> Workload:
    return offramp.load_workload(f"audio:{sounds}")


def features_of(whisper: Path, given: Given) -> torch.Tensor:
    extractor = WhisperFeatureExtractor.from_pretrained(whisper)
    samples = sound_of(given).samples
    features: torch.Tensor = extractor(samples, sampling_rate=16_000, return_tensors="pt")["input_features"]
    return features


def test_an_answer_and_its_logits_are_what_transformers_generates(
    model: Model, own: Any, whisper: Path, workload: Workload
) -> None:
    for document in workload.documents[:4]:
        assert document.given is not None
        with torch.no_grad():
            expected = GenerationMixin.generate(
                own,
                input_features=features_of(whisper, document.given),
                decoder_input_ids=torch.tensor([FRONT]),
                max_new_tokens=10,
                do_sample=False,
                output_scores=True,
                return_dict_in_generate=True,
            )
        tokens = expected.sequences[0, len(FRONT) :].tolist()
        answer = offramp.generate(model, audio=document.given.text, max_new_tokens=10)
        assert list(answer.tokens) == tokens
        assert not set(tokens) & set(SUPPRESSED)
        assert tokens[0] not in NOT_FIRST
        speculated = offramp.generate(
            model, audio=document.given.text, max_new_tokens=10, policy="static:exit=2", kv="speculate"
        )
        assert list(speculated.tokens) == tokens
        with model.given([document]), torch.no_grad():
            read = model.hf(input_ids=expected.sequences[:, :-1], use_cache=False).logits[0, len(FRONT) - 1 :]
        scores = torch.stack([row[0] for row in expected.scores])
        scores[0, list(NOT_FIRST)] = read[0, list(NOT_FIRST)]  # which is no rule of the model's
        torch.testing.assert_close(read, scores, rtol=1e-4, atol=1e-4)
        assert bool((read[:, list(SUPPRESSED)] == -torch.inf).all())


def test_facts_are_taken_after_suppression_at_every_exit(
    model: Model, whisper: Path, workload: Workload
) -> None:
    trace = offramp.trace(model, workload, tokens=80)
    documents = {document.id: document for document in workload.documents}
    assert trace.position.min() == len(FRONT)  # what stands in front is no row
    for exit in trace.exits.tolist():
        cut = WhisperForConditionalGeneration.from_pretrained(whisper, dtype=torch.float32).eval()
        decoder = cut.get_decoder()
        decoder.layers = decoder.layers[:exit]
        for number, record in enumerate(trace.documents):
            document = documents[record.id]
            assert document.given is not None
            ids = torch.tensor([model.encode(document.text)])
            assert tuple(ids[0, : len(FRONT)].tolist()) == FRONT
            assert int(ids[0, -1]) == model.tokenizer.eos_token_id
            with torch.no_grad():
                logits = cut(
                    input_features=features_of(whisper, document.given),
                    decoder_input_ids=ids,
                    use_cache=False,
                ).logits[0]
            logits[:, list(SUPPRESSED)] = -torch.inf
            rows = np.flatnonzero(trace.document == number)
            place = trace.position[rows]
            log_probability = logits.log_softmax(-1)[place]
            assert (logits.argmax(-1).numpy()[place] == trace.top1[rows, exit - 1]).all()
            nll = -log_probability[range(len(rows)), trace.next_token[rows]].numpy()
            np.testing.assert_allclose(trace.nll[rows, exit - 1], nll, rtol=1e-4, atol=1e-4)
            known = torch.where(log_probability.isfinite(), log_probability, 0.0)
            entropy = -(log_probability.exp() * known).sum(-1).numpy()
            np.testing.assert_allclose(trace.entropy[rows, exit - 1], entropy, rtol=1e-4, atol=1e-4)
    assert not np.isin(trace.top1, SUPPRESSED).any()


def test_a_model_object_is_wrapped_with_its_processor_and_stays_as_it_is(
    model: Model, whisper: Path, own: Any, workload: Workload
) -> None:
    before = {name: value.clone() for name, value in own.state_dict().items()}
    extractor = WhisperFeatureExtractor.from_pretrained(whisper)
    processor: Any = WhisperProcessor.__new__(WhisperProcessor)
    processor.feature_extractor, processor.tokenizer = extractor, model.tokenizer
    wrapped = offramp.wrap(own, processor, name="mine")
    assert own.proj_out.bias is None
    assert own.state_dict().keys() == before.keys() == wrapped.hf.inner.state_dict().keys()
    assert wrapped.hf.inner.model is own.model
    assert wrapped.bos_policy.front == FRONT
    sound = workload.documents[0].given
    assert sound is not None
    answers = [offramp.generate(each, audio=Path(sound.text), max_new_tokens=8) for each in (wrapped, model)]
    assert answers[0].tokens == answers[1].tokens  # type: ignore[union-attr]
    without = offramp.wrap(own, model.tokenizer)
    with pytest.raises(InputError, match="so it hears none"), without.given([sound]):
        pass
    processor.feature_extractor = WhisperFeatureExtractor(feature_size=80, chunk_length=SOUND_SECONDS)
    with pytest.raises(ModelError, match="80 mel bands of 100 frames, and the encoder reads 16 of 100"):
        offramp.wrap(own, processor)


LANGUAGES = {
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 50, "<|de|>": 51},
    "task_to_id": {"transcribe": 60, "translate": 61},
}


@pytest.mark.parametrize(
    ("generation", "front"),
    [
        ({}, (0, NO_TIMESTAMPS)),
        (LANGUAGES, (0, 50, 60, NO_TIMESTAMPS)),
        ({**LANGUAGES, "language": "german", "task": "translate"}, (0, 51, 61, NO_TIMESTAMPS)),
        ({**LANGUAGES, "language": "<|de|>"}, (0, 51, 60, NO_TIMESTAMPS)),
        ({**LANGUAGES, "forced_decoder_ids": [[1, None], [2, 60]]}, (0, 50, 60, NO_TIMESTAMPS)),
        ({"forced_decoder_ids": [[1, 8]]}, (0, 8)),
    ],
)
def test_what_the_generation_config_forces_stands_in_front(
    generation: dict[str, Any], front: tuple[int, ...], own: Any
) -> None:
    from transformers import GenerationConfig

    from offramp.models.conditioned import Conditioned

    before = own.generation_config
    given = {"decoder_start_token_id": 0, "no_timestamps_token_id": NO_TIMESTAMPS}
    own.generation_config = GenerationConfig(**given, **generation)  # type: ignore[no-untyped-call]
    try:
        assert Conditioned(own).front == front
    finally:
        own.generation_config = before


def test_a_language_that_the_model_does_not_know_is_refused(tmp_path: Path) -> None:
    whisper = write_whisper(tmp_path / "whisper", **LANGUAGES, language="klingon")
    with pytest.raises(ModelError, match="a language or task that the model does not know"):
        offramp.load_model(whisper)


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("suppress_tokens", [10**7, -1], "has 10000000, and the ids of tokens are 0 to"),
        ("begin_suppress_tokens", [-2], "has -2"),
        ("suppress_tokens", list(range(320)), "leaves no token"),
        ("forced_decoder_ids", [[1, 999_999], [2, 4]], "has 999999"),
        ("decoder_start_token_id", -1, "has -1"),
        ("eos_token_id", [2, 10**6], "has 1000000"),
        ("lang_to_id", {"<|en|>": 10**6}, "has 1000000"),
        ("bad_words_ids", [[3], [4, "x"]], "has 'x'"),
    ],
)
def test_token_ids_beyond_the_vocabulary_are_refused_by_their_key_before_weights(
    tmp_path: Path, no_weights: None, key: str, value: Any, what: str
) -> None:
    whisper = write_whisper(tmp_path / "whisper")
    file = whisper / "generation_config.json"
    edit_json(file, **{key: value})
    with pytest.raises(ModelError, match=f"{key} in generation_config.json {what}") as refused:
        offramp.load_model(whisper)
    assert refused.value.where == str(file)


def test_numbers_by_which_no_sound_is_heard_are_refused_before_weights(
    tmp_path: Path, no_weights: None
) -> None:
    file = write_whisper(tmp_path / "whisper") / "preprocessor_config.json"
    for key, value, before in (
        ("dither", 1e9, 0.0),
        ("padding_value", -1e30, 0.0),
        ("sampling_rate", 7, 16_000),
        ("n_fft", 10**9, 400),
        ("hop_length", 0, 160),
        ("chunk_length", 10**9, 1),
        ("feature_size", 10**9, 16),
    ):
        edit_json(file, **{key: value})
        with pytest.raises(ModelError, match=f"{key} in preprocessor_config.json is ") as refused:
            offramp.load_model(file.parent)
        assert refused.value.where == str(file)
        edit_json(file, **{key: before})


def test_no_token_is_suppressed_by_minus_one(own: Any) -> None:
    from transformers import GenerationConfig

    from offramp.models.conditioned import Conditioned

    before = own.generation_config
    own.generation_config = GenerationConfig(suppress_tokens=[-1, 3])  # type: ignore[no-untyped-call]
    try:
        bias = Conditioned(own).inner.get_output_embeddings().bias
        assert bias.isinf().nonzero().flatten().tolist() == [3]
    finally:
        own.generation_config = before


@pytest.mark.parametrize("lacking", [("lang_to_id", "task_to_id"), ("task_to_id",)])
def test_a_multilingual_model_without_its_languages_is_refused_by_name(
    lacking: tuple[str, ...], tmp_path: Path
) -> None:
    given = {name: value for name, value in LANGUAGES.items() if name not in lacking}
    whisper = write_whisper(tmp_path / "whisper", **given)
    with pytest.raises(ModelError, match=f"multilingual, and lacks {' and '.join(lacking)}\n") as refused:
        offramp.load_model(whisper)
    assert "copy generation_config.json of the original model" in refused.value.fix


def test_the_encoder_reads_a_sound_once_and_never_another(model: Model, tmp_path: Path) -> None:
    tone = 0.5 * np.sin(np.arange(6_000) / 7.0)
    sound = given_sound(write_wav(tmp_path / "a.wav", tone))
    with model.given([sound]):
        kept = len(model.hf.encodings)
    (tmp_path / "a.wav").unlink()  # what was encoded is not read again
    with model.given([sound, sound]):
        assert len(model.hf.encodings) == kept
    again = given_sound(write_wav(tmp_path / "a.wav", 0.9 * tone))
    write_wav(tmp_path / "a.wav", 0.7 * tone)
    with pytest.raises(InputError, match="the sound changed since it was given"), model.given([again]):
        pass
    long = given_sound(write_wav(tmp_path / "b.wav", np.tile(tone, 3)))
    with pytest.raises(InputError, match=r"lasts 1\.1 s, and whisper reads 1 s at most"), model.given([long]):
        pass


def test_the_shape_is_measured_on_features(model: Model) -> None:
    assert model.shape.encoder is not None
    assert model.shape.encoder.positions == 50 * SOUND_SECONDS
    assert all(layer.cross is not None and layer.kind == "attention" for layer in model.shape.layers)
    assert (model.reads, model.stack.largest_difference) == ("audio", 0.0)


def test_an_extractor_of_another_model_is_refused_before_weights(tmp_path: Path, no_weights: None) -> None:
    folder = write_whisper(tmp_path / "whisper")
    WhisperFeatureExtractor(feature_size=16).save_pretrained(folder)
    with pytest.raises(ModelError, match="16 mel bands of 3,000 frames, and the encoder reads 16 of 100"):
        offramp.load_model(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ModelError, match="cannot read what makes features of sounds"):
        offramp.load_model(folder)
