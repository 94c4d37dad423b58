"""What was decoded, ranked by speed with what it keeps; tables that break no word; small samples in words."""

import io
from dataclasses import replace

from decoding_examples import GENERATE, SHORT, contender, decoded_run, with_decoding
from hypothesis import given
from hypothesis import strategies as st
from report_examples import example_run
from rich.console import Console

from offramp.policies.short_names import short_name
from offramp.report.formats import short_source
from offramp.report.page import print_summary, render
from offramp.report.table import Cell, Column, Table
from offramp.report.timing import best_without_exits, ways_of
from offramp.report.word_table import WordTable
from offramp.scoring.estimate import Estimate
from page_reader import Page

WORDS = st.lists(st.text("abcdefghij", min_size=1, max_size=14), max_size=5).map(" ".join)


def printed(what, width=80) -> str:
    console = Console(file=io.StringIO(), width=width)
    what(console)
    return console.file.getvalue()


@given(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=4), st.integers(20, 90))
def test_a_table_never_breaks_a_word_nor_the_width(rows, width) -> None:
    table = WordTable(title="a title")
    for head in ("first", "second", "third"):
        table.add_column(head)
    for row in rows:
        table.add_row(*row)
    text = printed(lambda console: console.print(table), width)
    assert max(map(len, text.splitlines())) <= width
    shown = set(text.replace(":", " ").split())
    assert {word for row in rows for cell in row for word in cell.split()} <= shown


def test_of_a_long_path_a_table_shows_the_last_part() -> None:
    assert short_source("jsonl:/data/of/somebody/words.jsonl#text") == "jsonl:…/words.jsonl#text"
    assert short_source("txt:/data/of/somebody/notes/") == "txt:…/notes"
    assert short_source("continued:32+96:txt:/data/of/all/notes.txt") == "continued:32+96:txt:…/notes.txt"
    assert short_source("prose:short") == "prose:short"


def test_two_policies_never_share_a_name() -> None:
    table: Table[str] = Table((Column("policy", lambda text: Cell(short_name(text), code=text)),))
    texts = [f"threshold:signal=margin,value={value},exits=20+25" for value in (0.80001, 0.80002)]
    shown = "exit 20+25 if margin ≥ 0.8"
    rows = [*texts, texts[0], "never"]
    said = [line.strip() for line in printed(lambda console: console.print(table.rich(rows))).splitlines()]
    assert said == ["policy", shown, f"{shown} (2)", shown, "never exit"]
    assert table.codes(rows)[:2] == [f"{shown} = {texts[0]}", f"{shown} (2) = {texts[1]}"]


def with_lookup(run, speed: float):
    first = run.decoding[0]
    lookup = contender("generate(prompt_lookup_num_tokens)", "peer", 0.0583 / speed)
    lookup = replace(lookup, executed_agreement=Estimate(1.0))
    bench = replace(first.bench, contenders=(*first.bench.contenders, lookup))
    return with_decoding(run, replace(first, bench=bench), *run.decoding[1:])


def test_what_is_not_shown_to_keep_its_floor_comes_last_however_fast() -> None:
    run = with_lookup(decoded_run(example_run()), 1.2)
    first, workload = run.decoding[0], run.workloads[0]
    bold = replace(first.policies[1], floor=0.9)  # 31 % agreement, the fastest
    first = replace(first, chosen=(first.policies[0], bold, *first.policies[2:]))
    found = ways_of(first, workload)
    kept = [one for one in found if not one.misses]
    assert {"prompt lookup", GENERATE} <= {one.name for one in kept}
    assert found[-1].policy in [one.policy for one in first.policies]
    assert all(one.misses for one in found[len(kept) :])
    speeds = [one.speed.value for one in kept]
    assert speeds == sorted(speeds, reverse=True)
    assert bold.free_running is not None
    unsure = replace(bold, free_running=replace(bold.free_running, agreement=Estimate(0.93, 0.88, 0.97)))
    among = ways_of(replace(first, chosen=(first.policies[0], unsure)), workload)
    assert [one.misses for one in among if (one.policy, one.kv) == (unsure.policy, unsure.kv)] == [True], (
        "its interval reaches below"
    )
    run = replace(run, decoding=(first, *run.decoding[1:]))
    page = Page(render(run)).text
    for words in ("prompt lookup", "100 %, lossless", "Not shown to keep the floor it was chosen for"):
        assert words in page


def test_an_interval_of_too_few_prompts_is_said_in_words() -> None:
    run = decoded_run(example_run())
    workload = run.workloads[0]
    verdicts = tuple(
        replace(one, speed=replace(one.speed, low=1e-3, high=61312.0)) if one.speed is not None else one
        for one in workload.verdicts
    )
    run = replace(run, workloads=(replace(workload, verdicts=verdicts), *run.workloads[1:]))
    page, text = render(run), printed(lambda console: print_summary(run, console), 300)
    assert "61312" not in page + text
    assert "too few prompts" in page
    assert "too few prompts" in " ".join(text.split())


def test_a_defect_that_texts_share_is_said_once() -> None:
    run = decoded_run(example_run(), sound=False)
    assert len(run.decoding) == 2
    text = " ".join(printed(lambda console: print_summary(run, console)).split())
    assert text.count("the same decoder twice comes out unequal") == 1
    assert "has a defect and changes no verdict" in text


def test_the_short_list_at_full_depth_is_a_way_without_exits_where_it_keeps_the_floor() -> None:
    run = decoded_run(example_run())
    ways = ways_of(run.decoding[0], run.workloads[0])
    short = next(one for one in ways if one.name == "short list at full depth")
    assert (str(short.policy), short.exits) == (SHORT, False)
    assert best_without_exits(ways, 0.95) == short
    other = best_without_exits(ways, 0.99)
    assert other is not None
    assert other.name == GENERATE
    assert best_without_exits(ways, 0.95, GENERATE) == other
    page = render(run)
    assert "short list at full depth" in page
    assert SHORT in Page(page).text
