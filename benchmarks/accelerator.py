"""What an accelerator does with this library: every figure that is aimed at, in at most eight minutes.

    python benchmarks/accelerator.py           one accelerator, no network: shapes of 1 B and 8 B, and smollm2
    python benchmarks/accelerator.py --small   the same code on the processor with a tiny shape, for tests

The shapes are random Llamas with a vocabulary of 128 k in bfloat16, made on the device; smollm2 is left out
where its package is not installed. Every model has a process of its own, which is ended when its time is
over: what it had found by then counts, and the rest is open. Figures, each with its aim:

tracing_over_floor: `offramp.trace` over one forward and one head product per exit in the same dtype, medians
of repeats in turns. tracing_bytes: its peak of memory beside the model. never_over_fastest: the loop that
policies decode with, without exits, over the fastest plain decoder (the steps of generate() with a dynamic
and a static cache, generate() in one call, compiled), with a 95 % interval. check_microseconds: one checked
exit less its head product, with how many operations it takes. static_over_ideal: static exits over the
never-exit loop less the layers that do not run, by the profile; the worst of them. profile_error: of the
profile's price of what ran, beside the time that it took, the median over policies. Beside them:
static_over_share, over never exit times layers run / layers, and the seconds of a plain step by batch size.

The last line is one JSON object; `accelerator.json` holds it too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import offramp
from offramp.costs.timings import TimingsProfile
from offramp.decoding.engine.build import engine_of
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.options import DecodingOptions
from offramp.files import write_json_atomically
from offramp.kit.typed import finite_json
from offramp.models.devices import AUTO, CPU, device_name, find_device, synchronise
from offramp.models.identity import ModelIdentity
from offramp.models.loading import build_model
from offramp.models.model import Model
from offramp.scoring.estimate import LEVEL
from offramp.timing.bench import Measurement, forecasts_of, run, settle
from offramp.timing.contenders import NEVER, WITHOUT_PEERS
from offramp.timing.decoder import Setting, batches_of, generate
from offramp.timing.local_profile import measure_hardware
from offramp.timing.ratios import ratios_of
from offramp.timing.session import start_peak
from offramp.timing.stopping import TimeLimits
from offramp.tracing.row_facts import forget_gram_matrices
from offramp.workloads.workload import Document, Workload

WORDS = 4096
"""Tokens that texts are drawn from; a random model says the same of any."""

SHAPES: Mapping[str, Mapping[str, int]] = {
    "tiny": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
             "intermediate_size": 96, "vocab_size": 640},
    "1b": {"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 8192, "vocab_size": 128_256},
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
           "intermediate_size": 14_336, "vocab_size": 128_256},
}  # fmt: skip
"""Of Llama 3.2 1B and Llama 3 8B."""

TIED = ("1b",)
BUNDLED = "smollm2"

SHARES: Mapping[str, float] = {BUNDLED: 0.18, "1b": 0.32, "8b": 0.50}
"""Of all seconds, by model: the largest comes last, so that a short time leaves it open and nothing else."""

AIMS: Mapping[str, float] = {
    "tracing_over_floor": 1.25,
    "tracing_bytes": 2e9,
    "never_over_fastest": 1.03,
    "check_microseconds": 40.0,
    "static_over_ideal": 1.08,
    "profile_error": 0.10,
}
"""At most; of an interval, its upper limit."""

JUDGED = "8b"
"""The model whose figures the aims are of."""

OPEN = "open"

STANDARD_ERROR = 2
"""The file that all but the one line goes to."""

RESERVED = 0.85
"""Of its seconds, what a model's process plans with: imports, and what takes longer than was thought."""
PATIENCE = 10.0
SHORTEST = 0.1
"""Seconds of a measurement for which none are left: as little as it can do."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured. tokens: traced; context: of one sequence. chunks: rows of a head product."""

    tokens: int = 4096
    context: int = 512
    chunks: tuple[int, ...] = (512, 4096)
    prompt_tokens: int = 64
    prompts: int = 4
    new_tokens: int = 32
    batches: tuple[int, ...] = (1, 8, 64)


SMALL = Sizes(tokens=64, context=32, chunks=(64,), prompt_tokens=8, prompts=2, new_tokens=6, batches=(1, 2))


class Numbers:
    """A tokenizer whose words are the tokens' numbers, for models that have none."""

    bos_token_id = eos_token_id = pad_token_id = chat_template = None
    name_or_path = "numbers"

    def __call__(self, text: str, **options: Any) -> dict[str, list[int]]:
        """The numbers of a text; any other word is 0."""
        return {"input_ids": [int(word) if word.isdecimal() else 0 for word in text.split()]}

    def decode(self, ids: Sequence[int], **options: Any) -> str:
        """The text of some ids."""
        return " ".join(map(str, ids))


def make_model(name: str, device: str) -> Model:
    """The bundled model, or a random one of a shape, in bfloat16 on a device."""
    if name == BUNDLED:
        return offramp.load_model(name, dtype="bfloat16", device=device)
    import transformers

    torch.manual_seed(0)
    config_class: Any = transformers.LlamaConfig
    config = config_class(
        **SHAPES[name],
        max_position_embeddings=8192,
        tie_word_embeddings=name in TIED,
        bos_token_id=None,
        eos_token_id=None,
        dtype="bfloat16",
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            hf = transformers.LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    identity = ModelIdentity(weights=name, config=name, tokenizer="numbers", source="random weights")
    return build_model(hf, Numbers(), name=name, identity=identity, dtype="bfloat16")


def numbers(count: int, seed: int, vocabulary: int) -> list[int]:
    """Token ids drawn from the first `WORDS`."""
    drawn = torch.Generator("cpu").manual_seed(seed)
    return torch.randint(min(WORDS, vocabulary), (count,), generator=drawn, device="cpu").tolist()


@dataclass
class Job:
    """One model on its device. until: when its time is over. profile, measurement: once they are there."""

    sizes: Sizes
    until: float
    model: Model
    profile: TimingsProfile | None = None
    measurement: Measurement | None = None

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(self.until - time.monotonic(), 0.0)

    def setting(self, cells: Sequence[DecodingOptions]) -> Setting:
        """Ways to decode on the same prompts."""
        sizes, vocabulary = self.sizes, self.model.shape.vocabulary_size
        prompts = [numbers(sizes.prompt_tokens, seed, vocabulary) for seed in range(sizes.prompts)]
        return settle(self.model, cells, prompts=prompts, batch=1)


def waited(job: Job, call: Callable[[], object]) -> float:
    """Seconds of a call until the device has done it."""
    synchronise(job.model.stack.device)
    began = time.perf_counter()
    call()
    synchronise(job.model.stack.device)
    return time.perf_counter() - began


def tracing(job: Job) -> dict[str, Any]:
    """Tracing over its floor, in turns, and its peak of memory."""
    sizes, model, deadline = job.sizes, job.model, time.monotonic() + 0.5 * job.left
    count = sizes.tokens // sizes.context
    texts = [numbers(sizes.context, seed, model.shape.vocabulary_size) for seed in range(count)]
    documents = tuple(Document(str(place), " ".join(map(str, ids))) for place, ids in enumerate(texts))
    work = Workload("numbers", mode="text", documents=documents, licence="CC0-1.0", source="random numbers")

    def trace() -> None:
        forget_gram_matrices()  # a trace of a process of its own computes its head's
        offramp.trace(
            model,
            work,
            tokens=count * (sizes.context - 1),
            context=sizes.context,
            document_tokens=sizes.context,
            progress=False,
        )

    peak = start_peak(model.stack.device)
    trace()
    bytes_beside = peak()
    traced: list[float] = []
    floors: dict[int, list[float]] = {chunk: [] for chunk in sizes.chunks}
    for chunk in sizes.chunks:
        floor(model, texts, chunk)
    while not traced or (len(traced) < 8 and time.monotonic() < deadline):
        for chunk, samples in floors.items():
            samples.append(waited(job, lambda chunk=chunk: floor(model, texts, chunk)))  # type: ignore[misc]
        traced.append(waited(job, trace))
    best = min(floors.values(), key=statistics.median)
    pairs = [one / other for one, other in zip(traced, best, strict=True)]
    return {
        "tracing_over_floor": {
            "value": statistics.median(traced) / statistics.median(best),
            "low": min(pairs),
            "high": max(pairs),
            "seconds": traced,
            "floor_seconds": {str(chunk): samples for chunk, samples in floors.items()},
        },
        "tracing_bytes": {"value": bytes_beside},
    }


@torch.no_grad()
def floor(model: Model, texts: Sequence[Sequence[int]], chunk: int) -> None:
    """Hidden states of texts of one length, then as many head products as there are exits."""
    weight = model.stack.head_weight
    assert weight is not None, "the head of a Llama is linear"
    ids = torch.tensor(texts, device=model.stack.device)
    states = model.stack.core(ids, use_cache=False).last_hidden_state.flatten(0, 1)
    for start in range(0, len(states), chunk):
        for _ in range(model.layers):
            torch.nn.functional.linear(states[start : start + chunk], weight)


def profiling(job: Job) -> dict[str, Any]:
    """The profile, which has timed no policy, and what a plain step takes by it at each batch size."""
    sizes = job.sizes
    job.profile = measure_hardware(
        job.model, budget_seconds=max(0.2 * job.left, SHORTEST), batches=sizes.batches
    )
    position = sizes.prompt_tokens + sizes.new_tokens / 2
    steps = {
        str(batch): job.profile.token_costs(job.model.shape, position, batch=batch).plain
        for batch in sizes.batches
    }
    details = job.profile.details
    return {"plain_step_seconds": steps, "profile_check": details["check"], "profile_notes": details["notes"]}


def exits_of(layers: int) -> list[int]:
    """A quarter, a half and three quarters of the layers."""
    return sorted({min(max(round(layers * share), 1), layers - 1) for share in (0.25, 0.5, 0.75)})


def cells_of(job: Job) -> tuple[dict[str, int], dict[tuple[int, str], str], list[DecodingOptions]]:
    """What is timed: checks of what never leaves, by name; names of static exits; all of them."""
    exits = exits_of(job.model.layers)
    checks = {f"threshold:signal=margin,value=1.0,exits={'+'.join(map(str, exits))}": len(exits)}
    cells = [DecodingOptions.read(policy, new_tokens=job.sizes.new_tokens) for policy in checks]
    statics = {}
    for exit in exits:
        for kv in ("monotone", "propagate", "recompute"):
            cell = DecodingOptions.read(f"static:exit={exit}", kv=kv, new_tokens=job.sizes.new_tokens)
            statics[exit, kv] = cell.name
            cells.append(cell)
    return {cells[0].name: next(iter(checks.values()))}, statics, cells


def decoding(job: Job) -> dict[str, Any]:
    """Never exit, checked exits and static exits, in turns with the plain decoders."""
    checks, statics, cells = cells_of(job)
    # The small form times everybody as briefly as can be; else whom there is no time for is left out.
    seconds = 0.0 if job.sizes == SMALL else max(0.5 * job.left, SHORTEST)
    limits = TimeLimits(seconds=seconds, rounds=None, looks=False)
    job.measurement = run(job.setting(cells), limits=limits, extent=WITHOUT_PEERS)
    result = job.measurement.result
    never = seconds_of(job, NEVER)
    (checking, count), product = next(iter(checks.items())), head_product(job)
    found: dict[str, Any] = {
        "never_over_fastest": {**ratio(job, NEVER, result.plain), "over": result.plain, "seconds": never},
        "check_microseconds": {
            "value": 1e6 * ((seconds_of(job, checking) - never) / count - product),
            "product_microseconds": 1e6 * product,
            "operations": operations_of_a_check(job),
        },
        "static_over_share": {
            f"{exit} {kv}": ratio(job, name, NEVER, exit / job.model.layers)
            for (exit, kv), name in statics.items()
        },
        "defects": list(result.defects),
        "a_a": {"value": result.a_a.value, "low": result.a_a.low, "high": result.a_a.high},
    }
    if job.profile is not None:
        over = {
            f"{exit} {kv}": ratio(job, name, NEVER, ideal_share(job, job.profile, exit, kv))
            for (exit, kv), name in statics.items()
        }
        # Keys and values that are left behind are no part of the ideal, whoever must leave them.
        worst = max(
            (over[key] for key in over if key.endswith("monotone")), key=lambda one: one["value"] or 0.0
        )
        found["static_over_ideal"] = {**worst, "by_exit": over}
    return found


def ideal_share(job: Job, profile: TimingsProfile, exit: int, kv: str) -> float:
    """Never exit less the layers that do not run, with the K and V that must be left, over never exit."""
    costs = profile.token_costs(job.model.shape, job.sizes.prompt_tokens + job.sizes.new_tokens / 2)
    share = costs.plain - float(costs.layers[exit:].sum())
    if kv == "propagate":
        share += float(costs.key_value[exit:].sum())
    return share / costs.plain


def prediction(job: Job) -> dict[str, Any]:
    """What the profile says of what ran, beside the stopwatch."""
    if job.profile is None or job.measurement is None:
        raise LookupError("there is no profile, or nothing was timed")
    found = forecasts_of(job.measurement, job.profile, parts_of=1)
    errors = {name: one.priced / one.measured.value - 1.0 for name, one in found.items()}
    return {
        "profile_error": {
            "value": statistics.median(map(abs, errors.values())),
            "high": max(map(abs, errors.values())),
            "by_policy": errors,
        }
    }


def compiled(job: Job) -> dict[str, Any]:
    """Never exit over generate() with a static cache that transformers compiles, whole decodings in turns."""
    if job.model.stack.device.type == CPU:
        raise LookupError("transformers compiles generate() on accelerators only")
    sizes, model = job.sizes, job.model
    prompts = batches_of(
        [numbers(sizes.prompt_tokens, seed, model.shape.vocabulary_size) for seed in range(sizes.prompts)],
        1,
        model.stack.device,
    )
    config = {"disable_compile": False, "cache_implementation": "static"}
    never = DecodingOptions.read("never", new_tokens=sizes.new_tokens)
    for one in prompts[:1] * 3:  # it compiles once for the prompt's shape, once for a token's
        generate(model, one, sizes.new_tokens, config=config)
    logs: list[float] = []
    seconds: list[float] = []
    while len(logs) < 2 * len(prompts) or (len(logs) < 40 and job.left > 5.0):
        one = prompts[len(logs) % len(prompts)]
        theirs = generate(model, one, sizes.new_tokens, config=config).seconds_per_token
        own = generate_batch(model, one.ids, one.mask, never, eos_token_id=None)
        logs.append(math.log(own.seconds / (sizes.new_tokens - 1) / theirs))
        seconds.append(theirs)
    mean, error = statistics.fmean(logs), statistics.stdev(logs) / math.sqrt(len(logs))
    low, high = (math.exp(mean + sign * 1.96 * error) for sign in (-1, 1))
    return {
        "never_over_compiled": {
            "value": math.exp(mean),
            "low": low,
            "high": high,
            "compiled_seconds": statistics.median(seconds),
        }
    }


def head_product(job: Job) -> float:
    """Seconds of one head product of one row, of many in a row."""
    weight = job.model.stack.head_weight
    assert weight is not None, "the head of a Llama is linear"
    row = torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device)

    def products() -> None:
        with torch.no_grad():
            for _ in range(50):
                torch.nn.functional.linear(row, weight)

    return min(waited(job, products) for _ in range(5)) / 50


class Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts operations that compute something: about as many kernels are launched for them."""

    count: int = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: tuple[Any, ...] = (), keywords: Any = None
    ) -> Any:
        """One more, unless it only looks at the same memory in another way."""
        self.count += not function.is_view
        return function(*arguments, **(keywords or {}))


def operations_of_a_check(job: Job) -> int:
    """Of reading a margin at an exit, its norm and head product among them."""
    stack, exit = job.model.stack, exits_of(job.model.layers)[0]
    reader = ExitReader(engine_of(job.model), None, {exit: ("margin",)})
    width, dtype = job.model.shape.hidden_size, next(job.model.hf.parameters()).dtype
    hidden = torch.ones(1, 1, width, dtype=dtype, device=stack.device)
    operations = Operations()  # type: ignore[no-untyped-call]
    with operations:
        reader.read(exit, ("margin",), hidden, None)
    return int(operations.count)


def seconds_of(job: Job, name: str) -> float:
    """Seconds per token of one that was timed."""
    assert job.measurement is not None, "asked after the timing"
    found = job.measurement.result.contender(name).seconds_per_token
    if found is None:
        raise LookupError(f"{name} was not timed: {job.measurement.result.contender(name).left_out}")
    return found.value


def ratio(job: Job, above: str, below: str, share: float = 1.0) -> dict[str, float | None]:
    """Seconds of the one over a share of those of the other, with its interval over prompts."""
    assert job.measurement is not None, "asked after the timing"
    result = job.measurement.result
    for name in (above, below):
        seconds_of(job, name)
    found = ratios_of(result.contenders, result.plain, result.contender(below))(above, LEVEL)
    assert found is not None, "both took turns"
    values = {"value": found.value, "low": found.low, "high": found.high}
    return {name: None if value is None else value / share for name, value in values.items()}


PARTS: Mapping[str, Callable[[Job], dict[str, Any]]] = {
    "profile": profiling,
    "decoding": decoding,
    "prediction": prediction,
    "tracing": tracing,
    "compiled": compiled,
}
"""In their order: a profile has timed no policy, and what compiles may take all the time that is left."""


def run_job(name: str, device: str, sizes: Sizes, seconds: float, lines: Path) -> None:
    """One model: a line of JSON for every part, as soon as it is there."""
    until = time.monotonic() + seconds

    def report(found: Mapping[str, Any]) -> None:
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    began = time.monotonic()
    job = Job(sizes, until, make_model(name, device))
    report({"part": "model", "figures": {"model_seconds": time.monotonic() - began}})
    for part, measure in PARTS.items():
        try:
            report({"part": part, "figures": measure(job)})
        except Exception as error:  # noqa: BLE001 - whatever stops one part is reported, and the others go on
            traceback.print_exc()
            report({"part": part, "error": f"{type(error).__name__}: {error}"})


def in_a_process(name: str, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The figures of one model, and what became of those that are missing, by part."""
    with tempfile.TemporaryDirectory(prefix="offramp-accelerator-") as folder:
        lines = Path(folder) / "lines.jsonl"
        command = [sys.executable, __file__, "--job", name, "--lines", str(lines)]
        command += ["--device", options.device, "--seconds", str(RESERVED * seconds)]
        command += ["--small"] if options.small else []
        # Where tests share a processor, time says little.
        limit = PATIENCE * seconds if options.small else seconds
        try:
            ended = subprocess.run(command, stdout=STANDARD_ERROR, timeout=limit, check=False).returncode
            problem = f"its process ended with code {ended}" if ended else None
        except subprocess.TimeoutExpired:
            problem = f"it was ended after {limit:.0f} s"
        written = lines.read_text(encoding="utf-8").splitlines() if lines.exists() else []
    figures: dict[str, Any] = {}
    errors: dict[str, str] = {}
    reported = set()
    for line in written:
        try:
            one = json.loads(line)
        except json.JSONDecodeError:  # it was ended while it wrote this
            continue
        reported.add(one["part"])
        figures |= one.get("figures", {})
        errors |= {one["part"]: one["error"]} if "error" in one else {}
    errors |= {part: problem or "it left no figures" for part in PARTS if part not in reported}
    return {"figures": figures, "errors": errors}


def judged(figures: Mapping[str, Any], *, counts: bool) -> dict[str, Any]:
    """Every figure that has an aim, beside it: reached, missed, or open. counts: whether they are of what the
    aims are of."""
    found = {}
    for name, aim in AIMS.items():
        figure = dict(figures.get(name) or {})
        if name == "never_over_fastest" and "never_over_compiled" in figures:
            faster = figures["never_over_compiled"]
            if _above(faster, figure):
                figure = {**faster, "over": "generate(static cache, compiled)"}
        upper = figure.get("high") if name == "never_over_fastest" else figure.get("value")
        reached = OPEN if upper is None or not counts else "reached" if upper <= aim else "missed"
        found[name] = {"aim": aim, "reached": reached, **figure}
    return found


def _above(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return not other or one["value"] > other["value"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Every model in a process of its own, then all figures beside their aims."""
    options = _options(arguments)
    sizes = SMALL if options.small else Sizes()
    if options.job is not None:
        run_job(options.job, options.device, sizes, options.seconds, Path(options.lines))
        return
    options.device = CPU if options.small else find_device(options.device)
    on_card = options.device != CPU
    names = ["tiny"] if options.small else list(SHARES) if on_card else [BUNDLED]
    began, models = time.monotonic(), {}
    for name in names:
        share = SHARES.get(name, 1.0) if len(names) > 1 else 1.0
        found = in_a_process(name, options, share * options.seconds)
        counts = on_card and name == JUDGED
        models[name] = {"aims": judged(found["figures"], counts=counts), **found}
    result = {
        "benchmark": "accelerator",
        "device": options.device,
        "device_name": device_name(options.device),
        "torch": torch.__version__,
        "seconds": round(time.monotonic() - began, 1),
        "small": options.small,
        "aims": models[JUDGED]["aims"] if JUDGED in models else judged({}, counts=False),
        "aims_are_of": JUDGED,
        "models": models,
    }
    write_json_atomically(Path(options.output), finite_json(result))
    print(json.dumps(finite_json(result)))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny shape on the processor")
    parser.add_argument("--device", default=AUTO)
    parser.add_argument("--seconds", type=float, default=None, help="of everything; 450, of --small 20")
    parser.add_argument("--output", default="accelerator.json")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    parser.add_argument("--lines", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.seconds is None:
        options.seconds = 20.0 if options.small else 450.0
    return options


if __name__ == "__main__":
    main()
