"""Whether a run's page, terminal and summary say the same, and no more than its records do."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from offramp.policies.short_names import short_name
from offramp.report.formats import percent, times, whole_percent
from offramp.report.page import print_summary, render
from offramp.report.run_reading import RunReader
from offramp.report.run_result import RunResult
from offramp.report.summary import summarise
from page_reader import VOID, Page

MOST_WORDS = 25
"""Of the sentence that answers; a model's name is one of them, however it is written."""

FIGURE = re.compile(r"[\d.,]+ [%×]|–|not \w+")
"""What a cell begins with."""

ORDER = ("does not pay", "inconclusive", "pays")


class Tables(HTMLParser):
    """The rows of every table of a style: the text of each cell, and the policies' texts of each row."""

    def __init__(self, html: str, style: str) -> None:
        super().__init__(convert_charrefs=True)
        self.style, self.inside, self.open = style, False, [""]
        self.rows: list[list[str]] = []
        self.codes: list[list[str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table" and self.style in (dict(attrs).get("class") or "").split():
            self.inside = True
        if self.inside and tag == "tr":
            self.rows.append([])
            self.codes.append([])
        if self.inside and tag in ("td", "th"):
            self.rows[-1].append("")
        if self.inside and tag == "small" and self.rows[-1]:
            self.rows[-1][-1] += " "
        if self.inside and tag == "code":
            self.codes[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()
        if tag == "table":
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside and self.rows and self.rows[-1]:
            data = data.replace("\u00a0", " ")
            if self.open[-1] == "code":
                self.codes[-1][-1] += data
            elif not {"thead", "caption"} & set(self.open):
                self.rows[-1][-1] += data


def require_consistent(run: RunResult | Path) -> None:
    """Fail with every contradiction between the texts of a run, or of a folder of one, and its records."""
    if isinstance(run, Path):
        page = (run / "report.html").read_text(encoding="utf-8")
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        result = RunReader(run).result()
    else:
        result, page, summary = run, render(run), json.loads(json.dumps(summarise(run)))
    out = io.StringIO()
    print_summary(result, Console(file=out, width=2000))
    found = list(contradictions(summary, page, out.getvalue()))
    if found:
        pytest.fail("\n".join(found))


def contradictions(summary: dict[str, Any], page: str, terminal: str) -> Iterator[str]:
    """What page, terminal and summary say that contradicts each other, or that no record bears out."""
    answer = _answer(page)
    words = len(answer.replace(summary["provenance"]["model"], "model").split())
    if words > MOST_WORDS:
        yield f"the answer has {words} words: {answer}"
    if terminal.split("\n")[1].strip() != answer:
        yield f"the terminal answers {terminal.split(chr(10))[1]!r}, the page {answer!r}"
    verdict = summary["verdict"]
    following = re.search(r'<pre id="next"[^>]*><code>(.*?)</code>', page, re.S)
    if following is not None and Page(following.group(1)).text not in terminal:
        yield f"the terminal does not name the page's next command: {following.group(1)}"
    yield from _said_of_decisions(answer, verdict)
    rows = verdict["by_workload"]
    yield from _rows(rows, page, terminal)
    for row in rows:
        yield from _of_one_verdict(row, summary)
    yield from _monotone(rows)
    yield from _nothing_executed(rows, answer, page, terminal)
    yield from _timed(summary, page)


def _answer(page: str) -> str:
    found = re.search(r"<h1>(.*?)</h1>", page, re.S)
    assert found is not None
    return Page(found.group(1)).text.replace("\u00a0", " ")


def _said_of_decisions(answer: str, verdict: dict[str, Any]) -> Iterator[str]:
    """The sentence claims that it pays, or does not, only of texts of which that was decided."""
    main = _main(verdict["by_workload"])
    decided = {row["decision"] for row in main}
    if re.search(r"(?<!not )\bpays\b", answer) and "whether" not in answer and "pays" not in decided:
        yield f"{answer!r}, and no text pays"
    if "does not pay" in answer and "does not pay" not in decided:
        yield f"{answer!r}, and of no text that was decided"
    if verdict["decision"] in ORDER and decided and decided != {verdict["decision"]}:
        yield f"{verdict['decision']} in all, {decided} by text"


def _main(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by_text: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_text.setdefault(row["workload"], []).append(row)
    return [min(of_text, key=lambda row: abs(row["floor"] - 0.95)) for of_text in by_text.values()]


def _rows(rows: list[dict[str, Any]], page: str, terminal: str) -> Iterator[str]:
    """Each verdict in the page's table, the terminal's and the summary."""
    table = Tables(page, "floors")
    shown = [(cells, codes) for cells, codes in zip(table.rows, table.codes, strict=True) if len(cells) == 6]
    shown = [(cells, codes) for cells, codes in shown if cells[0].strip()]
    if len(shown) != len(rows):
        yield f"{len(shown)} rows on the page, {len(rows)} verdicts"
        return
    lines = [line for line in terminal.splitlines() if re.search(r"\d %  ", line)]
    for row, (cells, codes) in zip(rows, shown, strict=True):
        where = f"{row['workload']} at {whole_percent(row['floor'])}"
        floor, decision, policy, kept, speed, credit = (" ".join(cell.split()) for cell in cells)
        kept, _, untransformed = kept.partition(" untransformed: ")  # which the page alone says
        yield from _original(where, row, untransformed)
        if floor != whole_percent(row["floor"]) or row["decision"] not in decision:
            yield f"{where}: the page's row is of {floor}: {decision}"
        named = row["policy"] if row["policy"] != "never" or not row["tried"] else row["tried"]["policy"]
        if short_name(named) not in policy or (named != "never" and named not in codes):
            yield f"{where}: the page names {policy} ({codes}), the record {named}"
        yield from _figures(where, row, named, kept, speed, credit)
        words = [FIGURE.match(part)[0] for part in (kept, speed, credit)]
        if not any(all(word in line for word in (floor, row["decision"], *words)) for line in lines):
            yield f"{where}: no line of the terminal has {floor}, {row['decision']}, {words}"


def _figures(
    where: str, row: dict[str, Any], named: str, kept: str, speed: str, credit: str
) -> Iterator[str]:
    """The figures of a row are its record's, and of the policy that it names."""
    if named == "never":
        if (kept, speed, credit) != ("–", "–", "–"):
            yield f"{where}: never exits, and has figures: {kept}; {speed}; {credit}"
        return
    if row["speed"] is not None and times(row["speed"]["value"]) not in speed:
        yield f"{where}: speed {speed}, recorded {row['speed']['value']}"
    if row["credit"] is not None and row["credit"]["value"] and times(row["credit"]["value"]) not in credit:
        yield f"{where}: credit {credit}, recorded {row['credit']['value']}"
    tried, certificate = row["tried"], row["certificate"]
    if row["policy"] == "never" and tried["executed"] is not None:
        share, documents = percent(tried["executed"]), tried["documents"]
        if share not in kept or f"{documents} document" not in kept or "not certified" not in kept:
            yield f"{where}: kept {kept}, tried {share} of {documents}"
    elif certificate is not None and certificate["executed"]:
        if f"{certificate['stopped_after'] or 0} document" not in kept:
            yield f"{where}: kept {kept}, certified on {certificate['stopped_after']} documents"
        if row["certified"] == ("not certified" in kept):
            yield f"{where}: kept {kept}, certified: {row['certified']}"


def _original(where: str, row: dict[str, Any], said: str) -> Iterator[str]:
    """Of a transformed model, and of no other, a row has the agreement with what it was made of."""
    recorded = row["reference_agreement"]
    if recorded is None or not said:
        if recorded is not None or said:
            yield f"{where}: untransformed {said or 'not said'}, recorded {recorded}"
    elif (percent(recorded["value"]) if recorded["value"] is not None else "undefined") not in said:
        yield f"{where}: untransformed {said}, recorded {recorded['value']}"


def _of_one_verdict(row: dict[str, Any], summary: dict[str, Any]) -> Iterator[str]:
    """What a verdict's record bears out: its decision, and its figures in the other parts of the summary."""
    where = f"{row['workload']} at {whole_percent(row['floor'])}"
    named = row["policy"] if row["policy"] != "never" or not row["tried"] else row["tried"]["policy"]
    kv = row["kv"] if row["policy"] != "never" or not row["tried"] else row["tried"]["kv"]
    predicted = next(
        one
        for one in summary["predicted"]
        if (one["workload"], one["floor"]) == (row["workload"], row["floor"])
    )
    if predicted["policy"] != named:
        yield f"{where}: predicted of {predicted['policy']}, the verdict is of {named}"
    kept = (row["executed_agreement"] or {}).get("value")
    if row["certified"] and kept is not None and kept < row["floor"] - 0.02:
        yield f"{where}: certified, and kept {kept}"
    if row["decision"] == "pays":
        low = (row["credit"] or row["speed"] or {}).get("low")
        if not row["certified"] or low is None or low <= 1 + summary["verdict"]["worth"]:
            yield f"{where}: pays; certified: {row['certified']}, its lower limit is {low}"
    timed, plain = _timed_policy(summary, row["workload"], named, kv)
    measured = predicted["measured_seconds_per_token"]
    if measured is not None and measured != _seconds(timed):
        yield f"{where}: {measured} s a token were measured by nobody"
    if measured is not None and predicted["plain_seconds_per_token"] != _seconds(plain):
        yield f"{where}: measured beside plain decoding of another moment"
    speed = row.get("decoding") or row["speed"]  # of whole requests where there is an encoder
    speed = speed if speed is not None and speed["how"] == "measured" else None
    if speed is not None and (timed is None or timed["ratio"]["value"] != speed["value"]):
        yield f"{where}: a speed of {speed['value']} was measured by nobody"


def _timed_policy(
    summary: dict[str, Any], text: str, policy: str, kv: str | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The contender that a policy was, and the fastest plain decoder of its turns."""
    for measurement in summary["decoding"]["workloads"]:
        for one in measurement["policies"]:
            if measurement["workload"] == text and (one["policy"], one["kv"]) == (policy, kv):
                return _named(measurement, one["contender"]), _named(measurement, measurement["plain"])
    return None, None


def _named(measurement: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in measurement["contenders"] if one["name"] == name)
    return found


def _seconds(contender: dict[str, Any] | None) -> float | None:
    timed = None if contender is None else contender["seconds_per_token"]
    return None if timed is None else float(timed["value"])


def _monotone(rows: list[dict[str, Any]]) -> Iterator[str]:
    """What keeps a floor keeps every looser one: where it pays at a floor, it is not refused at a looser."""
    for strict, loose in pairwise(sorted(rows, key=lambda row: (row["workload"], -row["floor"]))):
        if strict["workload"] != loose["workload"]:
            continue
        if (strict["decision"], loose["decision"]) == ("pays", "does not pay"):
            yield f"{strict['workload']}: pays at {strict['floor']}, does not at {loose['floor']}"


def _nothing_executed(rows: list[dict[str, Any]], answer: str, page: str, terminal: str) -> Iterator[str]:
    """No text says that anything was executed or certified where nothing was."""
    executed = [row for row in rows if row["certificate"] is not None and row["certificate"]["executed"]]
    decoded = any(row["certificate"]["tested"] or row["certificate"]["stopped_after"] for row in executed)
    if decoded:
        return
    grounds = re.search(r'<p class="grounds">(.*?)</p>', page, re.S)
    for text in (answer, "" if grounds is None else grounds.group(1), terminal):
        for claim in ("as executed", "certified ≥", "can be certified"):
            if re.search(rf"\b{claim}", text.replace("\u00a0", " ")):
                yield f"nothing was executed, and it is said: {claim}: {text[:200]}"


def _timed(summary: dict[str, Any], page: str) -> Iterator[str]:
    """The page's table of every way has the measurement's figures; equality is not said beside noise."""
    table = [" ".join(" ".join(row).split()) for row in Tables(page, "decoded").rows]
    for measurement in summary["decoding"]["workloads"]:
        text = measurement["workload"]
        for one in measurement["contenders"]:
            if one["ratio"] is None or one["role"] not in ("plain", "peer", "policy", "short list"):
                continue
            if not any(times(one["ratio"]["value"]) in line for line in table):
                yield f"{text}: no row has {one['name']} at {one['ratio']['value']}"
        for policy in measurement["policies"]:
            timed = _named(measurement, policy["contender"])
            seconds, plain = _seconds(timed), _seconds(_named(measurement, measurement["plain"]))
            ratio = timed["ratio"]
            if seconds and plain and ratio and abs(plain / seconds / ratio["value"] - 1) > 0.02:
                yield f"{text}: {plain} over {seconds} s is not {ratio['value']}"
            a_a, worth = measurement["a_a"], measurement["worth"]
            # Its interval is of 99 %, the answer's of 95 %: that may reach further on a busy machine.
            if timed["answer"] == "equivalent" and not 1 - worth <= a_a["value"] <= 1 + worth:
                yield f"{text}: equivalent, where the plain decoder differs from itself by {a_a}"
