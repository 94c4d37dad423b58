"""A training of K,V maps in its folder: heads that have some, whose maps are trained as executed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps
from offramp.heads.file import require_base
from offramp.heads.parts import ExitMaps, Weights
from offramp.models.model import Model
from offramp.tracing.fitting.documents import FittingRows
from offramp.tracing.fitting.seen import seen_by_all
from offramp.tracing.request import library_versions
from offramp.training.checkpoint import Progress
from offramp.training.executed import ExecutedMaps
from offramp.training.job import Job, sides
from offramp.training.record import Rows, Seconds, TrainingRecord
from offramp.training.trainer import Beside


def start_of(model: Model, heads: ExitHeads | None) -> ExitHeads:
    """The heads whose K,V maps are trained, checked.

    Raises InputError where there are none, for heads of another model, and for such without K,V maps.
    """
    where = "start= (--from)"
    maps = f"offramp heads fit MODEL --workload W --kv-maps {model.layers // 2} -o FILE"
    fix = f"fit some: {maps}; or train exits, which does"
    if heads is None:
        raise InputError("there are no heads whose K,V maps are to be trained", where=where, fix=fix)
    require_base(heads, {"name": model.shown_name, **model.identity.to_json()}, where)
    if heads.kv_maps is None:
        raise InputError("the heads have no K,V maps to train", where=where, fix=fix)
    return heads


class ExecutedJob(Job):
    """Trains the K,V maps of heads; all else in them stays."""

    def run(self) -> tuple[ExitHeads, TrainingRecord]:
        """Train, put the maps into the heads, write."""
        assert self.start is not None, "checked by `start_of`"
        began = time.perf_counter()
        rows = self.plan()
        fit, held_out = sides(rows)
        objective = ExecutedMaps(self.model, self.start, self.recipe, fit, held_out)
        beside = Beside(time.perf_counter() - began, evaluations=2)
        progress = self.train(objective, self.key(rows, self.recipe.at), beside)
        started = time.perf_counter()
        best = progress.weights[0].best
        maps = self._with_documents(objective.trained(best), rows, progress)
        heads = replace(self.start, kv_maps=maps)
        before, after = (objective.evaluate([one])[0] for one in (objective.initial()[0], best))
        record = TrainingRecord(
            request=self.request,
            settings=progress.settings,
            rows=Rows.of(rows, objective.fit.tokens, objective.held_out.tokens),
            steps=progress.step,
            stopped=progress.stopped,
            seconds=Seconds(rows.answering, progress.seconds, time.perf_counter() - started),
            floors=(),
            logit_lens=(),
            before=(before,),
            trained=(after,),
            history=tuple(progress.history),
            heads=heads.fingerprint,
            versions=library_versions(),
            earlier=self.earlier,
        )
        self.write(heads, record)
        return heads, record

    def _with_documents(
        self, maps: Mapping[int, ExitMaps[Weights]], rows: FittingRows, progress: Progress
    ) -> KeyValueMaps:
        """The maps with all documents that any of their fitting saw, and what trained them."""
        assert self.start is not None, "checked by `start_of`"
        before = self.start.kv_maps
        assert before is not None, "checked by `start_of`"
        documents, texts = seen_by_all((before.documents, before.texts), (rows.ids, rows.texts))
        return replace(
            before,
            maps=maps,
            documents=documents,
            texts=texts,
            provenance={**before.provenance, "trained": self.provenance(progress)},
        )
