"""Texts: parts that share nothing, what they are made of, and what is refused."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from command_line import run_offramp
from lab_texts import own_text, sentences, write_works
from offramp.errors import DamagedFileError, InputError
from offramp.lab.text.folder import NATURAL_TOKENS, LabText, read_text_folder
from offramp.lab.text.make import make_text
from offramp.lab.text.parts import deal
from offramp.lab.text.request import TextRequest
from offramp.lab.text.roff import plain_text
from offramp.lab.text.sources import SOURCES, standard_library
from offramp.lab.text.work import PARTS, Part, Work
from offramp.workloads.shared_text import Sketcher, sharing
from offramp.workloads.workload import Document


def work(name: str, text: str, part: Part | None = None) -> Work:
    return Work("own", name, "prose", (Document(name, text),), part)


def test_works_that_share_text_stay_together_and_every_part_has_some() -> None:
    common = sentences(100, 20)
    works = [work(f"w{seed}", sentences(seed) + (common if seed % 10 == 0 else "")) for seed in range(30)]
    parts = deal(works, seed=0)
    assert all(parts[part] for part in PARTS)
    dealt = [(part, one) for part in PARTS for one in parts[part]]
    assert sorted(one.name for _, one in dealt) == sorted(one.name for one in works)
    sketches = Sketcher().sketches(one.documents[0] for _, one in dealt)
    shared = [(dealt[a][0], dealt[b][0]) for a, b in sharing(sketches, sketches) if a != b]
    assert len(shared) == 3 * 2
    assert all(first == second for first, second in shared)


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
    (source,) = record.sources
    assert source.licence == "none"
    assert sum(source.works.values()) == 12
    assert all(source.characters[part] > 0 for part in PARTS)
    tokens = record.tokens["train"]
    assert abs(tokens["generated"] / sum(tokens.values()) - 0.25) < 0.03  # whole documents, and few of them
    assert len(lab_text.tokens("train", NATURAL_TOKENS)) == tokens["natural"]
    assert sum(map(len, (lab_text.folder / "train-prose.jsonl").read_text().splitlines())) > 0


def test_the_tokenizer_is_an_ordinary_one_that_can_write_anything(lab_text: LabText) -> None:
    tokenizer = lab_text.tokenizer
    strange = "naïve 漢字 \x00\n\t🙂"
    ids = tokenizer(strange)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(ids[1:]) == strange
    assert len(tokenizer) == 300
    config = json.loads((lab_text.tokenizer_folder / "tokenizer_config.json").read_text())
    assert len(config["trained_on"]) == 64


def test_a_text_made_again_is_the_same_and_another_seed_is_another(
    lab_text: LabText, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.lab.text.make.PROBLEMS_APART", 20)
    monkeypatch.setattr("offramp.lab.text.make.SEEN_WORKLOADS", ())
    own = [own_text(lab_text.folder.parent / "works")]
    asked = TextRequest.model_validate({"sources": (), "vocabulary": 300, "own": own})
    assert make_text(asked, tmp_path / "same").record == lab_text.record
    other = make_text(asked.model_copy(update={"seed": 1}), tmp_path / "other")
    assert other.fingerprint != lab_text.fingerprint
    with pytest.raises(InputError, match="holds a text already"):
        make_text(asked, tmp_path / "same")
    (tmp_path / "same" / ".writing-17-tokens.safetensors").touch()  # of safetensors, killed while it wrote
    with pytest.raises(InputError, match="no source of the text is here"):
        make_text(asked.model_copy(update={"own": ()}), tmp_path / "same", overwrite=True)
    assert read_text_folder(tmp_path / "same").record == lab_text.record, "it is still whole"
    assert not (tmp_path / "same" / ".writing-17-tokens.safetensors").exists()


def test_a_text_that_was_changed_is_not_trained_on(lab_text: LabText, tmp_path: Path) -> None:
    folder = tmp_path / "text"
    shutil.copytree(lab_text.folder, folder)
    assert read_text_folder(folder).fingerprint == lab_text.fingerprint
    with (folder / "tokens.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(DamagedFileError, match=r"changed: tokens\.safetensors"):
        read_text_folder(folder)
    with pytest.raises(InputError, match="holds no text of a lab"):
        read_text_folder(tmp_path)


def test_what_is_not_here_is_said_and_the_rest_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.lab.text.make.PROBLEMS_APART", 2)
    monkeypatch.setattr("offramp.lab.text.make.SEEN_WORKLOADS", ("prose",))
    write_works(tmp_path / "works")
    topics = tmp_path / "works" / "topics.txt"
    topics.write_text(SOURCES["python-reference"].find(()).works[0].documents[0].text)  # type: ignore[union-attr]
    (tmp_path / "text.toml").write_text(
        'sources = ["perl-doc"]\nfolders = ["nowhere"]\nvocabulary = 300\n'
        '[[own]]\nname = "mine"\npath = "works"\nkind = "prose"\nlicence = "none"\n'
    )
    outcome = run_offramp("lab", "text", tmp_path / "text.toml", "-o", tmp_path / "text", "--json").require(0)
    assert "not here: perl-doc" in outcome.err
    assert outcome.json["absent"][0]["name"] == "perl-doc"
    record = read_text_folder(tmp_path / "text").record
    assert "topics.txt" in (tmp_path / "text" / "train-prose.jsonl").read_text()
    assert [len(ids) for ids in record.seen.values()] == [1]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ('sources = ["standard-library",\n "perldoc"]', 2, "did you mean 'perl-doc'"),
        ("seed = 0\nvocabulry = 300", 2, "did you mean 'vocabulary'"),
        (
            '[[own]]\nname = "a"\npath = "b"\nkind = "poem"\nlicence = "none"',
            4,
            "choose one of: code, manual, prose",
        ),
        ("generated = 0.999999", 1, "less than or equal to 0.9"),
        ("seed = 1\nvocabulary = 257", 2, "258"),
        ('sources = ["perl-doc", "perl-doc"]', 1, "two sources are named"),
    ],
)
def test_a_wrong_request_is_refused_by_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    (tmp_path / "text.toml").write_text(text)
    outcome = run_offramp("lab", "text", tmp_path / "text.toml", "-o", tmp_path / "out").require(2)
    assert f"text.toml, line {line}" in outcome.err
    assert what in outcome.err
    assert not (tmp_path / "out").exists()


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
    recipe = tmp_path / "text.toml"
    recipe.write_text(f'sources = ["anarchism"]\nfolders = ["{tmp_path}"]\n')
    said = run_offramp("lab", "text", recipe, "-o", tmp_path / "text").require(2).err
    assert "cut off or damaged" in said
    assert str(cut) in said


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
