"""Texts: parts that share nothing, what they are made of, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from lab_worlds import own_text, sentences
from typer.testing import CliRunner

from offramp import Document, InputError
from offramp_lab import text as texts
from offramp_lab.__main__ import app
from offramp_lab.sources import PARTS, SOURCES, Part, Work, plain_text, standard_library
from offramp_lab.text import NATURAL_TOKENS, LabText, TextRequest, deal, make_text, read_text


def work(name: str, text: str, part: Part | None = None) -> Work:
    return Work("own", name, "prose", (Document(name, text),), part)


def test_works_that_share_text_stay_together_and_every_part_has_some() -> None:
    common = sentences(100, 20)
    works = [work(f"w{seed}", sentences(seed) + (common if seed % 10 == 0 else "")) for seed in range(30)]
    parts = deal(works, seed=0)
    assert all(parts[part] for part in PARTS)
    dealt = [(part, one) for part in PARTS for one in parts[part]]
    assert sorted(one.name for _, one in dealt) == sorted(one.name for one in works)
    sharing = [part for part, one in dealt if int(one.name[1:]) % 10 == 0]
    assert len(sharing) == 3
    assert len({*sharing}) == 1


def test_text_that_would_leak_between_parts_is_refused() -> None:
    common = sentences(100, 20)
    works = [work(f"w{seed}", sentences(seed)) for seed in range(30)]
    works += [
        work("learned", sentences(40) + common, "train"),
        work("asked", common + sentences(41), "report"),
    ]
    with pytest.raises(InputError, match="the parts train and report would share text") as refused:
        deal(works, seed=0)
    assert "own:learned" in str(refused.value)
    assert "own:asked" in str(refused.value)


def test_a_text_is_what_its_record_says(lab_text: LabText) -> None:
    record = lab_text.record
    assert {source["licence"] for source in record["sources"]} == {"none"}
    assert sum(sum(source["works"].values()) for source in record["sources"]) == 38
    tokens = record["tokens"]["train"]
    assert abs(tokens["generated"] / sum(tokens.values()) - 0.25) < 0.1  # whole documents, and few of them
    assert len(lab_text.tokens("train", NATURAL_TOKENS)) == tokens["natural"]
    assert lab_text.kinds("train") == ("prose",)
    assert lab_text.kinds("report") == ("prose", "code")


def test_the_tokenizer_is_an_ordinary_one_that_can_write_anything(lab_text: LabText) -> None:
    tokenizer = lab_text.tokenizer
    strange = "naïve 漢字 \x00\n\t🙂"
    ids = tokenizer(strange)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:]) == strange
    assert len(tokenizer) == 300
    config = json.loads((lab_text.folder / "tokenizer" / "tokenizer_config.json").read_text())
    assert len(config["trained_on"]) == 64


def test_a_text_made_again_is_the_same_and_another_seed_is_another(
    lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PROBLEMS_APART", 20)
    monkeypatch.setattr(texts, "documents_seen", lambda documents: lab_text.record["seen"])
    own = [own_text(path) for path in (lab_text.folder.parent / "train-prose", tmp_path / "more")]
    (tmp_path / "more").mkdir()
    for seed in range(12):
        (tmp_path / "more" / f"{seed}.txt").write_text(sentences(300 + seed))
    asked = TextRequest.model_validate({"sources": (), "vocabulary": 300, "own": own})
    made = make_text(asked, tmp_path / "one")
    assert make_text(asked, tmp_path / "same").record == made.record
    other = make_text(asked.model_copy(update={"seed": 1}), tmp_path / "other")
    assert other.fingerprint != made.fingerprint
    with pytest.raises(InputError, match="holds a text already"):
        make_text(asked, tmp_path / "same")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="holds something already"):
        make_text(asked, tmp_path / "mine")
    with pytest.raises(InputError, match="no source of the text is here"):
        make_text(asked.model_copy(update={"own": ()}), tmp_path / "none")


def test_a_text_that_was_changed_is_not_trained_on(lab_text: LabText, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(lab_text.folder, folder)
    assert read_text(folder).fingerprint == lab_text.fingerprint
    with (folder / "tokens.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(InputError, match=r"changed: tokens\.safetensors"):
        read_text(folder)
    with pytest.raises(InputError, match="holds no text of a lab"):
        read_text(tmp_path)


def test_what_is_not_here_is_said_and_the_rest_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "PROBLEMS_APART", 2)
    (tmp_path / "works").mkdir()
    for seed in range(12):
        (tmp_path / "works" / f"{seed}.txt").write_text(sentences(seed))
    topic = SOURCES["python-reference"].find(()).works[0].documents[0].text  # type: ignore[union-attr]
    (tmp_path / "works" / "topics.txt").write_text(topic)
    (tmp_path / "text.toml").write_text(
        'sources = ["perl-doc"]\nfolders = ["nowhere"]\nvocabulary = 300\n'
        '[[own]]\nname = "mine"\npath = "works"\nkind = "prose"\nlicence = "none"\npart = "train"\n'
        '[[own]]\nname = "apart"\npath = "works/1.txt"\nkind = "prose"\nlicence = "none"\n'
    )
    arguments = ["text", str(tmp_path / "text.toml"), "-o", str(tmp_path / "text")]
    refused = CliRunner().invoke(app, arguments)
    assert "too little text to keep some apart" in str(refused.exception)
    lines = (
        (tmp_path / "text.toml")
        .read_text()
        .replace('part = "train"\n', "")
        .partition('[[own]]\nname = "apart"')
    )
    (tmp_path / "text.toml").write_text(lines[0])
    outcome = CliRunner().invoke(app, arguments)
    assert outcome.exit_code == 0, outcome.exception
    assert "Not to be had: perl-doc (apt-get install perl-doc" in outcome.output
    record = read_text(tmp_path / "text").record
    prose = "topics.txt" in (tmp_path / "text" / "train-prose.jsonl").read_text()
    assert prose == any(record["seen"].values()), "the topics are a workload of offramp's"


@pytest.mark.parametrize(
    ("values", "what"),
    [
        ({"sources": ["perldoc"]}, "there is no source 'perldoc'"),
        ({"sources": ["perl-doc", "perl-doc"]}, "two sources have one name"),
        ({"vocabulry": 300}, "vocabulry"),
        ({"vocabulary": 257}, "greater than or equal to 258"),
        ({"generated": 0.99}, "less than or equal to 0.9"),
        ({"own": [{"name": "a", "path": "b", "kind": "poem", "licence": "none"}]}, "own.0.kind"),
    ],
)
def test_a_wrong_request_is_refused(values: dict[str, object], what: str) -> None:
    with pytest.raises((ValueError, InputError), match=what):
        _ = TextRequest.model_validate(values).all_sources


def test_a_package_of_debian_is_read_where_it_was_unpacked(tmp_path: Path) -> None:
    documents, pod = tmp_path / "usr/share/doc/perl-doc", tmp_path / "usr/share/perl/5.40/pod"
    documents.mkdir(parents=True)
    pod.mkdir(parents=True)
    (documents / "changelog.Debian.gz").write_bytes(
        gzip.compress(b"perl (5.40.1-6) trixie; urgency=medium\n")
    )
    (pod / "perlop.pod").write_text("=head1 NAME\n\n" + sentences(0))
    (pod / "perltoo_short.pod").write_text("=head1 NAME\n")
    (tmp_path / "usr/share/perl/5").symlink_to("5.40")  # as Debian has it: every file twice
    found = SOURCES["perl-doc"].find([tmp_path / "nowhere", tmp_path])
    assert found is not None
    assert found.version == "5.40.1-6"
    assert [(one.id, one.kind) for one in found.works] == [("perl-doc:perlop", "manual")]
    assert SOURCES["perl-doc"].find([tmp_path / "nowhere"]) is None


@pytest.mark.parametrize("spoil", [lambda whole: whole[:-12], lambda whole: whole[:30] + b"x" * 20])
def test_a_compressed_file_that_is_cut_off_is_named(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    documents = tmp_path / "usr/share/doc/anarchism"
    (documents / "markdown").mkdir(parents=True)
    (documents / "changelog.Debian.gz").write_bytes(gzip.compress(b"anarchism (15.3-4) unstable;\n"))
    cut = documents / "markdown/secA1.md.gz"
    cut.write_bytes(spoil(gzip.compress(sentences(1).encode())))
    with pytest.raises(InputError, match="cut off or damaged") as refused:
        SOURCES["anarchism"].find([tmp_path])
    assert str(cut) in str(refused.value)


def test_two_documents_of_one_name_are_refused(tmp_path: Path) -> None:
    documents = tmp_path / "usr/share/doc/anarchism"
    (documents / "markdown").mkdir(parents=True)
    (documents / "changelog.Debian.gz").write_bytes(gzip.compress(b"anarchism (15.3-4) unstable;\n"))
    (documents / "markdown/secA1.md").write_text(sentences(0))
    (documents / "markdown/secA1.md.gz").write_bytes(gzip.compress(sentences(1).encode()))
    asked = TextRequest(sources=("anarchism",), folders=(str(tmp_path),))
    with pytest.raises(InputError, match="two documents are named anarchism:secA1"):
        make_text(asked, tmp_path / "text")


def test_the_standard_library_is_dealt_by_packages() -> None:
    found = standard_library(())
    assert found is not None
    works = {one.name: one for one in found.works}
    assert "json" in works
    assert {one.id for one in works["json"].documents} >= {"standard-library:json/decoder.py"}


def test_a_manual_page_is_read_as_it_is_shown() -> None:
    page = """.\\" a comment
.TH ascii 7
.SH NAME
ascii \\- the \\fBset\\fP
.SH "SEE ALSO"
.BR printf (3),
.B bold words
.PD 0
A set\\~of \\[lq]codes\\[rq] \\(em here.
"""
    assert (
        plain_text(page)
        == 'NAME\nascii - the set\n\nSEE ALSO\nprintf(3),\nbold words\nA set of "codes"  -  here.\n'
    )
    assert plain_text(".so man2/open.2\n") == ""


@pytest.mark.parametrize("part", ["\\[", "\\*[", "\\f[", "\\h'", '"', '"a', "\\s["])
def test_a_page_of_what_is_never_closed_is_read_in_one_pass(part: str) -> None:
    started = time.process_time()
    plain_text(f".B {part * 100_000}\n{part * 100_000}\n")
    assert time.process_time() - started < 5.0  # one that looks for each end anew takes hours
