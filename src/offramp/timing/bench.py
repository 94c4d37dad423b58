"""Timing policies beside plain decoding and peers, until it is answered whether they are faster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from offramp.decoding.free_running import FreeRunning
from offramp.decoding.generation.prompts import check_context, check_ids
from offramp.decoding.options import (
    LOCKSTEP,
    Auto,
    DecodingOptions,
    HeadsSource,
    PolicySource,
    read_heads_source,
)
from offramp.files import sha256_of_text
from offramp.kit.arguments import checked, settled
from offramp.kit.defaults import DRAFT_LENGTH, SEED, TIMING_SECONDS, WORTH
from offramp.kit.numbers import Count, NotNegative, TimedTokens, Whole
from offramp.kit.rules import Margin
from offramp.models.model import Model, in_evaluation
from offramp.models.process import quiet_transformers
from offramp.policies.names import BatchingName, DraftLength, StrategyName
from offramp.policies.policy import ExitPolicy
from offramp.scoring.estimate import Estimate
from offramp.timing.answers import TimeLimits
from offramp.timing.contenders import Extent, candidates_of
from offramp.timing.decoder import DecodedBatch, Setting, batches_of
from offramp.timing.measurement import Progress, Session
from offramp.timing.results import BenchResult, Forecast


@in_evaluation
@checked
def bench(
    model: Model,
    policy: PolicySource,
    *,
    prompts: Sequence[Sequence[int]],
    kv: StrategyName | None = None,
    heads: HeadsSource = None,
    cells: Sequence[tuple[ExitPolicy | str, str]] = (),
    new_tokens: TimedTokens = 128,
    batch: Count = 1,
    batching: BatchingName = LOCKSTEP,
    draft_length: DraftLength | Auto = DRAFT_LENGTH,
    task: str | None = None,
    budget_seconds: NotNegative | None = TIMING_SECONDS,
    rounds: Count | None = None,
    worth: Margin = WORTH,
    peers: bool = True,
    seed: Whole = SEED,
    progress: Progress | None = None,
) -> BenchResult:
    """Decode prompts greedily, `new_tokens` each whatever end tokens come, by contenders in turns.

    Contenders: the policy and further `cells`; several plain decoders, one of them twice: what differs is
    noise; where a policy reads a short list the full model with its output head cut to that; and with `peers`
    what users would pick instead (see `offramp.timing.contenders`).
    Each is first decoded once untimed, while hooks count layers and memory is watched. Then all take turns, a
    block of a few tokens each, prompt after prompt, until it is answered whether each policy is faster, or
    the seconds are spent. Ratios are of blocks side by side, over the plain decoder that comes out the
    fastest, their intervals over prompts.
    prompts: token ids; `batch` of them are decoded side by side, padded on the left. cells: further policies,
    each with its strategy for K and V, timed in the same turns. kv, heads, batching, draft_length, task: as
    `offramp.generate` takes them.
    budget_seconds: of all of this; two prompts are always decoded. rounds: how often each prompt is decoded,
    at most; None for as often as the seconds allow. worth: the gain that matters, as a share. seed: of the
    order of turns.

    Raises InputError and PolicyError as `settle` does; ModelError if the model cannot decode.
    """
    fitted = read_heads_source(heads)
    asked = [
        DecodingOptions.read(
            source,
            kv=strategy,
            heads=fitted,
            draft_length=draft_length,
            batching=batching,
            new_tokens=new_tokens,
        ).for_task(task)
        for source, strategy in ((policy, kv), *cells)
    ]
    setting = settle(model, asked, prompts=prompts, batch=batch, task=task)
    limits = TimeLimits(budget_seconds, rounds, worth)
    return run(setting, limits=limits, extent=Extent(peers=peers), seed=seed, progress=progress).result


@checked
def settle(
    model: Model,
    cells: Sequence[DecodingOptions],
    *,
    prompts: Sequence[Sequence[int]],
    batch: Count = 1,
    task: str | None = None,
) -> Setting:
    """What all contenders share, checked against the model.

    cells: how each policy decodes; they differ in policy and strategy alone. prompts, batch: as in `bench`.
    task: the prompts' workload.

    Raises InputError for sizes that do not fit, or prompts that with the new tokens exceed the context;
    PolicyError for a policy or strategy that does not fit; ModelError for a model whose layers stay on disk.
    """
    model.require_loaded("timing")
    new_tokens = settled("new_tokens", cells[0].new_tokens, TimedTokens, "int")
    for place, prompt in enumerate(prompts):
        check_ids(prompt, model.shape.vocabulary_size, f"prompts= [{place}]")
    check_context(model, max(map(len, prompts), default=0), new_tokens)
    distinct: dict[str, DecodingOptions] = {}
    for cell in cells:
        cell.check_model(model)
        distinct.setdefault(cell.name, cell)
    return Setting(
        model,
        batches_of(prompts, batch, model.hf.device),
        tuple(distinct.values()),
        task=task,
        distinct=len(prompts),
    )


@dataclass(frozen=True)
class Measurement:
    """A bench result, and what was decoded: by contender's name, then by batch of prompts, once each.

    forecasts, free_running: by contender's name, as far as answers were judged and times foretold.
    """

    result: BenchResult
    setting: Setting
    decoded: Mapping[str, Mapping[int, DecodedBatch]]
    forecasts: Mapping[str, Forecast] = field(default_factory=dict)
    free_running: Mapping[str, FreeRunning] = field(default_factory=dict)

    def seconds_of(self, name: str) -> Estimate[float]:
        """Per token, of a contender that was timed."""
        seconds = self.result.contender(name).seconds_per_token
        assert seconds is not None  # it was timed
        return seconds


def run(
    setting: Setting,
    *,
    limits: TimeLimits,
    extent: Extent,
    seed: Whole = SEED,
    progress: Progress | None = None,
) -> Measurement:
    """`bench` for what `settle` gave. Raises InputError for a plain decoder that is not at hand."""
    main = setting.main
    further = {
        "policy_fingerprints": {cell.name: sha256_of_text(str(cell.policy)) for cell in setting.cells},
        "heads_fingerprint": None if main.heads is None else main.heads.fingerprint,
    }
    with quiet_transformers():
        session = Session(setting, extent, limits, seed=seed, progress=progress)
        session.run(candidates_of(setting, extent))
        fields = session.fields(further)
    fields["contenders"] = (*fields["contenders"], *session.missing)
    result = BenchResult(
        model=setting.model.shown_name,
        policy=str(main.policy),
        kv=main.kv,
        batch=setting.batch,
        batching=main.batching,
        **fields,
    )
    return Measurement(result, setting, session.decoded)
