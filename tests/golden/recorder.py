"""Goldens by name, as the commands of one room make them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from golden.normal import Normaliser
from golden.surroundings import Said, offramp

LOCKS = (".lock", ".offramp.json")


@dataclass
class Recorder:
    """Keeps what was said and written. goldens: texts by file name, as the shelf stores them."""

    normal: Normaliser
    goldens: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the commands run."""
        return self.normal.folder

    def keep(self, name: str, text: str) -> None:
        """Keep a normalised text."""
        if name in self.goldens:
            raise ValueError(f"two goldens are called {name}")
        self.goldens[name] = text

    def command(self, name: str, *words: object, code: int = 0) -> Said:
        """Run a command and keep what it says; JSON in its last line is kept as JSON."""
        said = offramp(*words)
        line = " ".join(["offramp", *map(str, words)])
        if said.code != code:
            raise AssertionError(f"{line}\nexit code {said.code}, not {code}\n{said.out}\n{said.err}")
        out = said.out
        if "--json" in words:
            before, _, last = out.rstrip("\n").rpartition("\n")
            self.keep(f"{name}.json", self.normal.json(json.loads(last)))
            out = before
        self.keep(f"{name}.txt", self.normal.text(told(line, said.code, out, said.err)))
        return said

    def json_file(self, name: str, path: Path | str) -> None:
        """Keep a JSON file."""
        self.keep(f"{name}.json", self.normal.json(json.loads((self.folder / path).read_text())))

    def text_file(self, name: str, path: Path | str) -> None:
        """Keep a text file."""
        self.keep(f"{name}.txt", self.normal.text((self.folder / path).read_text()))

    def page(self, name: str, path: Path | str) -> None:
        """Keep the words of a page."""
        self.keep(f"{name}.page", self.normal.page((self.folder / path).read_text()))

    def arrays(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep what there is to be said of arrays."""
        self.keep(f"{name}.arrays", self.normal.arrays(arrays))

    def tensors(self, name: str, path: Path | str) -> None:
        """Keep every tensor of a safetensors file, and the file's header."""
        from safetensors import safe_open

        with safe_open(self.folder / path, framework="numpy") as file:
            self.arrays(name, {key: file.get_tensor(key) for key in list(file.keys())})
            header = {key: read_json(value) for key, value in (file.metadata() or {}).items()}
        self.keep(f"{name}.json", self.normal.json(header))

    def columns(self, name: str, *paths: Path | str) -> None:
        """Keep every column of Parquet files that follow each other."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.concat_tables(pq.read_table(self.folder / path) for path in paths)
        self.arrays(name, {key: column_array(table[key]) for key in table.column_names})

    def trace(self, name: str, path: Path | str) -> None:
        """Keep every column of a trace, and its manifest."""
        folder = self.folder / path
        for kind in sorted({file.name.partition("-")[0] for file in folder.rglob("*.parquet")}):
            self.columns(f"{name}-{kind}", *sorted(folder.rglob(f"{kind}-*.parquet")))
        self.json_file(f"{name}-manifest", Path(path) / "manifest.json")

    def listing(self, name: str, path: Path | str) -> None:
        """Keep which files lie in a folder."""
        self.keep(f"{name}.files", self.normal.text("\n".join(files_below(self.folder / path))))


def told(line: str, code: int, out: str, err: str) -> str:
    """What a command said, as a golden shows it."""
    parts = [f"$ {line}", *([] if code == 0 else [f"exit {code}"]), out.rstrip("\n")]
    if err.strip():
        parts += ["--- standard error", err.rstrip("\n")]
    return "\n".join(part for part in parts if part)


def files_below(folder: Path) -> list[str]:
    """Paths of all files below a folder, but for locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in LOCKS)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def column_array(column: Any) -> np.ndarray:
    """A column as one array; of lists, the values one after another."""
    import pyarrow as pa

    values = column.combine_chunks()
    while pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    return np.asarray(values.to_numpy(zero_copy_only=False))


def read_json(text: str) -> Any:
    """JSON within a header, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
