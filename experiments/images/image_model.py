"""A LLaVA of transformers around a language model at hand: a small CLIP that sees, and a projector.

A picture becomes 16 x 16 pixels, each the mean of what it covers, and 5 image tokens: the class token and 4
patches. `<image>` takes the place of a token that text hardly has, so that the language model's vocabulary
and head stay as they are.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as typed
from PIL import Image
from torch import Tensor

from offramp import InputError

transformers: Any = typed  # whose classes take whatever a config has
SIDE, PATCH, IMAGE_TOKENS = 16, 8, 5
SQUARE = {"height": SIDE, "width": SIDE}
VISION = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4}
SPARE, IMAGE = "<empty_output>", "<image>"
"""The special token of smollm2's that is given up (it marks cells of notebooks), and what it becomes."""
CHAT_TEMPLATE = (
    "{% for message in messages %}Question: {% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '\\nPicture:<image>\\n' }}{% endfor %}"
)
"""A question as `questions.Question.prompt` has it."""


def processor_of(tokenizer: Any) -> Any:
    """Pictures and prompts as the model takes them. Raises InputError for a tokenizer without SPARE."""
    if SPARE not in tokenizer.get_vocab():
        raise InputError(f"the tokenizer has no {SPARE}", where="tokenizer", fix="take that of smollm2")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in Path(folder).glob("*.json"):
            file.write_text(file.read_text(encoding="utf-8").replace(SPARE, IMAGE), encoding="utf-8")
        renamed = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    return transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessorPil(
            size=SQUARE, crop_size=SQUARE, resample=Image.Resampling.BOX
        ),
        tokenizer=renamed,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def assemble(text: Any, image_token: int) -> Any:
    """The model, frozen: the language model's own modules, the others drawn at random."""
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(image_size=SIDE, patch_size=PATCH, **VISION),
        text_config=text.config,
        image_token_index=image_token,
        image_seq_length=IMAGE_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=text.config.tie_word_embeddings,
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.model.language_model, model.lm_head = text.model, text.lm_head
    model.generation_config = text.generation_config
    return model.eval().requires_grad_(False)


def around_picture(processor: Any, prompt: str) -> tuple[list[int], list[int]]:
    """The token ids of a prompt before and after its image tokens."""
    inputs = processor(images=[Image.new("RGB", (SIDE, SIDE))], text=[prompt])
    ids = [int(token) for token in inputs["input_ids"][0]]
    first = ids.index(processor.image_token_id)
    return ids[:first], ids[first + IMAGE_TOKENS :]


@torch.no_grad()
def read_ahead(language_model: Any, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Keys and values of prompts, float32 [prompts, layers, 2, heads, positions, features], and where they
    hold any, int64 [prompts, positions]: shorter prompts begin later, with zeros before them."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts])
    there = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    cache, positions = transformers.DynamicCache(), (there.cumsum(1) - 1).clamp(min=0)
    language_model(input_ids=ids, attention_mask=there, position_ids=positions, cache=cache, use_cache=True)
    states = torch.stack([torch.stack([layer.keys, layer.values]) for layer in cache.layers])
    return states.movedim(2, 0).masked_fill(there[:, None, None, None, :, None] == 0, 0.0), there
