"""Measuring the endpoints of one model on the report part of its text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.files import source_fingerprint
from offramp.lab.endpoints.documents import kinds_of, openings_of, works_of
from offramp.lab.endpoints.record import CANDIDATES, ENDPOINTS, ORACLE, Endpoint, Endpoints, Sizes
from offramp.lab.endpoints.skipped import skipped_layers
from offramp.lab.exits.train import train_exits
from offramp.lab.required_depth import RequiredDepth, answers_of, has_tokenizer_of, required_depth
from offramp.lab.text.folder import LabText
from offramp.lab.text.work import NaturalKind, Part
from offramp.lab.training.record import RECORD
from offramp.models.devices import CPU, device_name
from offramp.models.model import Model
from offramp.records.given_file import did_you_mean
from offramp.scoring.calibration import expected_calibration_error, reliability_diagram
from offramp.scoring.card import ScoreCard
from offramp.scoring.documents import document_rows
from offramp.scoring.scoring import score
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.exits_folder import TRAINING_FILE
from offramp.tracing.loading import load_model
from offramp.tracing.progress import say
from offramp.tracing.request import library_versions
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace
from offramp.tracing.trained_model import trained_in
from offramp.workloads.workload import Workload

PREREGISTERED = Sizes()
DRAWS = 40
"""Of documents behind intervals that nobody reads here: as few as there may be."""

CODE = ("models", "workloads", "tracing", "scoring", "policies", "decoding", "lab/exits", "lab/text")
OWN_CODE = ("lab/endpoints", "lab/required_depth.py")
"""The source that endpoints depend on."""

ASKED = "endpoints= (--only)"

OnEndpoint = Callable[[str, float], object]
"""Told what was measured, and in how many seconds of the processor."""


def measure(
    source: str | Path | Model,
    text: LabText,
    *,
    endpoints: Sequence[str] = ENDPOINTS,
    seed: int = 0,
    sizes: Sizes = PREREGISTERED,
    device: str = CPU,
    trust_remote_code: bool = False,
    progress: OnEndpoint | None = None,
) -> Endpoints:
    """The endpoints of a model of `offramp lab train` on the text that it was trained on, or of any model.

    source: as `load_model` takes it, in float32 on the device, or a model that is loaded. A model of another
    tokenizer than the text's reads the same works by its own, and has no required depth.
    endpoints: some of ENDPOINTS. seed: of the lens, and of draws. progress: told of each as it is there.

    Raises InputError for an unknown endpoint, the folder of a model of the lab that was trained on another
    text, and a text without prose or code; DamagedFileError for a model that was changed, or its record;
    ModelError for what is no model, or one whose numbers are not finite.
    """
    asked = _known(endpoints)
    model = source if isinstance(source, Model) else _loaded(source, text, device, trust_remote_code)
    found = Endpoints(
        model=model.identity.fingerprint,
        text=text.fingerprint,
        code=source_fingerprint(*CODE, *OWN_CODE),
        seed=seed,
        sizes=sizes,
        dtype=model.dtype,
        device=device_name(model.stack.device),
        threads=torch.get_num_threads(),
        versions=library_versions(),
        endpoints=asked,
    )
    measuring = _Measuring(model, text, found, progress)
    with model.evaluating():
        for name in asked:
            with measuring.timed(name):
                measuring.measure(name)
    return replace(found, depth=measuring.depth)


def _known(endpoints: Sequence[str]) -> tuple[Endpoint, ...]:
    """Those that are asked for, in the order of all."""
    for name in endpoints:
        if name not in ENDPOINTS:
            raise InputError(f"there is no endpoint {name!r}", where=ASKED, fix=did_you_mean(name, ENDPOINTS))
    if not endpoints:
        fix = f"choose among: {', '.join(ENDPOINTS)}"
        raise InputError("no endpoint is asked for", where=ASKED, fix=fix)
    return tuple(name for name in ENDPOINTS if name in endpoints)


def _loaded(source: str | Path, text: LabText, device: str, trust_remote_code: bool) -> Model:
    """The model; of the lab, if the text is its own and its files are those that its training left."""
    folder = Path(source)
    if RECORD.is_of(folder / TRAINING_FILE):
        _require_own_text(folder, text)
    trained_in(folder)  # one that has not ended is refused before anything is measured
    return load_model(str(source), dtype="float32", trust_remote_code=trust_remote_code, device=device)


def _require_own_text(folder: Path, text: LabText) -> None:
    """Refuse a model of the lab with another text than its own, before its weights are loaded."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        fix = "train it again: offramp lab train, with --overwrite"
        raise InputError("the model has no tokenizer", where=str(file), fix=fix)
    found = Tokenizer.from_file(str(file))
    if found.get_vocab() != text.tokenizer.get_vocab():
        raise InputError(
            "the model has another tokenizer than the text",
            where=f"{folder} and {text.folder}",
            fix="give the text that it was trained on",
        )


@dataclass
class _Measuring:
    """One model being measured; what several endpoints share is made once. found: is filled."""

    model: Model
    text: LabText
    found: Endpoints
    progress: OnEndpoint | None
    depth: RequiredDepth | None = None

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Keep the seconds of something, less those of what is timed within it."""
        seconds = self.found.seconds
        self._say(f"{name}: begun")
        before, started = sum(seconds.values()), time.process_time()
        yield
        seconds[name] = time.process_time() - started - (sum(seconds.values()) - before)
        if self.progress is not None:
            self.progress(name, seconds[name])

    def _say(self, line: str) -> None:
        """What goes on, to whoever is told of progress."""
        if self.progress is not None:
            say(line)

    def measure(self, name: Endpoint) -> None:
        """One endpoint, and before it what it shares with others, if that is not there."""
        values = self.found.values
        match name:
            case "skipped":
                self._skipped(name, ("prose", "code"))
            case "skipped_lens":
                self._skipped(name, ("prose", "code"), self.lens)
            case "skipped_code":
                self._skipped(name, ("code",))
            case "representation":
                values[name] = score(self.traced, draws=DRAWS).representation.value
            case "representation_lens":
                traced = self._trace(name, self._works("report"), self.lens)
                values[name] = score(traced, draws=DRAWS).representation.value
            case "calibration":
                first, second = halved_calibration(self.traced)
                values |= {name: (first + second) / 2, f"{name}_first": first, f"{name}_second": second}
            case "required_depth":
                self._required_depth()
            case "scores":
                traced = self._trace(name, works_of(self.text, "report", ["prose"]))
                self._scores(score(traced, draws=DRAWS))

    def _required_depth(self) -> None:
        """D1, of a model whose tokens are those that the text knows the depth of."""
        if not has_tokenizer_of(self.model, self.text):
            self._put("required_depth", None, "the model has another tokenizer than the text")
            return
        self.depth = required_depth(answers_of(self.model, self.text, "report"), self.found.seed)
        self._put("required_depth", self.depth.slope, self.depth.untold)

    @cached_property
    def traced(self) -> Trace:
        """What P3 and P5 read."""
        with self.timed("trace"):
            return self._trace("representation", self._works("report"))

    @cached_property
    def lens(self) -> ExitHeads:
        """The lens of P2 and P4: without classifiers and K,V maps, which nothing here reads."""
        works = [works_of(self.text, "validation", [kind]) for kind in kinds_of(self.text, "validation")]
        with self.timed("lens"):
            return train_exits(
                self.model,
                works,
                kind="lens",
                at="all",
                steps=self.found.sizes.lens_steps,
                tokens=self.found.sizes.lens_tokens,
                seed=self.found.seed,
                context=self._context,
                classifiers=False,
                kv_maps=False,
                precision="bfloat16",
                progress=self.progress is not None,
            ).heads

    @property
    def _context(self) -> int:
        """Some kinds of models take texts of any length; all are to read the same."""
        return min(self.found.sizes.context, self.model.context_length or self.found.sizes.context)

    def _works(self, part: Part) -> Workload:
        return works_of(self.text, part, kinds_of(self.text, part))

    def _trace(self, name: Endpoint, works: Workload, heads: ExitHeads | None = None) -> Trace:
        tokens = self.found.sizes.traced
        traced = trace(
            self.model, works, tokens, heads=heads, context=self._context, progress=self.progress is not None
        )
        self.found.tokens[name], self.found.documents[name] = traced.token_count, document_rows(traced).count
        return traced

    def _skipped(self, name: Endpoint, kinds: Sequence[NaturalKind], heads: ExitHeads | None = None) -> None:
        sizes = self.found.sizes
        tokens, most = sizes.prompt_tokens, sizes.prompts // len(kinds)
        works = [works_of(self.text, "report", [kind]) for kind in kinds]
        each = [openings_of(self.model, one, tokens, most) for one in works]
        fewest = min(map(len, each))
        if not fewest:
            raise InputError(
                f"no report work of {' or '.join(kinds)} has {tokens} tokens",
                where=str(self.text.folder),
                fix="make a text with more of it: offramp lab text",
            )
        openings = [one for some in each for one in some[:fewest]]
        executed = skipped_layers(
            self.model,
            openings,
            sizes.new_tokens,
            heads,
            told=lambda point: self._say(
                f"{name}: {len(openings)} prompts decoded at a threshold of {point.value:g}"
            ),
        )
        self.found.executed[name], self.found.values[name] = executed, executed.share

    def _scores(self, card: ScoreCard) -> None:
        """The candidates of family 6, and the oracle."""
        for name, sign in CANDIDATES.items():
            value = card.candidates[name]
            why = getattr(getattr(card, name, None), "undefined", None) or "there is no exit before the last"
            self._put(f"score_{name}", None if value is None else sign * value, why)
        self.found.values[ORACLE] = card.candidates["saturation_skip"]

    def _put(self, name: str, value: float | None, why: str) -> None:
        """A figure, or why there is none."""
        self.found.values[name] = value
        if value is None:
            self.found.untold[name] = why


def halved_calibration(traced: Trace) -> tuple[float, float]:
    """P5: the mean over exits below L of their ECE against agreement, of either half of the documents.

    15 bins of equal width (`offramp.scoring.calibration`). The halves are the folds of the score's own
    cross-fitting: documents in the order of a hash of their ids, every other one.
    """
    exits = traced.exits[:-1].tolist()

    def mean_error(rows: NDArray[np.bool_]) -> float:
        sure, agrees = traced.max_prob[rows].astype(np.float32), traced.agreement[rows]
        diagrams = [
            reliability_diagram(exit, sure[:, place], agrees[:, place]) for place, exit in enumerate(exits)
        ]
        return float(np.mean([expected_calibration_error(one) for one in diagrams]))

    second = document_rows(traced).fold_of_row()
    return mean_error(~second), mean_error(second)
