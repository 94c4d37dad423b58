"""The page of a large comparison: seconds to write it, its size, and how soon a browser shows something.

    python benchmarks/comparison_page.py                       100 cells x 32 exits, 5,000 strategies
    python benchmarks/comparison_page.py --cells 400 --tables  four times as many, and every table as files

The comparison is made up; no trace and no model is read. If Chromium is found the page is opened in it
without a window, in a fresh profile each time, from a server on this machine: `first_paint_seconds` is the
browser's own first contentful paint, `loaded_seconds` when all of it is read and its script has run;
`filter_first_seconds` (rows are read then), `filter_seconds` and `sort_seconds` are what the page takes to
narrow down or sort, with the layout after it. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import http.server
import json
import os
import queue
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.rules.threshold import Threshold
from offramp.report.comparison import render_comparison, write_comparison_page
from offramp.report.comparison_data import comparison_tables
from offramp.report.table import write_tables
from offramp.scoring.card import EasVariant, LayerCurves, Limits, ScoreCard
from offramp.scoring.components import SIMILARITIES
from offramp.scoring.documents import TextSize
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, ModelFacts, Row, Strategy
from offramp.tuning.certificate import Certificate
from offramp.tuning.floor import Floor
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Verdict

WORKLOADS = ("prose", "code", "chat", "math")
FLOORS = tuple(Floor("agreement", value) for value in (0.99, 0.95, 0.9))
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
SCORES = ("representation", "increment", "calibration", "composite", "saturation_skip")
CURVES = (
    "agreement",
    "kl_to_final",
    "remaining_information",
    "max_prob",
    "entropy",
    "nll",
    "recalibrated_brier",
    "ece_agreement",
    "auroc",
    "centred_logit_cosine",
    "hidden_cosine_to_final",
    "block_influence",
    "update_norm",
)
PROBE = """<script>addEventListener("load", () => requestAnimationFrame(() => setTimeout(() => {
  const paint = performance.getEntriesByType("paint").find((one) => one.name === "first-contentful-paint");
  const loaded = performance.now();
  const timed = (act) => {
    const start = performance.now();
    act();
    document.body.offsetHeight;
    return performance.now() - start;
  };
  document.getElementById("strategies").scrollIntoView({behavior: "instant"});
  document.body.offsetHeight;
  const box = document.querySelector("#filters input");
  const search = (words) => { box.value = words; box.dispatchEvent(new Event("input", {bubbles: true})); };
  const first = timed(() => search("family 7 code"));
  const next = timed(() => search("family 7"));
  search("");
  const sort = timed(() => document.querySelector('#data-strategies [data-key="agreement"] button').click());
  fetch("/timed", {method: "POST", body: JSON.stringify({
    paint: paint ? paint.startTime : null, loaded, filter_first: first, filter: next, sort})});
}, 0)));</script></body>"""


def estimate(value: float, width: float) -> Estimate:
    return Estimate(value, value - width, value + width)


def row(generator: np.random.Generator, model: int, workload: str, exits: int) -> Row:
    """One made-up trace with every score and curve."""
    depth = np.arange(1, exits + 1) / exits
    name = f"model-{model:03}"
    curves = {
        curve: depth ** generator.uniform(1, 4) + 0.01 * generator.standard_normal(exits) for curve in CURVES
    }
    intervals = {curve: Limits(values - 0.02, values + 0.02) for curve, values in curves.items()}
    scores: dict[str, Any] = {key: estimate(float(generator.uniform(0.1, 0.7)), 0.02) for key in SCORES}
    eas = estimate(0.45, 0.01)
    card = ScoreCard(
        **scores,
        literal_calibration=eas,
        initial_information=eas,
        first_match_skip=eas,
        ceiling=0.9,
        head_share=0.1,
        mean_position=16.0,
        documents=60,
        tokens=1920,
        curves=LayerCurves(np.arange(1, exits + 1), depth, curves, intervals),
        reliability=(),
        eas_variants=tuple(EasVariant(name, 0.5, eas, 0.67, 0.18) for name in SIMILARITIES),
        compute_eas=lambda similarity, alpha: EasVariant(similarity, alpha, eas, None, None),
        candidates={},
        notes=(),
    )
    facts = ModelFacts(name, name, f"family {model % 5}", model // 5, "2025-01", 1e9 + 1e8 * model)
    return Row(
        model=facts,
        workload=workload,
        heads="",
        workload_fingerprint=workload * 8,
        card=card,
        text=TextSize(round(1000 * generator.uniform(3, 5)), 4000, 1000),
        bits_per_byte=1.2,
        own_text=False,
        documents=(),
        tokens=1920,
        layers=exits,
        notes=(),
        answers=tuple(answer(generator, floor, place > 0) for place, floor in enumerate(FLOORS)),
        verdicts={(floor, "h100"): verdict(floor, place > 0) for place, floor in enumerate(FLOORS)},
    )


def answer(generator: np.random.Generator, floor: Floor, holds: bool) -> Tuned:
    """What the tuner says of a made-up trace."""
    nothing = Estimate(None, undefined="not looked at")
    certificate = Certificate(
        "wsr", "made up", holds, 0.1, 40, None, None, 0.9, 20, 1, int(holds), "made up", executed=holds
    )
    return Tuned(
        floor=floor,
        policy=Threshold("margin", 0.9, (10, 15, 20)),
        answer="certified",
        certificate=certificate,
        quality=nothing,
        agreement=nothing,
        skip_ratio=nothing,
        net_speedup=estimate(float(generator.uniform(0.95, 1.3)), 0.02),
        seconds_per_token=nothing,
        plain_seconds_per_token=0.01,
        probe_share=0.0,
        machine="h100",
        batch=1,
        kv="propagate",
        front=(),
        shift=(),
        documents={"heads": 0, "search": 20, "certify": 40, "report": 20},
        document_digests={},
    )


def verdict(floor: Floor, holds: bool) -> Verdict:
    """What is decided of a made-up answer."""
    nothing = Estimate(None, undefined="not looked at")
    return Verdict(
        floor=floor.value,
        worth=0.05,
        decision="pays" if holds else "not settled",
        reason="made up",
        missing=(),
        policy=PLAIN_DECODING,
        kv=None,
        certificate=None,
        executed_agreement=None,
        speed=None,
        replayed_policy=PLAIN_DECODING,
        agreement=nothing,
        skip_ratio=nothing,
        net_speedup=nothing,
        net_speedup_flops=nothing,
        fit_agreement=1.0,
        fit_documents=20,
        report_documents=20,
        documents_needed=20,
    )


def strategies(generator: np.random.Generator, rows: list[Row], count: int) -> tuple[Strategy, ...]:
    """So many made-up strategies over the rows, every tenth measured."""
    found = []
    for place in range(count):
        one = rows[place % len(rows)]
        family = place // len(rows) // len(FLOORS)
        measured = place % 10 == 0
        found.append(
            Strategy(
                place=one.on("local" if measured else "h100"),
                family=f"family {family}",
                policy=Threshold("margin", round(generator.uniform(), 4), (10, 15, 20)),
                kv="propagate",
                floor=FLOORS[place // len(rows) % len(FLOORS)],
                basis="measured" if measured else "predicted",
                agreement=estimate(float(generator.uniform(0.9, 1.0)), 0.004),
                skip_ratio=estimate(float(generator.uniform(0.0, 0.4)), 0.01),
                net_speedup=estimate(float(generator.uniform(0.8, 1.3)), 0.02),
                probe_share=0.05,
                seconds_per_token=0.011,
                characters_per_second=380.0,
                answer="faster" if measured else "",
            )
        )
    return tuple(found)


def made_up(cells: int, exits: int, count: int) -> Comparison:
    """A comparison of so many cells over four workloads."""
    generator = np.random.default_rng(cells)
    rows = [
        row(generator, place // len(WORKLOADS), WORKLOADS[place % len(WORKLOADS)], exits)
        for place in range(cells)
    ]
    return Comparison(
        title=f"{cells} made-up cells",
        description="To measure the page.",
        rows=tuple(rows),
        strategies=strategies(generator, rows, count),
        citation="@misc{offramp}",
    )


def opened(browser: str, page: bytes) -> dict[str, float]:
    """The page opened once in a fresh profile, from this machine's own server: its own clock, in seconds."""
    answers: queue.Queue[dict[str, float]] = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        """Gives the page, takes the times."""

        def do_GET(self) -> None:
            self.answer(page if self.path == "/" else b"")

        def do_POST(self) -> None:
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(b"")

        def answer(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *words: object) -> None:
            """Nothing is said of requests."""

    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server,
        tempfile.TemporaryDirectory() as d,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        command += [f"--user-data-dir={d}", "--remote-debugging-port=0"]
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        with subprocess.Popen(
            [*command, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                timed = answers.get(timeout=300)
            finally:
                process.terminate()
        server.shutdown()
    return {name: value / 1000 for name, value in timed.items()}


def in_browser(page: Path, repeats: int) -> dict[str, Any]:
    """First paint, filter and sort in the browser: medians; None without one."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        return {"browser": None, "first_paint_seconds": None}
    probed = page.read_text(encoding="utf-8").replace("</body>", PROBE).encode()
    samples = [opened(browser, probed) for _ in range(repeats)]
    return {
        "browser": browser,
        "first_paint_seconds": statistics.median(sample["paint"] for sample in samples),
        "first_paint_samples": [sample["paint"] for sample in samples],
        **{
            f"{name}_seconds": statistics.median(sample[name] for sample in samples)
            for name in ("loaded", "filter_first", "filter", "sort")
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--exits", type=int, default=32)
    parser.add_argument("--strategies", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tables", action="store_true", help="time writing every table as files too")
    parser.add_argument("--keep", type=Path, help="a folder for the page, kept")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    comparison = made_up(options.cells, options.exits, options.strategies)
    with tempfile.TemporaryDirectory() as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        seconds = []
        for _ in range(options.repeats):
            started = time.perf_counter()
            page = write_comparison_page(comparison, folder / "comparison.html")
            seconds.append(time.perf_counter() - started)
        print(f"page written in {statistics.median(seconds):.2f} s", flush=True)
        same = render_comparison(comparison) == page.read_text(encoding="utf-8")
        result: dict[str, Any] = {
            "benchmark": "comparison_page",
            "cells": options.cells,
            "exits": options.exits,
            "strategies": options.strategies,
            "page_seconds": statistics.median(seconds),
            "page_bytes": page.stat().st_size,
            "same_bytes_again": same,
            "load_average": load,
        }
        if options.tables:
            started = time.perf_counter()
            write_tables(comparison_tables(comparison), folder / "tables")
            result["tables_seconds"] = time.perf_counter() - started
        result |= in_browser(page, options.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
