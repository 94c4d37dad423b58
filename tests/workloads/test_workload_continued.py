"""Texts that the model continues itself: `continued:N+M:WORKLOAD`."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.errors import WorkloadError
from offramp.testing import check_workload
from offramp.workloads.registry import describe_workloads, load_workload, split_continued


def test_the_documents_stay_and_the_model_continues_their_first_tokens(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one text\n\nanother text\n")
    plain = load_workload(f"txt:{tmp_path / 'a.txt'}")
    found = check_workload(lambda: load_workload(f"continued:8+5:txt:{tmp_path / 'a.txt'}"))
    assert found.name == f"continued:8+5:{plain.name}"
    assert (found.mode, found.chat, found.prompt_tokens, found.new_tokens) == ("generation", False, 8, 5)
    assert found.documents == plain.documents
    assert load_workload(f"continued:8:txt:{tmp_path / 'a.txt'}").new_tokens is None
    assert "continued:N+M:WORKLOAD" in {one.name for one in describe_workloads()}


def test_answers_of_prompts_may_be_cut_short() -> None:
    plain, found = load_workload("chat"), load_workload("continued:+5:chat")
    assert (found.prompt_tokens, found.new_tokens, found.chat) == (None, 5, True)
    assert found.documents == plain.documents
    assert found.fingerprint != plain.fingerprint


def test_every_number_is_part_of_the_fingerprint() -> None:
    prefixes = ("", "continued:32:", "continued:33:", "continued:32+64:", "continued:32+65:")
    assert len({load_workload(f"{prefix}prose").fingerprint for prefix in prefixes}) == len(prefixes)


@pytest.mark.parametrize(
    ("spec", "prefix", "text"),
    [
        ("prose:short", "", "prose:short"),
        ("continued:8:txt:a:b.txt", "continued:8:", "txt:a:b.txt"),
        ("continued:8", "continued:8", ""),
        ("continued", "continued:", ""),
    ],
)
def test_a_prefix_is_split_off(spec: str, prefix: str, text: str) -> None:
    assert split_continued(spec) == (prefix, text)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("continued", "nothing does not say how many tokens"),
        ("continued:prose", "prose does not say how many tokens"),
        ("continued:3:prose", "3 does not say how many tokens"),
        ("continued:8+:prose", r"8\+ does not say how many tokens"),
        ("continued:8+0:prose", r"8\+0 does not say how many tokens"),
        ("continued:-8:prose", "-8 does not say how many tokens"),
        ("continued:8:chat", "prompts are answered whole"),
        ("continued:8+5:chat", "prompts are answered whole"),
        ("continued:8:continued:8:prose", "a text is continued once"),
        ("continued:+5:continued:8:prose", "a text is continued once"),
        ("continued:+5:prose", "of a text it must be said how much"),
        ("continued:+:chat", r"\+ does not say how many tokens"),
        ("continued:8:porse", "there is no workload 'porse'"),
        ("continued:8", "no workload is named that is continued"),
        ("continue:8:prose", "there is no workload 'continue:8:prose'"),
    ],
)
def test_what_cannot_be_continued_is_refused(spec: str, what: str) -> None:
    with pytest.raises(WorkloadError, match=what) as raised:
        load_workload(spec)
    assert raised.value.fix
    assert ("did you mean continued?" in raised.value.fix) == spec.startswith("continue:")
