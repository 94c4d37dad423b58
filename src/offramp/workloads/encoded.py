"""Documents as token ids, encoded only when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import overload

from offramp.workloads.workload import Document

SHORTEST_START = 1 << 14
CHARACTERS_PER_TOKEN = 16
"""How much of a long text is encoded first."""


@dataclass(frozen=True)
class EncodedDocument:
    """One document as token ids.

    ids: what the encoder gave, what it puts in front (BOS) included; in generation mode prompt and answer.
    prepended: how many of the first ids are not the document's own (BOS).
    prompt_length: ids of the prompt in generation mode, None for a given text.
    """

    id: str
    ids: tuple[int, ...]
    prepended: int = 0
    prompt_length: int | None = None

    @property
    def available(self) -> int:
        """Rows of what was encoded: own positions (or generated ones) whose next token is known."""
        first_row = self.prepended if self.prompt_length is None else self.prompt_length
        return max(0, len(self.ids) - first_row - 1)


def encode_start(encode: Callable[[str], Sequence[int]], text: str, most: int | None) -> Sequence[int]:
    """Ids of a text: of one that is much longer than so many tokens, the first ones only. None: all.

    A start of a text ends anywhere, within a word even, so that its last ids may be others than those of the
    whole: ids count only where a start of twice the length has the same.
    """
    size = SHORTEST_START + CHARACTERS_PER_TOKEN * (most or 0)
    while most is not None and 2 * size < len(text):
        ids, longer = encode(text[:size]), encode(text[: 2 * size])
        if len(ids) > most and list(ids[:most]) == list(longer[:most]):
            return ids[:most]
        size *= 2
    return encode(text)


class EncodedDocuments(Sequence[EncodedDocument]):
    """The documents of a workload in text mode, each encoded once, when it is first asked for.

    A selection reads documents in order and stops when it has enough, so a large file is not encoded whole.
    Nor is a long document, of which no more than `most` own tokens are wanted (None: all of them).
    """

    def __init__(
        self,
        documents: Sequence[Document],
        encode: Callable[[str], Sequence[int]],
        *,
        prepended: int = 0,
        most: int | None = None,
    ) -> None:
        self._documents = documents
        self._encode = encode
        self._most = most
        self._prepended = prepended
        self._encoded: dict[int, EncodedDocument] = {}

    def __len__(self) -> int:
        return len(self._documents)

    @overload
    def __getitem__(self, index: int) -> EncodedDocument: ...

    @overload
    def __getitem__(self, index: slice) -> list[EncodedDocument]: ...

    def __getitem__(self, index: int | slice) -> EncodedDocument | list[EncodedDocument]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        if place not in self._encoded:
            document = self._documents[place]
            most = None if self._most is None else self._prepended + self._most
            ids = tuple(int(token) for token in encode_start(self._encode, document.text, most))
            self._encoded[place] = EncodedDocument(document.id, ids, prepended=self._prepended)
        return self._encoded[place]
