"""The bundled model on real text against the naive reference."""

from __future__ import annotations

import pytest
from naive_facts import assert_facts, following_of, readings_of

from offramp.models.model import Model
from offramp.models.source import BUNDLED
from offramp.tracing.tracer import trace
from offramp.workloads.registry import load_workload


@pytest.mark.real_model
def test_smollm2_on_prose(smollm2: Model) -> None:
    model = smollm2
    work = load_workload("prose")
    exits = (1, 29, 30)
    found = trace(model, work, tokens=16, exits=exits, document_tokens=8, progress=False)
    assert found.token_count == 16
    sequences = [
        model.encode(document.text)[: record.tokens + 1]
        for document in work.documents
        for record in found.documents
        if record.id == document.id
    ]
    assert_facts(found, readings_of(model, sequences, exits, trials=1), following_of(sequences))
    assert found.provenance["notes"] == [BUNDLED["smollm2"].weights]
    agreement = found.agreement.mean(0)
    assert agreement[0] < 0.3 < agreement[1] < agreement[2] == 1
