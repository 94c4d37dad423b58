"""A workload: texts or prompts with their licence and fingerprint; and a source of such, for the registry."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from offramp.errors import WorkloadError
from offramp.files import canonical_json, sha256_of_text
from offramp.kit.arguments import settle_fields
from offramp.kit.given import Given, Kind
from offramp.kit.numbers import Count, Whole
from offramp.kit.rules import Beside

Mode = Literal["text", "generation"]


@dataclass(frozen=True)
class Document:
    """One text, or one prompt whose answer the model will write. `id` is unique within the workload.

    Raises WorkloadError for fields of other types, and token ids below 0.
    """

    id: str
    text: str
    tokens: tuple[Whole, ...] | None = None
    """The token ids that the model is given, exactly these, where there is no text to encode; `text` then
    lists them."""
    messages: tuple[tuple[str, str], ...] | None = None
    """Role and content of the turns of a conversation, which the chat template writes; `text` then is what
    they say."""
    kind: str | None = None
    """Of generated ones the generator, None for others. Where few are picked, each kind has its turn."""
    given: Given | None = None
    """What a model reads, a text, a sound, or a picture with what is asked of it, of which the text is what
    it is to write; None for a text alone."""

    def __post_init__(self) -> None:
        """Refuse what is no text or no token id."""
        settle_fields(self, WorkloadError)

    @property
    def content(self) -> list[Any]:
        """What is hashed of it: id and text, and whatever else says what the model is given."""
        tokens = [] if self.tokens is None else [list(self.tokens)]
        messages = [] if self.messages is None else [list(self.messages)]
        return [self.id, self.text, *tokens, *messages, *([] if self.given is None else [self.given.content])]


@dataclass(frozen=True)
class Workload:
    """Documents in a fixed order, and where they come from.

    Raises WorkloadError for fields of other types, counts below 1, two documents with one id, text that is no
    valid Unicode, and a chat template that given text would go through.
    """

    name: str
    """As given on the command line ("prose", "txt:notes.txt")."""
    mode: Mode
    """Where rows come from: "text" traces the given text, teacher-forced; "generation" lets the full model
    answer each prompt greedily and traces the answer."""
    documents: tuple[Document, ...]
    licence: str
    source: str
    chat: Annotated[
        bool,
        Beside(
            lambda chat, given: not chat or given.mode == "generation",
            "off, as a given text goes through no chat template",
            'set chat=False, or mode="generation"',
        ),
    ] = False
    """The prompts go through the model's chat template."""
    notes: tuple[str, ...] = ()
    """What was done to the texts that a reader of the results must know, one phrase each."""
    prompt_tokens: Count | None = None
    """In generation mode, of each document's text, which the model continues; None for all of it."""
    new_tokens: Count | None = None
    """Of each answer, that are read at most where the text is traced, fitted or trained on, None for as many
    as are asked for there. What is decoded to certify or to time a policy is as long as that asks."""

    def __post_init__(self) -> None:
        """Refuse what cannot be traced, or only as something else than it says."""
        settle_fields(self, WorkloadError)
        self._require_distinct_unicode()

    def _require_distinct_unicode(self) -> None:
        seen: set[str] = set()
        for document in self.documents:
            where = f"{self.name}, document {document.id!r}"
            if document.id in seen:
                fix = "make the ids distinct"
                raise WorkloadError("two documents have the same id", where=where, fix=fix)
            seen.add(document.id)
            said = [("id", document.id), ("text", document.text)]
            if document.given is not None:
                said += [("source", document.given.text), ("prompt", document.given.prompt)]
            for role, content in document.messages or ():
                said += [("role", role), ("message", content)]
            for part, value in said:
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    raise WorkloadError(
                        f"a document's {part} holds half of a surrogate pair at character {error.start:,}",
                        where=where,
                        fix="take it out (in JSON it may be an escape like \\ud800); name files in UTF-8",
                    ) from error

    def __repr__(self) -> str:
        return f"Workload({self.name}, {self.mode}, {len(self.documents):,} documents)"

    @property
    def reads(self) -> Kind | None:
        """What a model reads beside each text, which is what it writes of that; None for texts alone."""
        return next((document.given.kind for document in self.documents if document.given is not None), None)

    @property
    def decoded_whole(self) -> bool:
        """Whether what is decoded from is a prompt as it is, and not the start of a text: a decoder that is
        given a source begins with nothing of the text."""
        return self.mode == "generation" or self.reads is not None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of mode, chat and every document: equal exactly when the traced text is equal."""
        content: list[object] = [self.mode, self.chat, [document.content for document in self.documents]]
        if (self.prompt_tokens, self.new_tokens) != (None, None):
            content.append([self.prompt_tokens, self.new_tokens])
        return sha256_of_text(canonical_json(content))


@dataclass(frozen=True)
class WorkloadSize:
    """Another cut of a source's texts, written after a colon: "prose:short"."""

    name: str
    load: Callable[[], Workload]
    documents: str
    description: str
    """Both for people, one phrase each."""


@dataclass(frozen=True)
class WorkloadSource:
    """One kind of workload that `load_workload` knows."""

    name: str
    """The word before the colon ("prose", "txt")."""
    load: Callable[[str], Workload]
    """Makes the workload from the text after the colon ("" where `argument` is empty)."""
    mode: Mode
    documents: str
    licence: str
    description: str
    """All three for people, one phrase each."""
    argument: str = ""
    """Grammar of that text ("PATH#field"), empty if the source takes none."""
    sizes: tuple[WorkloadSize, ...] = ()
    """Other cuts of the same kind of text, for a source that takes no argument."""

    @property
    def grammar(self) -> str:
        """How the source is written on the command line: "prose", "txt:PATH"."""
        return f"{self.name}:{self.argument}" if self.argument else self.name

    @property
    def described(self) -> tuple[WorkloadSource, ...]:
        """Every way to write it by its name, one source per size: "prose", "prose:short"."""
        return (
            replace(self, name=self.grammar, argument="", sizes=()),
            *(
                WorkloadSource(
                    f"{self.name}:{size.name}",
                    lambda _, load=size.load: load(),  # type: ignore[misc]
                    self.mode,
                    size.documents,
                    self.licence,
                    size.description,
                )
                for size in self.sizes
            ),
        )

    def open(self, argument: str | None) -> Workload:
        """The workload for the text after the colon, None without a colon.

        Raises WorkloadError for an argument that is missing, that the source does not take, or that is no
        size of it (with those that there are).
        """
        if self.argument and not argument:
            raise WorkloadError(f"the workload {self.name!r} needs an argument", fix=f"write {self.grammar}")
        if self.argument or argument is None:
            return self.load(argument or "")
        if not self.sizes:
            raise WorkloadError(
                f"the workload {self.name!r} takes no argument, but {argument!r} was given",
                fix=f"write {self.name}",
            )
        sizes = {size.name: size for size in self.sizes}
        if argument not in sizes:
            near = difflib.get_close_matches(argument, sizes, n=1)
            hint = f"did you mean {self.name}:{near[0]}? " if near else ""
            raise WorkloadError(
                f"the workload {self.name!r} has no size {argument!r}",
                fix=f"{hint}write {' or '.join(source.name for source in self.described)}",
            )
        return sizes[argument].load()
