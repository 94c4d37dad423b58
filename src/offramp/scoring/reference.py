"""What the study published, to hold results against."""

from __future__ import annotations

from dataclasses import dataclass

STUDY = "arXiv 2603.23701"


@dataclass(frozen=True)
class PublishedScore:
    """An Early-exit Adaptability Score that the study reports; its similarity and alpha are unpublished."""

    model: str
    eas: float
    source: str = STUDY


PUBLISHED_EAS: tuple[PublishedScore, ...] = (
    PublishedScore("Llama2-7B", 0.52),
    PublishedScore("Llama3-8B", 0.46),
    PublishedScore("LayerSkip-Llama3-8B", 0.54),
    PublishedScore("Qwen2-7B", 0.36),
    PublishedScore("Qwen3-8B", 0.51),
    PublishedScore("GPT-OSS-20B", 0.59),
)
