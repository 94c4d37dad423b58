"""Causal-LM families: each exit against an independent readout, and docs/families.md against that.

Those that users bring and every fifth of the others: all of them are a quarter of the time that all tests
take, and `make families` writes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import conditioned_table
import family_table
import transformers
from family_configs import family_names
from family_table import Row

# Families that a user is likely to bring, by kind; each must be read out exactly.
WANTED = {
    "dense": [
        "llama",
        "qwen2",
        "qwen3",
        "mistral",
        "gpt2",
        "opt",
        "gpt_neox",
        "phi3",
        "olmo2",
        "bloom",
        "falcon",
    ],
    "mixture": ["mixtral", "qwen3_moe", "olmoe", "gpt_oss", "deepseek_v2"],
    "latent": ["deepseek_v3", "minicpm3"],
    "recurrent": ["mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm"],
    "hybrid": ["jamba", "zamba2", "bamba", "falcon_h1", "recurrent_gemma", "nemotron_h", "qwen3_next"],
    "capped or scaled": ["gemma2", "nanochat", "cohere", "granite", "gemma3n_text"],
}
BROUGHT = {family for families in WANTED.values() for family in families}


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    every = family_names()
    others = [family for family in every if family not in BROUGHT][::5]
    return family_table.check_families([family for family in every if family in BROUGHT or family in others])


@pytest.mark.slow
def test_every_exit_of_every_supported_family_equals_the_independent_readout(rows: list[Row]) -> None:
    supported = {row.family: row for row in rows if row.readout is not None}
    assert len(supported) >= len(BROUGHT) + 15
    wrong = {
        family: row.largest_difference for family, row in supported.items() if row.largest_difference != 0.0
    }
    assert not wrong
    assert not BROUGHT - supported.keys()
    assert {row.readout for row in supported.values()} == {"fast", "stub", "swap"}


@pytest.mark.slow
def test_the_families_document_has_not_drifted(rows: list[Row]) -> None:
    text = family_table.DOCUMENT.read_text(encoding="utf-8")
    if f"with transformers {transformers.__version__};" not in text:
        pytest.skip("docs/families.md was made with another version of transformers")
    written = set(text.partition(f"\n{conditioned_table.HEADING}")[0].splitlines())
    drawn = family_table.render(rows, transformers.__version__).splitlines()
    changed = [line for line in drawn if line not in written and " families are supported, " not in line]
    assert not changed, "run python tests/models/family_table.py and read what changed"
    for row in rows:  # what a row no longer says is no longer there
        expected = {line for line in drawn if line.startswith(f"| {row.family} |")}
        assert expected == {line for line in written if line.startswith(f"| {row.family} |")}


# Read out exactly, but not driven layer by layer: a hidden state of four axes, states outside a cache.
NOT_DECODED = {"gemma3n_text", "rwkv", "xlstm", "recurrent_gemma"}


@pytest.mark.slow
def test_the_families_that_users_bring_are_decoded_with_the_tokens_of_generate(rows: list[Row]) -> None:
    decoding = {row.family: row.decoding for row in rows if row.readout is not None}
    assert {family for family in BROUGHT if decoding[family].refused} == NOT_DECODED
    exact = [
        family
        for family, found in decoding.items()
        if found.refused is None and "never_exit" not in dict(found.reasons)
    ]
    assert len(exact) >= len(BROUGHT) + 10
    for family in BROUGHT - NOT_DECODED:
        failed = dict(decoding[family].reasons)
        assert failed.keys() <= {"rebatch"}, (family, failed)
