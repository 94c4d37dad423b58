"""Who a model is: fingerprints of its weights, config and tokenizer, its source, licence and revision."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from offramp.files import canonical_json, sha256_of_file, sha256_of_text
from offramp.models.checkpoint import find_weight_files, read_config, source_read

TOKENIZER_PATTERNS = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "*.model",
    "*.tiktoken",
)
# The end tokens that an answer stops at, and code to run.
BEHAVIOUR_PATTERNS = ("generation_config.json", "*.py")
READING_PATTERNS = ("preprocessor_config.json", "processor_config.json")
"""And what is made of a sound or a picture."""
# Config entries that say where a model came from or who saved it, not what it computes.
VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
CHECKPOINT = "checkpoint.safetensors"
"""Where a training stands (`offramp exits train`): no part of the model that it leaves."""
ATTENTION = "attention"
"""What a model is described with, beside its fingerprint, if an implementation of attention was asked for."""


@dataclasses.dataclass(frozen=True)
class ModelIdentity:
    """SHA-256 fingerprints in hexadecimal, and where the model comes from."""

    weights: str
    """Of the weight files (name and SHA-256 of each), or the SHA-256 of a GGUF file."""
    config: str
    """Of config.json without the entries that do not change the computation, of the generation config and of
    Python code that comes with the model."""
    tokenizer: str
    """Of the tokenizer's files."""
    source: str
    """A folder, a file or a Hub id."""
    licence: str | None = None
    """As stated by the source, None if it states none."""
    revision: str | None = None
    transforms: tuple[str, ...] = ()
    """What was done to the model after loading, as texts of the transforms' grammar, in order."""

    @property
    def base_fingerprint(self) -> str:
        """One SHA-256 of weights, config and tokenizer, before any transform; of no place where they lie."""
        return sha256_of_text(canonical_json([self.weights, self.config, self.tokenizer]))

    @property
    def fingerprint(self) -> str:
        """One SHA-256 of everything that says what the model computes: the base and its transforms."""
        if not self.transforms:
            return self.base_fingerprint
        return sha256_of_text(canonical_json([self.base_fingerprint, list(self.transforms)]))

    def to_json(self) -> dict[str, Any]:
        """A JSON object with the combined fingerprint beside the parts; transforms only if there are any."""
        fields = dataclasses.asdict(self)
        transforms = fields.pop("transforms")
        if transforms:
            fields |= {"transforms": list(transforms), "base_fingerprint": self.base_fingerprint}
        return {**fields, "fingerprint": self.fingerprint}


def shown_name(name: str, transforms: Iterable[str]) -> str:
    """A model's name with what was done to it: "smollm2 + int8"."""
    return " + ".join((name, *transforms))


def identify_folder(
    folder: Path,
    *,
    source: str,
    weights: str | None = None,
    licence: str | None = None,
    revision: str | None = None,
) -> ModelIdentity:
    """The identity of a checkpoint folder. `weights`: a fingerprint known from elsewhere (a GGUF file's).

    Raises ModelError if the folder has no weight files.
    """
    # An index may name files in folders further down.
    others = {path for path in folder.glob("*.safetensors") if path.name != CHECKPOINT}
    files = sorted({*others, *find_weight_files(folder)}) if weights is None else []
    tokenizer_files = sorted({path for pattern in TOKENIZER_PATTERNS for path in folder.glob(pattern)})
    config = read_config(folder)
    lasting = {key: value for key, value in config.items() if key not in VOLATILE_CONFIG_KEYS}
    reading = source_read(config) in ("audio", "image")
    patterns = (*BEHAVIOUR_PATTERNS, *(READING_PATTERNS if reading else ()))
    behaviour = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return ModelIdentity(
        weights=_fingerprint_files(files) if weights is None else weights,
        config=sha256_of_text(json.dumps([lasting, _fingerprint_files(behaviour)], sort_keys=True)),
        tokenizer=_fingerprint_files([path for path in tokenizer_files if path.suffix != ".safetensors"]),
        source=source,
        licence=licence or stated_licence(folder),
        revision=revision,
    )


def _fingerprint_files(files: list[Path]) -> str:
    return sha256_of_text(canonical_json([[path.name, sha256_of_file(path)] for path in files]))


def stated_licence(folder: Path) -> str | None:
    """The licence named in the front matter of a model card (README.md), if any."""
    card = folder / "README.md"
    if not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    front_matter = re.match(r"---\n(.*?)\n---", text, flags=re.DOTALL)
    found = re.search(r"^license:\s*(\S+)", front_matter[1], flags=re.MULTILINE) if front_matter else None
    return found[1] if found else None
