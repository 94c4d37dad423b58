"""Finding a study's models: who they are and how large, from their files alone, or from the study's facts."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import ModelError
from offramp.files import source_fingerprint
from offramp.kit.numbers import shown_size
from offramp.models.checkpoint import (
    CONFIG_FILE,
    CONTEXT_KEYS,
    read_config,
    read_headers,
    stated_count,
    stated_layers,
)
from offramp.models.devices import CPU, device_memory, find_device
from offramp.models.given import is_object, named_object
from offramp.models.identity import ModelIdentity
from offramp.models.memory import WORKING_SHARE, machine_memory
from offramp.models.source import (
    BUNDLED,
    Source,
    find_downloaded,
    find_source,
    hub_source,
    looks_like_hub_id,
    unknown_model,
)
from offramp.studies.entries import ModelEntry
from offramp.studies.fingerprints import Fingerprints, evidence_of
from offramp.studies.found import FoundModel
from offramp.studies.study import Study, placed

HIDDEN_KEYS = ("hidden_size", "n_embd", "d_model", "dim")


def find_models(study: Study, fingerprints: Fingerprints, *, download: bool) -> dict[str, FoundModel]:
    """The study's models by name. download: fetch those from the Hub that are not here and would fit.

    Raises InputError, with the line, for a name that nothing could be, or a folder or file that is no model.
    One that is a model but cannot be used is said to be missing, with the reason.
    """
    search = _ModelSearch(study, fingerprints, download)
    return {entry.name: search.find(entry, place) for place, entry in enumerate(study.models)}


@dataclass
class _ModelSearch:
    """unreachable: why nothing more is fetched, once the Hub did not answer."""

    study: Study
    fingerprints: Fingerprints
    download: bool
    unreachable: str | None = None

    def find(self, entry: ModelEntry, place: int) -> FoundModel:
        if is_object(entry.source):
            return _from_object(entry)
        path = (self.study.folder / Path(entry.source).expanduser()).absolute()
        sizes = ("layers", "hidden", "vocabulary", "parameters")
        stated = FoundModel(entry, entry.source, **{name: getattr(entry, name) for name in sizes})
        if entry.source in BUNDLED:
            try:
                path = BUNDLED[entry.source].find()
            except ModelError as error:
                return dataclasses.replace(stated, missing=f"{error.what}: {error.fix}")
            return self._from_files(stated, path)
        with placed(self.study, "models", place, "source"):
            if path.exists():
                if not (path.suffix == ".gguf" or (path / CONFIG_FILE).is_file()):
                    find_source(str(path), trust_remote_code=entry.trust_remote_code)  # says why not
                return self._from_files(dataclasses.replace(stated, source=str(path)), path)
            if path.suffix == ".gguf" or not looks_like_hub_id(entry.source):
                raise unknown_model(entry.source)
        return self._from_hub(stated)

    def _from_files(self, stated: FoundModel, path: Path) -> FoundModel:
        """A model whose files are here. A damaged or unsafe one stops only its own cells."""
        try:
            return self._fitting(self._described(stated, [path]))
        except ModelError as error:
            why = f"{error.what}: {error.fix}"
        except OSError as error:
            why = f"its files cannot be read: {error}"
        return dataclasses.replace(stated, missing=why, damaged=True)

    def _from_hub(self, stated: FoundModel) -> FoundModel:
        downloaded = find_downloaded(stated.source)
        if downloaded is not None:
            try:
                source = hub_source(stated.source, downloaded, stated.entry.trust_remote_code)
                return self._fitting(self._described(stated, [downloaded.folder], source))
            except ModelError:  # a part of it is here: the rest is fetched like a whole model
                pass
        unfit = self._fitting(stated)
        if unfit.missing is not None:
            return unfit
        if not self.download:
            why = f"it is not on this machine: offramp study run fetches {stated.source} from the Hub"
            return dataclasses.replace(stated, missing=why)
        return self._fetched(stated)

    def _fetched(self, stated: FoundModel) -> FoundModel:
        if self.unreachable is not None:
            return dataclasses.replace(stated, missing=self.unreachable)
        try:
            return self._fitting(self._described(stated, []))
        except ModelError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # the Hub's error where it does not answer
                self.unreachable = (
                    "it is not on this machine, and the Hub cannot be reached: run the study again with a "
                    "network, or download its models elsewhere and give their folders"
                )
                return dataclasses.replace(stated, missing=self.unreachable)
            return dataclasses.replace(stated, missing=f"{error.what}: {error.fix}")

    def _described(self, stated: FoundModel, paths: list[Path], source: Source | None = None) -> FoundModel:
        """The model with what its files say. paths: that it is found from. Raises ModelError."""

        def evidence(value: Any) -> Any:
            folders = [] if value is None else [Path(value["folder"])]
            versions = importlib.metadata.version("transformers")
            return [evidence_of({*paths, *folders}), versions, source_fingerprint("models")]

        def find() -> Any:
            trusted = stated.entry.trust_remote_code
            return _describe(source or find_source(stated.source, trust_remote_code=trusted))

        facts = dict(self.fingerprints.get(f"model {stated.source}", evidence, find))
        del facts["folder"]
        identity = ModelIdentity(**facts.pop("identity"))
        known = {name: value for name, value in facts.items() if value is not None}
        return dataclasses.replace(stated, identity=identity, **known)

    def _fitting(self, model: FoundModel) -> FoundModel:
        """The model, said to be missing if it does not fit into this machine's memory."""
        need, device = model.weight_bytes(self.study.settings.dtype), find_device(self.study.settings.device)
        room = machine_memory() if device == CPU else device_memory(device)
        if self.study.streamed or need is None or need * WORKING_SHARE <= room:
            return model
        why = (
            f"its weights take {shown_size(round(need))} in {self.study.settings.dtype}, "
            f"{'this machine' if device == CPU else device} has {shown_size(room)} of memory: "
            "trace it layer by layer ([large] stream = true), or elsewhere"
        )
        return dataclasses.replace(model, missing=why)


def _from_object(entry: ModelEntry) -> FoundModel:
    """A model object of this process; said to be missing in any other."""
    try:
        model = named_object(entry.source)
    except ModelError as error:
        return FoundModel(entry, entry.source, missing=error.what)
    shape = model.shape
    weights = sum(layer.parameters for layer in shape.layers) + shape.tail_parameters + shape.head_parameters
    return FoundModel(
        entry,
        entry.source,
        identity=model.identity,
        attention=model.attention,
        layers=model.layers,
        hidden=shape.hidden_size,
        vocabulary=shape.vocabulary_size,
        context=model.context_length,
        parameters=float(weights),
        model_type=model.hf.config.model_type,
    )


def _describe(source: Source) -> dict[str, Any]:
    """What the files of a model say, in JSON values."""
    config = read_config(source.folder)
    identity = dataclasses.asdict(source.identity)
    del identity["transforms"]  # of none yet
    return {
        "folder": str(source.folder),
        "identity": identity,
        "layers": stated_layers(config),
        "hidden": stated_count(config, HIDDEN_KEYS),
        "vocabulary": stated_count(config, ("vocab_size",)),
        "context": stated_count(config, CONTEXT_KEYS),
        "parameters": float(sum(tensor.elements for tensor in read_headers(source.folder).values())),
        "model_type": (config.get("text_config") or config).get("model_type"),
    }
