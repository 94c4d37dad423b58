"""Tiny random-weight models with real tokenizers, written to disk as users have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

VOCABULARY = 320
LAYERS = 4
CONTEXT = 128
GGUF_HIDDEN, GGUF_LAYERS, GGUF_VOCABULARY = 32, 2, 259
CHAT_TEMPLATE = (
    "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n{% endfor %}[assistant] "
)
LINES = (
    "the cat sat on the mat and looked at the rain",
    "a model reads one token after another and guesses the next",
    "deep layers change the guess less often than shallow ones",
    "numbers such as 12 and 345 are words too, aren't they?",
)


def write_tokenizer(folder: Path, *, vocabulary: int = VOCABULARY, chat_template: str | None = None) -> None:
    """A byte-level BPE tokenizer trained on a few lines; every byte has a token, so every text encodes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
"""The config of the tests' Llama."""


def write_llama(folder: Path, *, chat_template: str | None = None, **config: Any) -> Path:
    """A random Llama of 4 layers and its tokenizer; its layers agree with the last one now and then."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**(LLAMA | config))).save_pretrained(folder)
    write_tokenizer(folder, chat_template=chat_template)
    return folder


def write_documents(path: Path, *, documents: int = 48, words: int = 30, seed: int = 0) -> Path:
    """A JSON-lines file of short documents in the field "text", made of the tokenizer's own words."""
    import json

    vocabulary = " ".join(LINES).split()
    generator = np.random.default_rng(seed)
    lines = [
        json.dumps({"id": f"d{number}", "text": " ".join(generator.choice(vocabulary, size=words))})
        for number in range(documents)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_granite(folder: Path, *, poisoned: str) -> Path:
    """A random Granite whose embedding of one character, once scaled as Granite does, is infinite.

    Its stored weights are finite, so that only documents with that character meet a non-finite logit.
    """
    import torch
    from transformers import AutoTokenizer, GraniteConfig, GraniteForCausalLM

    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    token = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(poisoned)
    config = GraniteConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=CONTEXT,
        bos_token_id=0,
        eos_token_id=1,
        embedding_multiplier=10.0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = GraniteForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = 3e38
    model.save_pretrained(folder)
    return folder


def write_gguf(
    path: Path,
    *,
    dtype: Any = np.float32,
    licence: str | None = "mit",
    change: Callable[[dict[str, np.ndarray]], Any] | None = None,
    keys: Mapping[str, Any] | None = None,
    **stated: int,
) -> dict[str, np.ndarray]:
    """A random Llama of 2 layers with a byte-level tokenizer; returns its tensors.

    change: is given these before they are written. keys: other values of the header, None for none. stated:
    other sizes, by the ends of keys.
    """
    from gguf import GGUFValueType, GGUFWriter, TokenType
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    writer = GGUFWriter(path, "llama")
    if licence is not None:
        writer.add_license(licence)
    sizes = {
        "block_count": GGUF_LAYERS,
        "context_length": 64,
        "embedding_length": GGUF_HIDDEN,
        "feed_forward_length": 48,
        "head_count": 4,
        "head_count_kv": 4,
        "dimension_count": 8,
        "vocab_size": GGUF_VOCABULARY,
    }
    folders = {"head_count": "attention.", "head_count_kv": "attention.", "dimension_count": "rope."}
    for key, size in (sizes | stated).items():
        writer.add_uint32(f"llama.{folders.get(key, '')}{key}", size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    tokens = ["<s>", "</s>", *bytes_to_unicode().values(), "ab"]
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL] * 2 + [TokenType.NORMAL] * 257)
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    generator = np.random.default_rng(0)
    shapes = {"token_embd.weight": (GGUF_VOCABULARY, GGUF_HIDDEN), "output_norm.weight": (GGUF_HIDDEN,)}
    for layer in range(GGUF_LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{layer}.{name}.weight"] = (GGUF_HIDDEN, GGUF_HIDDEN)
        shapes[f"blk.{layer}.ffn_gate.weight"] = shapes[f"blk.{layer}.ffn_up.weight"] = (48, GGUF_HIDDEN)
        shapes[f"blk.{layer}.ffn_down.weight"] = (GGUF_HIDDEN, 48)
        shapes[f"blk.{layer}.attn_norm.weight"] = shapes[f"blk.{layer}.ffn_norm.weight"] = (GGUF_HIDDEN,)
    tensors = {name: generator.normal(size=shape).astype(dtype) for name, shape in shapes.items()}
    if change is not None:
        change(tensors)
    for key, value in (keys or {}).items():
        writer.kv_data[0].pop(key, None)
        if value is not None:
            kind = GGUFValueType.get_type(value)
            if kind == GGUFValueType.INT32:
                kind = GGUFValueType.INT64 if value < 0 else GGUFValueType.UINT64
            writer.add_key_value(key, value, kind)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


SOURCE_POSITIONS = 48


def write_t5(folder: Path, **config: Any) -> Path:
    """A random T5 of 4 decoder layers, whose first one hands its position bias on, and a tokenizer."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": LAYERS,
        "num_decoder_layers": LAYERS,
        "num_heads": 4,
        "initializer_factor": 1.5,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
    }
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    T5ForConditionalGeneration(T5Config(**(values | config))).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


ENCODER_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.3,
}
"""What the configs of BART and Whisper call alike."""


def write_bart(folder: Path, **config: Any) -> Path:
    """A random BART of 2 encoder and 4 decoder layers, with learned positions, and a tokenizer."""
    import torch
    from transformers import BartConfig, BartForConditionalGeneration

    values: dict[str, Any] = {
        **ENCODER_DECODER,
        "max_position_embeddings": SOURCE_POSITIONS,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
        "forced_eos_token_id": None,
    }
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    BartForConditionalGeneration(BartConfig(**(values | config))).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_pairs(path: Path, *, documents: int = 24, seed: int = 0) -> Path:
    """A JSON-lines file of pairs of different lengths in the fields "en" and "de"."""
    import json

    vocabulary = " ".join(LINES).split()
    generator = np.random.default_rng(seed)

    def text(least: int, most: int) -> str:
        return " ".join(generator.choice(vocabulary, size=int(generator.integers(least, most))))

    lines = [
        json.dumps({"id": f"d{number}", "en": text(3, 9), "de": text(6, 14)}) for number in range(documents)
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


SOUND_RATE, SOUND_SECONDS = 16_000, 1
SUPPRESSED, NOT_FIRST, NO_TIMESTAMPS = (2, 30, *range(100, 150)), (1, 40, *range(150, 200)), 5
"""Signs and bytes that no text of `write_sounds` has, often enough a random model's choice."""


def write_whisper(folder: Path, **generation: Any) -> Path:
    """A random Whisper of 2 encoder and 4 decoder layers that hears a second, its tokenizer and extractor.

    generation: further entries of its generation config.
    """
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
    )

    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1, "decoder_start_token_id": 0}
    values: dict[str, Any] = {
        **ENCODER_DECODER,
        "num_mel_bins": 16,
        "max_source_positions": 50 * SOUND_SECONDS,
        "max_target_positions": 64,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(WhisperConfig(**values, **special))
    own = {
        "suppress_tokens": list(SUPPRESSED),
        "begin_suppress_tokens": list(NOT_FIRST),
        "no_timestamps_token_id": NO_TIMESTAMPS,
        "max_length": 64,
    }
    model.generation_config = GenerationConfig(**(own | generation), **special)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=SOUND_SECONDS).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


IMAGE, PICTURE_SIDE, PATCH = "<image>", 16, 8


def write_llava(folder: Path, *, chat_template: str | None = None, **text: Any) -> Path:
    """A random LLaVA: a CLIP of 2 layers that makes 4 places of a picture, a Llama of 4 layers, a processor.

    text: further entries of the Llama's config.
    """
    import torch
    from transformers import (
        AutoTokenizer,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    place = tokenizer.convert_tokens_to_ids(IMAGE)
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **vision, image_size=PICTURE_SIDE, patch_size=PATCH, initializer_factor=8.0
        ),
        text_config=LlamaConfig(**(LLAMA | {"vocab_size": place + 1} | text)),
        image_token_id=place,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():  # so that an answer depends on the picture
        for weight in model.model.multi_modal_projector.parameters():
            torch.nn.init.normal_(weight, std=0.4)
    model.save_pretrained(folder)
    seen = CLIPImageProcessorPil(
        size={"shortest_edge": PICTURE_SIDE}, crop_size={"height": PICTURE_SIDE, "width": PICTURE_SIDE}
    )
    LlavaProcessor(
        image_processor=seen,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=chat_template,
    ).save_pretrained(folder)
    return folder


def write_picture(path: Path, *, seed: int = 0, size: tuple[int, int] = (20, 24)) -> Path:
    """A picture of random pixels."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_pictures(folder: Path, *, documents: int = 60, seed: int = 0) -> Path:
    """Pictures, and all.jsonl with a question of each, of different lengths, and an answer."""
    import json

    vocabulary = " ".join(LINES).split()
    generator = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    lines = []
    for number in range(documents):
        write_picture(folder / f"p{number:02}.png", seed=number)
        prompt, answer = (
            " ".join(generator.choice(vocabulary, size=int(generator.integers(least, most))))
            for least, most in ((2, 7), (4, 10))
        )
        line = {"id": f"p{number:02}", "image": f"p{number:02}.png", "prompt": prompt, "answer": answer}
        lines.append(json.dumps(line))
    (folder / "all.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_wav(path: Path, samples: Any, *, rate: int = SOUND_RATE) -> Path:
    """A WAV file of 16 bits, of float64 [samples] or [samples, channels] from -1 to 1."""
    import wave

    values = np.round(np.asarray(samples) * 32767).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if values.ndim == 1 else values.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(values.tobytes())
    return path


def write_sounds(folder: Path, *, documents: int = 12, seed: int = 0) -> Path:
    """Short sounds, each beside a text."""
    vocabulary = " ".join(LINES).split()
    generator = np.random.default_rng(seed)
    folder.mkdir(exist_ok=True)
    for number in range(documents):
        times = np.arange(int(generator.integers(4_000, 12_000))) / SOUND_RATE
        tones = generator.uniform(100, 4_000, size=3)
        sound = sum(np.sin(2 * np.pi * tone * times) for tone in tones) / 4 + generator.normal(
            0, 0.01, len(times)
        )
        write_wav(folder / f"s{number:02}.wav", np.clip(sound, -1, 1))
        text = " ".join(generator.choice(vocabulary, size=int(generator.integers(6, 12))))
        (folder / f"s{number:02}.txt").write_text(text + "\n", encoding="utf-8")
    return folder
