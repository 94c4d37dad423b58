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
import itertools
import json
import math
import os
import queue
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import comparison_examples as examples  # type: ignore[import-not-found]
from offramp.report.comparison_data import comparison_tables
from offramp.report.comparison_page import render_comparison, write_comparison_page
from offramp.report.table import write_tables
from offramp.studies.comparison.results import Comparison

WORKLOADS = ("prose", "code", "chat", "math")
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
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


def made_up(cells: int, exits: int, count: int) -> Comparison:
    """A comparison of so many cells over four workloads, with so many strategies."""
    described = examples.more_models(math.ceil(cells / len(WORKLOADS)), exits)
    example: Comparison = examples.example_comparison(described, WORKLOADS)
    strategies = zip(range(count), itertools.cycle(example.strategies), strict=False)
    return replace(
        example,
        title=f"{cells} made-up cells",
        rows=example.rows[:cells],
        strategies=tuple(replace(one, family=f"family {place // cells}") for place, one in strategies),
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
