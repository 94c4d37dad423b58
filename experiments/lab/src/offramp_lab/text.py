"""A text for small models: gathered, dealt to parts by whole works, a quarter of it made with known depth.

Its folder holds `PART-KIND.jsonl` (documents, a line each), `tokens.safetensors`, `tokenizer/`, and, written
last, `text.json`: every source with its licence, and the SHA-256 of every file.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from offramp import Document, InputError, documents_seen, load_workload, text_groups
from offramp_lab.generated import Answer, Problem, problems
from offramp_lab.sources import NATURAL, PARTS, SOURCES, Found, NaturalKind, Part, Source, Work

Tokens = NDArray[np.uint16]

RECORD_FILE, TOKENS_FILE, TOKENIZER = "text.json", "tokens.safetensors", "tokenizer"
NATURAL_TOKENS, GENERATED, STEPS = "natural", "generated", "steps"

BEGINNING = "<|text|>"
"""In front of every document, and so what ends the one before."""

APART = 0.1
"""Of the characters of a source, the share that is kept for each part that weights are not fitted on. Works
that stay together and are more than this share are trained on."""

PROBLEMS_APART = 300
"""Generated documents of the parts that are not trained on."""


class OwnText(BaseModel):
    """A file or folder of one's own (*.txt, *.md), each file a work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    path: str
    kind: NaturalKind
    licence: str
    part: Part | None = None
    """Where it must go; without it, it is dealt like the rest."""


class TextRequest(BaseModel):
    """What a text is made of."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: Annotated[int, Field(ge=0)] = 0
    vocabulary: Annotated[int, Field(ge=258, le=1 << 16)] = 2048
    """All bytes, the beginning of a text and one more, at least; at most what 16 bits number."""
    characters: Annotated[int, Field(ge=1)] = 6_000_000
    """Of each source, at most."""
    generated: Annotated[float, Field(gt=0, le=0.9)] = 0.25
    """Share of the tokens to train on that is generated."""
    sources: tuple[str, ...] = tuple(SOURCES)
    folders: tuple[str, ...] = ("/",)
    """Where Debian's packages lie, each with a `usr` in it."""
    own: tuple[OwnText, ...] = ()

    def placed(self, folder: Path) -> TextRequest:
        """The request with its paths, which are relative to a folder, as this process finds them."""
        own = tuple(text.model_copy(update={"path": str(folder / text.path)}) for text in self.own)
        folders = tuple(str(folder / name) for name in self.folders)
        return self.model_copy(update={"own": own, "folders": folders})

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """Those by name, then one's own. Raises InputError for one that is not known or given twice."""
        names = [*self.sources, *(text.name for text in self.own)]
        for name in self.sources:
            if name not in SOURCES:
                raise InputError(
                    f"there is no source {name!r}", where="sources", fix=f"choose of: {', '.join(SOURCES)}"
                )
        if len(set(names)) < len(names):
            raise InputError("two sources have one name", where="sources", fix="name each once")
        return (*(SOURCES[name] for name in self.sources), *map(_own_source, self.own))


def _own_source(own: OwnText) -> Source:
    def find(folders: object) -> Found:
        works = (
            Work(own.name, file.id, own.kind, (Document(f"{own.name}:{file.id}", file.text),), own.part)
            for file in load_workload(f"txt:{own.path}#whole").documents
        )
        return Found(f"given: {Path(own.path).name}", tuple(works))

    return Source(own.name, own.kind, own.licence, find)


def sha256_of(content: str | bytes) -> str:
    """SHA-256 in hexadecimal digits, of a text in UTF-8."""
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def canonical_json(value: Any) -> str:
    """JSON without spaces, keys sorted: what is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True)
class LabText:
    """A text that was made, in its folder. record: what `text.json` says."""

    folder: Path
    record: Mapping[str, Any]

    @property
    def vocabulary(self) -> int:
        """Tokens that its tokenizer knows."""
        return int(self.record["vocabulary"])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all tokens and of the tokenizer."""
        files = self.record["files"]
        decides = (name for name in files if name == TOKENS_FILE or name.startswith(f"{TOKENIZER}/"))
        return sha256_of(canonical_json({name: files[name] for name in decides}))

    @cached_property
    def tokenizer(self) -> Any:
        """An ordinary tokenizer of transformers."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder / TOKENIZER, local_files_only=True)

    def tokens(self, part: Part, which: str) -> Tokens:
        """All tokens of a part in a row, documents one after the other: uint16 [tokens].

        which: NATURAL_TOKENS or GENERATED.
        """
        return self._array(f"{part}.{which}").astype(np.uint16, copy=False)

    def steps(self, part: Part) -> NDArray[np.uint8]:
        """Of every generated token the steps that it takes to know it, 0 where that is not known."""
        return self._array(f"{part}.{STEPS}").astype(np.uint8, copy=False)

    def has(self, part: Part, kind: str) -> bool:
        """Whether a part has documents of a kind."""
        return f"{part}-{kind}.jsonl" in self.record["files"]

    def kinds(self, part: Part) -> tuple[NaturalKind, ...]:
        """The kinds of natural works that a part has."""
        return tuple(kind for kind in NATURAL if self.has(part, kind))

    def documents(self, part: Part, kind: str) -> list[Document]:
        """Documents of a kind; none where the part has none."""
        return [Document(entry["id"], entry["text"]) for entry in self._entries(part, kind)]

    def problems(self, part: Part) -> tuple[Problem, ...]:
        """The generated documents of a part, with their answers."""
        return tuple(
            Problem(
                Document(entry["id"], entry["text"]), tuple(Answer(*answer) for answer in entry["answers"])
            )
            for entry in self._entries(part, GENERATED)
        )

    def _entries(self, part: Part, kind: str) -> list[dict[str, Any]]:
        if not self.has(part, kind):
            return []
        lines = (self.folder / f"{part}-{kind}.jsonl").read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines if line]

    def _array(self, name: str) -> NDArray[Any]:
        from safetensors import safe_open

        with safe_open(self.folder / TOKENS_FILE, framework="numpy") as file:
            found: NDArray[Any] = file.get_tensor(name)
        return found


def read_text(folder: str | Path) -> LabText:
    """The text in a folder, every byte of it looked at.

    Raises InputError where none is, or it changed since it was made.
    """
    folder = Path(folder)
    if not (folder / RECORD_FILE).is_file():
        raise InputError(
            f"the folder holds no text of a lab: {RECORD_FILE} is missing",
            where=str(folder),
            fix=f"make one: offramp-lab text -o {folder}",
        )
    record = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    for name, expected in record["files"].items():
        path = folder / name
        if not path.is_file() or sha256_of(path.read_bytes()) != expected:
            raise InputError(
                f"a file of the text {'was changed' if path.is_file() else 'is missing'}: {name}",
                where=str(path),
                fix="remove the folder and make the text again: offramp-lab text",
            )
    return LabText(folder, record)


def make_text(request: TextRequest, folder: str | Path) -> LabText:
    """Make a text in a folder. Sources that are not here are named in its record, and the rest is taken.

    Raises InputError for a folder that holds anything, if no source is here or there is too little to keep
    some apart, and for works that share text across parts that were asked for.
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(
            f"the folder holds {'a text' if (folder / RECORD_FILE).exists() else 'something'} already",
            where=str(folder),
            fix="use it, remove it, or choose another with -o",
        )
    made = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    record = _make(request, made)
    (made / RECORD_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")
    os.replace(made, folder)
    return read_text(folder)


def _make(request: TextRequest, folder: Path) -> dict[str, Any]:
    """Make a text in an empty folder; its record."""
    found = [(source, source.find([*map(Path, request.folders)])) for source in request.all_sources]
    here = [(source, one) for source, one in found if one is not None]
    absent = [{"name": source.name, "fix": source.fix} for source, one in found if one is None]
    if not here:
        raise InputError(
            "no source of the text is here",
            where=", ".join(source["name"] for source in absent) or "sources",
            fix=absent[0]["fix"] if absent else "name sources, or text of your own ([[own]])",
        )
    parts = deal(within([work for _, one in here for work in one.works], request), request.seed)
    if empty := [part for part in PARTS if not parts[part]]:
        raise InputError(
            f"there is too little text to keep some apart: nothing is left for {empty[0]}",
            where=", ".join(source.name for source, _ in here),
            fix="add sources, or raise the characters that are taken of each",
        )
    trained = _documents(parts["train"])
    share = request.generated / (1 - request.generated)
    wanted = sum(len(document.text) for document in trained) * share
    learned_from = [*trained, *_of_size(request.seed, wanted)]
    fingerprint = sha256_of_works(parts["train"])
    tokenizer = train_tokenizer((document.text for document in learned_from), request.vocabulary, fingerprint)
    tokenizer.save_pretrained(folder / TOKENIZER)
    arrays: dict[str, Any] = {}
    for part in PARTS:
        natural = np.concatenate(encoded(tokenizer, [one.text for one in _documents(parts[part])]))
        count = PROBLEMS_APART
        if part == "train":
            some = encoded(
                tokenizer, [one.document.text for one in islice(problems(part, request.seed), 200)]
            )
            count = max(1, round(len(natural) * share / float(np.mean([len(one) for one in some]))))
        asked = tuple(islice(problems(part, request.seed), count))
        ids, steps = encoded_problems(tokenizer, asked)
        arrays |= {f"{part}.{NATURAL_TOKENS}": natural, f"{part}.{GENERATED}": np.concatenate(ids)}
        arrays[f"{part}.{STEPS}"] = np.concatenate(steps)
        _write_documents(folder, part, parts[part], asked)
    from safetensors.numpy import save_file

    save_file(arrays, folder / TOKENS_FILE)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "seed": request.seed,
        "vocabulary": request.vocabulary,
        "sources": [_taken(source, one, parts) for source, one in here],
        "absent": absent,
        "tokens": {
            part: {which: len(arrays[f"{part}.{which}"]) for which in (NATURAL_TOKENS, GENERATED)}
            for part in PARTS
        },
        "files": {path.relative_to(folder).as_posix(): sha256_of(path.read_bytes()) for path in files},
        "seen": documents_seen(trained),
        "versions": {
            name: importlib.metadata.version(name) for name in ("numpy", "tokenizers", "transformers")
        },
    }


def _write_documents(folder: Path, part: Part, works: Sequence[Work], made: Sequence[Problem]) -> None:
    """Write the documents of a part, a file for each kind, which are workloads too (`jsonl:FILE#text`)."""
    entries: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for work in works:
        entries[work.kind] += [{"id": document.id, "text": document.text} for document in work.documents]
    for problem in made:
        answers = [[answer.start, answer.end, answer.steps] for answer in problem.answers]
        entries[GENERATED].append(
            {"id": problem.document.id, "text": problem.document.text, "answers": answers}
        )
    for kind, lines in entries.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{part}-{kind}.jsonl").write_text(text, encoding="utf-8", newline="")


def _taken(source: Source, found: Found, parts: Mapping[Part, Sequence[Work]]) -> dict[str, Any]:
    """What was taken of one source, as the record has it."""
    works = {part: [work for work in parts[part] if work.source == source.name] for part in PARTS}
    return {
        "name": source.name,
        "kind": source.kind,
        "licence": source.licence,
        "version": found.version,
        "sha256": sha256_of_works(work for part in PARTS for work in works[part]),
        "works": {part: len(works[part]) for part in PARTS},
        "characters": {part: sum(work.characters for work in works[part]) for part in PARTS},
        "limits": source.limits,
    }


def sha256_of_works(works: Iterable[Work]) -> str:
    """SHA-256 of ids and texts of all documents."""
    return sha256_of(canonical_json([[one.id, one.text] for one in _documents(works)]))


def _documents(works: Iterable[Work]) -> list[Document]:
    return [document for work in works for document in work.documents]


def _of_size(seed: int, characters: float) -> Iterator[Document]:
    """Generated documents that are trained on, of so many characters together."""
    size = 0
    for problem in problems("train", seed):
        if size >= characters:
            return
        size += len(problem.document.text)
        yield problem.document


def _draw(work: Work, seed: int) -> str:
    return sha256_of(f"offramp lab {seed} {work.id}")


def within(works: Sequence[Work], request: TextRequest) -> list[Work]:
    """Works of each source that hold no more characters together than is asked for, one at least, as drawn.

    Raises InputError for two documents of one name.
    """
    names = [document.id for document in _documents(works)]
    if twice := next(
        (name for place, name in enumerate(sorted(names)[1:]) if name == sorted(names)[place]), ""
    ):
        raise InputError(f"two documents are named {twice}", where="sources", fix="give one another name")
    taken: dict[str, int] = defaultdict(int)
    kept = []
    for work in sorted(works, key=lambda work: _draw(work, request.seed)):
        if taken[work.source] == 0 or taken[work.source] + work.characters <= request.characters:
            taken[work.source] += work.characters
            kept.append(work)
    return kept


def deal(works: Sequence[Work], seed: int) -> dict[Part, tuple[Work, ...]]:
    """Every work in its part, each part in an order drawn by `seed`.

    Works that share text stay together (`offramp.text_groups`), whatever their source. The groups of each
    source come in the order of a hash: the first are for the report, the next for validation.

    Raises InputError if works that share text are asked for in different parts.
    """
    members: dict[int, list[Work]] = defaultdict(list)
    for work, least in zip(works, _groups(works), strict=True):
        members[least].append(work)
    by_source: dict[str, list[list[Work]]] = defaultdict(list)
    for together in members.values():
        by_source[together[0].source].append(together)
    parts: dict[Part, list[Work]] = {part: [] for part in PARTS}
    for groups in by_source.values():
        share = APART * sum(work.characters for group in groups for work in group)
        filled: dict[Part, int] = {"report": 0, "validation": 0}
        for group in sorted(groups, key=lambda group: _draw(group[0], seed)):
            size = sum(work.characters for work in group)
            short: list[Part] = [part for part, taken in filled.items() if taken < share and size <= share]
            part = _asked_part(group) or (short[0] if short else "train")
            if part in filled:
                filled[part] += size
            parts[part] += group
    return {part: tuple(sorted(dealt, key=lambda work: _draw(work, seed))) for part, dealt in parts.items()}


def _groups(works: Sequence[Work]) -> list[int]:
    """The group of every work, in the order of works: the least place among those it shares text with."""
    by_source: dict[str, list[tuple[str, int, Document]]] = defaultdict(list)
    for place, work in enumerate(works):
        by_source[work.source] += [(document.id, place, document) for document in work.documents]
    # By id: the form of a source is learned from its first documents, and must not depend on the order.
    ordered = [sorted(documents, key=lambda one: one[0]) for documents in by_source.values()]
    places = [place for documents in ordered for _, place, _ in documents]
    first = text_groups(*([document for _, _, document in documents] for documents in ordered))
    joined = list(range(len(works)))

    def root(place: int) -> int:
        while joined[place] != place:
            place = joined[place]
        return place

    for place, document in zip(places, first.tolist(), strict=True):
        low, high = sorted((root(place), root(places[document])))
        joined[high] = low
    return [root(place) for place in range(len(works))]


def _asked_part(works: Iterable[Work]) -> Part | None:
    """Where somebody wants works that stay together. Raises InputError where that is in two parts."""
    asked = {work.part: work for work in works if work.part is not None}
    if len(asked) > 1:
        (first, left), (second, right) = list(asked.items())[:2]
        raise InputError(
            f"the parts {first} and {second} would share text: the works {left.id} and {right.id} do",
            where="part",
            fix="ask for one part for both, or leave one out: what is known by heart would pass for skill",
        )
    return next(iter(asked), None)


def train_tokenizer(texts: Iterable[str], vocabulary: int, fingerprint: str) -> Any:
    """A tokenizer of so many tokens, the beginning of a text and all bytes among them.

    Byte-level BPE (Radford et al. 2019, section 2.2), so that every text can be written in it. fingerprint:
    of the texts that are not generated, kept in its config. Raises InputError if the texts do not give so
    many tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BEGINNING],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocabulary:
        raise InputError(
            f"the text gives only {backend.get_vocab_size():,} different tokens of {vocabulary:,}",
            where="vocabulary",
            fix="ask for fewer, or give more text",
        )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGINNING} $A", special_tokens=[(BEGINNING, 0)]
    )
    made: Any = PreTrainedTokenizerFast  # which has no types
    return made(tokenizer_object=backend, bos_token=BEGINNING, eos_token=BEGINNING, trained_on=fingerprint)


def encoded(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    """Ids of every text, its beginning in front: uint16 [tokens] each."""
    found = tokenizer.backend_tokenizer.encode_batch_fast(list(texts))
    return [np.array(one.ids, dtype=np.uint16) for one in found]


def encoded_problems(
    tokenizer: Any, asked: Sequence[Problem]
) -> tuple[list[Tokens], list[NDArray[np.uint8]]]:
    """Ids of every problem, and of each token the steps that it takes to know it, 0 where that is not known.

    An answer's first token takes its steps, and its further ones none: they follow from the first.
    """
    ids, steps = [], []
    texts = [problem.document.text for problem in asked]
    for one, problem in zip(tokenizer.backend_tokenizer.encode_batch(texts), asked, strict=True):
        ids.append(np.array(one.ids, dtype=np.uint16))
        begins, ends = np.array(one.offsets).T
        needed = np.zeros(len(begins), dtype=np.uint8)
        for answer in problem.answers:
            (places,) = np.nonzero((begins < answer.end) & (ends > answer.start + 1))
            needed[places[0]] = answer.steps
        steps.append(needed)
    return ids, steps
