"""What a model is given beside token ids: what is read, a text, a sound or a picture. No torch here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from offramp.errors import InputError
from offramp.files import canonical_json, sha256_of_text
from offramp.kit.arguments import settle_fields
from offramp.kit.numbers import Whole

Kind = Literal["text", "audio", "image"]


@dataclass(frozen=True)
class Given:
    """What a model reads beside token ids. Raises InputError for a source that says nothing."""

    text: str = ""
    """What is read, where it is a text; of a sound or a picture the path of its file."""
    tokens: tuple[Whole, ...] | None = None
    """The encoder's token ids, exactly these, where there is no text to encode."""
    kind: Kind = "text"
    samples: str = ""
    """Of a sound or a picture, the fingerprint of what is heard or seen (`offramp.kit.sound.Sound`,
    `offramp.kit.picture.read_picture`)."""
    seconds: float = 0.0
    """Of a sound, how long it lasts."""
    prompt: str = ""
    """What is asked of a picture."""

    def __post_init__(self) -> None:
        """Refuse what says nothing."""
        settle_fields(self, InputError)
        said = self.text.strip() if self.tokens is None else self.tokens
        if not (said if self.kind == "text" else self.samples):
            raise InputError("the source is empty", where="source", fix="give it some text")

    @property
    def content(self) -> list[Any]:
        """What is hashed of it."""
        if self.kind != "text":
            return [self.kind, self.samples, *([self.prompt] if self.kind == "image" else [])]
        return [self.kind, self.text, *([] if self.tokens is None else [list(self.tokens)])]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of it: equal exactly when the encoder reads the same."""
        return sha256_of_text(canonical_json(self.content))


class GivenIds(tuple[int, ...]):
    """Token ids of a prompt that know what the model is given beside them; two that differ in it differ."""

    given: Given | None

    @classmethod
    def of(cls, ids: Iterable[int], given: Given | None) -> tuple[int, ...]:
        """The ids as a plain tuple where nothing is given."""
        if given is None:
            return tuple(ids)
        made = cls(ids)
        made.given = given
        return made

    def __eq__(self, other: object) -> bool:
        return tuple.__eq__(self, other) is True and self.given == given_of(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash((tuple(self), self.given))


def prompt_of(ids: Sequence[int]) -> tuple[int, ...]:
    """Token ids as a tuple that tells prompts apart, with what came beside them."""
    return GivenIds.of(ids, given_of(ids))


def given_of(carrier: object) -> Given | None:
    """What comes with a document, a context, a sequence or a prompt, or is it itself; None without any."""
    given = getattr(carrier, "given", carrier)
    return given if isinstance(given, Given) else None
