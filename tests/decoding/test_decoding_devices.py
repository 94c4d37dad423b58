"""Decoding where torch makes tensors elsewhere by default: each must be made on its model's device.

Any that is made without saying where then lies on "meta", and the first operation with one of the model's
fails. What comes out must be what comes out without that.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent / "execution"))

from bench_cases import Padding
from execution_cases import agreeable, llama, tiny_model, workload_of
from map_cases import maps_for
from reading_cases import ALL_FACTS, random_heads

import offramp
from offramp.decoding.engine import engine as engine_module
from offramp.decoding.engine.engine import DeviceClock, Meter
from offramp.decoding.generation.loop import Scorer
from offramp.decoding.options import DecodingOptions
from offramp.decoding.rerun.rerunner import rerun
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.timing.bench import run, settle
from offramp.timing.contenders import STATIC_CACHE, Extent
from offramp.timing.local_profile import measure_hardware
from offramp.timing.results import BenchResult
from offramp.timing.stopping import TimeLimits
from offramp.timing.timed_steps import StepMeter
from offramp.tracing.trace import Trace

T = TypeVar("T")

POLICY = "threshold:signal=margin,value=0.05,exits=1+2+3"
PROMPT = torch.tensor([[5, 6, 7, 8, 9]])
PROMPTS = [[5, 6, 7, 8, 9], [10, 11, 12]]


class OfNumpy(torch.Tensor):
    """A tensor that shares its memory with an array of numpy, and so lies on the processor.

    Nothing can be done with it but to bring it to a device, say what it is like, or give it back.
    """

    ALLOWED = frozenset({"to", "numpy", "__get__", "__len__", "size", "dim"})

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        if function.__name__ not in cls.ALLOWED:
            raise AssertionError(f"{function.__name__} of an array of numpy that was brought to no device")
        with torch._C.DisableTorchFunctionSubclass():
            found = function(*arguments, **(keywords or {}))
        return found.as_subclass(torch.Tensor) if isinstance(found, cls) else found


@contextmanager
def made_elsewhere() -> Iterator[None]:
    """Tensors that are made without a device are on "meta", those of numpy's arrays are to be moved first."""
    from_numpy = torch.from_numpy
    torch.set_default_device("meta")
    try:
        with mock.patch.object(torch, "from_numpy", lambda array: from_numpy(array).as_subclass(OfNumpy)):
            yield
    finally:
        torch.set_default_device(None)


def test_arrays_of_numpy_are_brought_to_a_device_first() -> None:
    with made_elsewhere():
        mine = torch.from_numpy(np.arange(3))
        assert torch.zeros(3, device="cpu").add(mine.to("cpu")).tolist() == [0, 1, 2]
        with pytest.raises(AssertionError, match="add of an array of numpy"):
            torch.zeros(3, device="cpu").add(mine)
        with pytest.raises(AssertionError, match="getitem"):
            torch.zeros(3, device="cpu")[mine]


@pytest.fixture(autouse=True)
def _put_back() -> Iterator[None]:
    yield
    torch.set_default_device(None)


def build() -> Model:
    """A Llama of 4 layers whose exits now and then agree; the same at every call, nothing known of it."""
    hf = llama(num_hidden_layers=4, eos_token_id=None)
    return tiny_model(hf, name="agreeable", head_scale=3.0, change=agreeable, tokenizer=Padding())


def here_and_elsewhere(compute: Callable[[Model], T]) -> tuple[T, T]:
    """What is computed with a model as ever, and with an equal one where tensors are made elsewhere."""
    expected, model = compute(build()), build()
    with made_elsewhere():
        found = compute(model)
    return expected, found


def outcome(generation: Any) -> list[tuple[list[int], list[int], int]]:
    """Tokens, exits and layers of one generation or of several."""
    rows = generation if isinstance(generation, list) else [generation]
    return [(row.tokens, row.exits.tolist(), row.layers_executed) for row in rows]


@pytest.mark.parametrize(
    ("policy", "kv", "batching"),
    [
        (None, "propagate", "lockstep"),
        (POLICY, "propagate", "lockstep"),
        (POLICY, "propagate", "rebatch"),
        (POLICY, "mapped", "lockstep"),
        (POLICY, "mapped", "rebatch"),
        (POLICY, "recompute", "lockstep"),
        (POLICY, "recompute", "rebatch"),
        (POLICY, "speculate", "lockstep"),
        ("static:exit=2", "monotone", "rebatch"),
    ],
)
def test_generation(policy: str | None, kv: str, batching: str) -> None:
    def generate(model: Model) -> Any:
        heads = maps_for(model) if kv == "mapped" else None
        return offramp.generate(
            model, PROMPTS, policy=policy, kv=kv, batching=batching, heads=heads, max_new_tokens=12
        )

    expected, found = here_and_elsewhere(generate)
    assert outcome(found) == outcome(expected)


@pytest.mark.parametrize(
    "policy",
    [
        "threshold:signal=restricted_margin,value=0.1,exits=1+2+3",
        "threshold:signal=kl_to_previous,value=0.5,exits=1+2+3",
        "threshold:signal=top_k_overlap,value=0.5,exits=1+2+3",
        "threshold:signal=hidden_cosine,value=0.9,exits=2+3",
        "shortlist:policy=[threshold:signal=restricted_margin,value=0.05,exits=1+3],at=all",
        "patience:times=1,exits=1+2+3",
        "adaptive:signal=max_prob,target=0.2,warmup=2,exits=1+2+3",
    ],
)
def test_what_policies_read(policy: str) -> None:
    expected, found = here_and_elsewhere(
        lambda model: offramp.generate(model, PROMPT, policy=policy, max_new_tokens=12, timing=True)
    )
    assert outcome(found) == outcome(expected)


@pytest.mark.parametrize("fact", ["correctness", "correctness_network", "adainfer"])
def test_exits_read_through_fitted_heads(fact: str) -> None:
    def generate(model: Model) -> Any:
        heads = random_heads(model, exits=(1, 2, 3))
        policy = f"threshold:signal={fact},value=0.5,exits=1+2+3"
        return offramp.generate(model, PROMPT, policy=policy, heads=heads, max_new_tokens=12)

    assert {"correctness", "correctness_network", "adainfer"} <= set(ALL_FACTS)
    expected, found = here_and_elsewhere(generate)
    assert outcome(found) == outcome(expected)


@pytest.mark.parametrize("kv", ["propagate", "speculate"])
def test_samples_of_a_seed(kv: str) -> None:
    expected, found = here_and_elsewhere(
        lambda model: offramp.generate(
            model, PROMPT, policy=POLICY, kv=kv, max_new_tokens=12, temperature=0.8, top_k=20, seed=3
        )
    )
    assert outcome(found) == outcome(expected)


def test_inside_transformers_own_generate() -> None:
    def generate(model: Model) -> Any:
        early = offramp.early_exit(POLICY)
        ids = model.hf.generate(
            PROMPT, custom_generate=early, max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert early.last is not None
        return ids.tolist(), outcome(list(early.last.rows))

    expected, found = here_and_elsewhere(generate)
    assert found == expected


def test_scoring() -> None:
    options = DecodingOptions(parse_policy(POLICY))
    expected, found = here_and_elsewhere(
        lambda model: Scorer(model, options).score([5, 6, 7], [8, 9, 10, 11])
    )
    assert found.exits.tolist() == expected.exits.tolist()
    assert found.chosen.tolist() == expected.chosen.tolist()
    assert found.logprob == expected.logprob


def traced(model: Model) -> Trace:
    work = workload_of(lengths=(14,) * 40, vocabulary=58)
    return offramp.trace(model, work, tokens=200, document_tokens=10, signals="restricted", progress=False)


@pytest.mark.parametrize("kv", ["propagate", "mapped", "recompute"])
def test_a_rerun(kv: str) -> None:
    trace = traced(build())

    def again(model: Model) -> Any:
        heads = maps_for(model) if kv == "mapped" else None
        return rerun(model, trace, POLICY, kv, heads=heads)

    expected, found = here_and_elsewhere(again)
    assert np.array_equal(found.exits, expected.exits)
    assert np.array_equal(found.top1, expected.top1)


def test_a_policy_that_is_tuned_by_what_it_decodes() -> None:
    work = workload_of(lengths=(14,) * 80, vocabulary=58)
    trace = offramp.trace(build(), work, tokens=300, document_tokens=10, signals="restricted", progress=False)

    def tune(model: Model) -> Any:
        return offramp.tune(
            trace,
            {"agreement": 0.6},
            None,
            model,
            workload=work,
            kv="propagate",
            documents=10,
            prompt_tokens=6,
            new_tokens=4,
        )

    expected, found = here_and_elsewhere(tune)
    assert found.policy == expected.policy
    assert found.certificate == expected.certificate
    assert [one.documents for one in found.candidates] == [one.documents for one in expected.candidates]


def timed_of(result: BenchResult) -> set[str]:
    """The names of those that took part, less the one that is timed twice."""
    return {one.name for one in result.contenders if one.left_out is None and one.role != "a/a"}


def test_a_bench() -> None:
    def timed(model: Model) -> Any:
        options = DecodingOptions.read(POLICY, new_tokens=6)
        setting = settle(model, [options], prompts=PROMPTS, batch=2)
        return run(setting, limits=TimeLimits(rounds=1), extent=Extent())

    expected, found = here_and_elsewhere(timed)
    assert not found.result.defects
    # transformers makes a number of a static cache without saying where.
    names = timed_of(expected.result) - {STATIC_CACHE}
    assert timed_of(found.result) == names
    for name in names & set(expected.decoded) & set(found.decoded):
        decoded = expected.decoded[name]
        assert {place: one.tokens for place, one in found.decoded[name].items()} == {
            place: one.tokens for place, one in decoded.items()
        }


def test_a_profile() -> None:
    model = build()
    with made_elsewhere():
        profile = measure_hardware(model, budget_seconds=0.1, batches=(1, 2))
    assert profile.layers_count == model.layers
    assert profile.token_costs(model.shape, 20, batch=2).plain > 0.0


class FakeEvent:
    """An event of an accelerator whose work takes as long as it is told."""

    def __init__(self, at: float) -> None:
        self.at = at
        self.waited = False

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, later: FakeEvent) -> float:
        assert later.waited
        return 1e3 * (later.at - self.at)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that the work of an accelerator takes until each next event."""
    seconds: list[float] = []

    def recorded(device: torch.device) -> FakeEvent:
        assert device.type == "cuda"
        return FakeEvent(seconds.pop(0))

    monkeypatch.setattr(engine_module, "recorded_event", recorded)
    return seconds


def test_an_accelerators_parts_are_timed_by_its_events(accelerator: list[float]) -> None:
    accelerator += [0.0, 1.0, 1.5, 3.5]
    meter = Meter(timing=True, clock=DeviceClock(torch.device("cuda", 0)))
    meter.start()
    for part in ("layers", "probes", "layers"):
        meter.lap(part)
    assert meter.seconds == {**dict.fromkeys(meter.seconds, 0.0), "layers": 3.0, "probes": 0.5}


def test_an_accelerators_layers_and_probes_are_told_apart(accelerator: list[float]) -> None:
    # Start; layer 1 begins; layer 2 begins, so that 1 is over; a lap; a probe's lap.
    accelerator += [0.0, 1.0, 3.0, 6.0, 7.0]
    meter = StepMeter(DeviceClock(torch.device("cuda", 0)))
    meter.start()
    meter.count("layers", 1)
    meter.count("layers", 2)
    meter.lap("layers")
    meter.count("probe", 2, probe="full head")
    meter.lap("probes")
    assert meter.by_layer == {1: 2.0, 2: 3.0}
    assert meter.by_exit == {2: 1.0}
    assert meter.seconds["layers"] == 6.0
