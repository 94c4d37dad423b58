"""Every causal-LM family: each exit against an independent readout, and docs/families.md against that."""

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


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return family_table.check_families(family_names())


@pytest.mark.slow
def test_every_exit_of_every_supported_family_equals_the_independent_readout(rows: list[Row]) -> None:
    supported = {row.family: row for row in rows if row.readout is not None}
    assert len(supported) >= 45
    wrong = {
        family: row.largest_difference for family, row in supported.items() if row.largest_difference != 0.0
    }
    assert not wrong
    missing = [family for families in WANTED.values() for family in families if family not in supported]
    assert not missing
    assert {row.readout for row in supported.values()} == {"fast", "stub", "swap"}


@pytest.mark.slow
def test_the_families_document_has_not_drifted(rows: list[Row]) -> None:
    text = family_table.DOCUMENT.read_text(encoding="utf-8")
    if f"with transformers {transformers.__version__};" not in text:
        pytest.skip("docs/families.md was made with another version of transformers")
    assert text.partition(f"\n{conditioned_table.HEADING}")[0] == family_table.render(
        rows, transformers.__version__
    ), "run python tests/models/family_table.py and read what changed"


# Read out exactly, but not driven layer by layer: a hidden state of four axes, states outside a cache.
NOT_DECODED = {"gemma3n_text", "rwkv", "xlstm", "recurrent_gemma"}


@pytest.mark.slow
def test_the_families_that_users_bring_are_decoded_with_the_tokens_of_generate(rows: list[Row]) -> None:
    decoding = {row.family: row.decoding for row in rows if row.readout is not None}
    wanted = {family for families in WANTED.values() for family in families}
    assert {family for family in wanted if decoding[family].refused} == NOT_DECODED
    exact = [
        family
        for family, found in decoding.items()
        if found.refused is None and "never_exit" not in dict(found.reasons)
    ]
    assert len(exact) >= 150
    for family in wanted - NOT_DECODED:
        failed = dict(decoding[family].reasons)
        assert failed.keys() <= {"rebatch"}, (family, failed)
