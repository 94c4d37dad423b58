"""The endpoints of a model: each figure against a plain computation of it, the file, and bad input."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import offramp
from command_line import run_offramp
from lab_recipes import tiny
from offramp.errors import DamagedFileError, InputError, ModelError
from offramp.lab.endpoints.documents import kinds_of, openings_of, works_of
from offramp.lab.endpoints.measure import measure
from offramp.lab.endpoints.record import RECORD, Endpoints, Sizes, read_endpoints
from offramp.lab.exits.train import train_exits
from offramp.lab.required_depth import answers_of, required_depth
from offramp.lab.text.folder import LabText
from offramp.lab.training.train import train
from offramp.models.model import Model
from offramp.workloads.workload import Workload

SMALL = Sizes(prompts=8, prompt_tokens=12, new_tokens=6, traced=600, lens_tokens=1200, lens_steps=30)


@pytest.fixture(scope="module")
def found(endpoint_model: Path, endpoint_text: LabText) -> Endpoints:
    return measure(endpoint_model, endpoint_text, sizes=SMALL)


@pytest.fixture(scope="module")
def model(endpoint_model: Path) -> Model:
    return offramp.load_model(endpoint_model)


@torch.no_grad()
def plain_reading(model: Model, works: Workload, tokens: int, heads: Any = None) -> dict[str, Any]:
    """Every exit on the first `tokens` rows of documents, one sequence after the other.

    agrees, sure: [rows, exits below L]. document: [rows]. mean_kl: over rows and exits, nats.
    """
    hf: Any = model.hf
    most = max(32, tokens // 64)
    while True:  # the least cap on a document's rows that gives so many
        rows = [model.encode(one.text) for one in works.documents]
        lengths = [min(most, len(ids) - 2) for ids in rows]
        if sum(lengths) >= tokens:
            break
        most += 1
    agrees, sure, kl, document = [], [], [], []
    for place, (ids, length) in enumerate(zip(rows, lengths, strict=True)):
        length = min(length, tokens - len(document))
        context = model.context_length or 0
        for start in range(0, length, context - 1):  # the beginning of a text is in front of each
            own = ids[1 + start : 1 + min(start + context - 1, length)]
            hidden = hf(torch.tensor([[ids[0], *own]]), output_hidden_states=True).hidden_states[1:-1]
            final = hf(torch.tensor([[ids[0], *own]])).logits[0, 1:].log_softmax(-1)
            for exit, states in enumerate(hidden):
                states = states[0, 1:]
                if heads is not None:
                    states = states @ torch.from_numpy(heads.lens.weight[exit]).T
                    states = states + torch.from_numpy(heads.lens.bias[exit])
                said = hf.lm_head(hf.model.norm(states)).log_softmax(-1)
                agrees.append((exit, (said.argmax(-1) == final.argmax(-1)).tolist()))
                sure.append((exit, said.exp().max(-1).values.tolist()))
                kl.append(float((final.exp() * (final - said)).sum()))
            document += [place] * len(own)

    def columns(parts: list[tuple[int, list[Any]]]) -> np.ndarray:
        exits = range(len(model.stack) - 1)
        return np.stack([np.concatenate([one for exit, one in parts if exit == at]) for at in exits], 1)

    rows_read = np.array(document)
    assert len(rows_read) == tokens
    return {
        "agrees": columns(agrees),
        "sure": columns(sure),
        "document": rows_read,
        "mean_kl": sum(kl) / (tokens * (len(model.stack) - 1)),
    }


def plain_area(agrees: np.ndarray) -> float:
    """Under agreement over depth, where all layers cost the same: each exit's holds for one layer."""
    return float(agrees.mean(0).sum() / (agrees.shape[1] + 1))


def plain_calibration_error(sure: np.ndarray, agrees: np.ndarray) -> float:
    """Of one exit: bin by bin, in 15 of equal width, the gap between the two means."""
    total = 0.0
    for low in range(15):
        within = (sure * 15 >= low) & ((sure * 15 < low + 1) | (low == 14))
        if within.any():
            total += within.mean() * abs(sure[within].mean() - agrees[within].mean())
    return total


def test_representation_is_the_area_under_agreement(
    found: Endpoints, model: Model, endpoint_text: LabText
) -> None:
    works = works_of(endpoint_text, "report", ["prose", "code"])
    read = plain_reading(model, works, SMALL.traced)
    assert found.values["representation"] == pytest.approx(plain_area(read["agrees"]), abs=6e-4)
    assert found.tokens["representation"] == 600
    assert found.documents["representation"] == len(np.unique(read["document"]))


def test_calibration_is_the_mean_of_both_halves(
    found: Endpoints, model: Model, endpoint_text: LabText
) -> None:
    works = works_of(endpoint_text, "report", ["prose", "code"])
    read = plain_reading(model, works, SMALL.traced)
    from offramp.files import sha256_of_text

    present = np.unique(read["document"])
    ordered = sorted(present, key=lambda place: sha256_of_text(works.documents[place].id))
    errors = []
    for half in (ordered[::2], ordered[1::2]):
        rows = np.isin(read["document"], half)
        exits = range(read["sure"].shape[1])
        errors.append(
            np.mean(
                [plain_calibration_error(read["sure"][rows, at], read["agrees"][rows, at]) for at in exits]
            )
        )
    assert found.values["calibration_first"] == pytest.approx(errors[0], abs=6e-4)
    assert found.values["calibration_second"] == pytest.approx(errors[1], abs=6e-4)
    assert found.values["calibration"] == pytest.approx(np.mean(errors), abs=6e-4)


def test_representation_through_the_lens(found: Endpoints, model: Model, endpoint_text: LabText) -> None:
    """Through the lens of `offramp exits train`, that of validation works."""
    heads = train_exits(
        model,
        [works_of(endpoint_text, "validation", [kind]) for kind in ("prose", "code")],
        kind="lens",
        at="all",
        steps=SMALL.lens_steps,
        tokens=SMALL.lens_tokens,
        precision="float32",
        classifiers=False,
        kv_maps=False,
    ).heads
    read = plain_reading(model, works_of(endpoint_text, "report", ["prose", "code"]), SMALL.traced, heads)
    assert found.values["representation_lens"] == pytest.approx(plain_area(read["agrees"]), abs=6e-4)
    assert found.values["representation_lens"] != found.values["representation"]


def test_candidates_are_of_prose_and_more_is_better(
    found: Endpoints, model: Model, endpoint_text: LabText
) -> None:
    works = works_of(endpoint_text, "report", ["prose"])
    read = plain_reading(model, works, SMALL.traced)
    assert found.values["score_representation"] == pytest.approx(plain_area(read["agrees"]), abs=6e-4)
    assert found.values["score_mean_kl"] == pytest.approx(-read["mean_kl"], rel=1e-3)
    card = offramp.score(offramp.trace(model, works, SMALL.traced))
    for name in ("increment", "calibration", "composite", "eas_logit", "eas_centred_logit", "eas_hidden"):
        assert found.values[f"score_{name}"] == card.candidates[name]
    influence = card.candidates["block_influence"]
    assert influence is not None
    assert found.values["score_block_influence"] == -influence
    saturated = np.logical_and.accumulate(read["agrees"][:, ::-1], axis=1).sum(1) / len(model.stack)
    assert found.values["oracle_saturation"] == pytest.approx(saturated.mean(), abs=6e-4)


def test_required_depth_is_asked_of_report_works(
    found: Endpoints, model: Model, endpoint_text: LabText
) -> None:
    assert found.depth == required_depth(answers_of(model, endpoint_text, "report"))
    assert found.values["required_depth"] is None
    assert "half of their answers right" in found.untold["required_depth"]


def test_prompts_are_as_many_of_each_kind(found: Endpoints, model: Model, endpoint_text: LabText) -> None:
    assert {name: one.prompts for name, one in found.executed.items()} == {
        "skipped": 8,
        "skipped_lens": 8,
        "skipped_code": 8,
    }
    assert kinds_of(endpoint_text, "report") == ("prose", "code")
    works = works_of(endpoint_text, "report", ["prose", "code"])
    kinds = ["prose" if "prose" in one.id else "code" for one in works.documents]
    assert kinds[:10] == ["prose", "code"] * 5  # of which there are five, and then code alone
    assert kinds[10:] == ["code"] * 4
    first = openings_of(model, works, 12, 3)
    assert [one.document for one in first] == [one.id for one in works.documents[:3]]
    assert first[0].ids == tuple(model.encode(works.documents[0].text)[:12])
    assert openings_of(model, works, 100_000, 3) == ()


def test_some_endpoints_alone_are_the_same(
    found: Endpoints, endpoint_model: Path, endpoint_text: LabText
) -> None:
    told: list[str] = []
    alone = measure(
        endpoint_model,
        endpoint_text,
        endpoints=["calibration", "representation"],
        sizes=SMALL,
        progress=lambda name, seconds: told.append(name),
    )
    assert told == ["trace", "representation", "calibration"]
    assert alone.endpoints == ("representation", "calibration")
    assert alone.values.items() <= found.values.items()
    assert set(alone.seconds) == set(told)
    assert (alone.model, alone.text, alone.code) == (found.model, found.text, found.code)


def test_the_command_writes_what_the_reader_reads(
    found: Endpoints, endpoint_model: Path, endpoint_text: LabText, tmp_path: Path
) -> None:
    path = tmp_path / "endpoints.json"
    RECORD.write(path, found)
    assert read_endpoints(path) == found
    arguments = ("lab", "measure", endpoint_model, endpoint_text.folder, "-o", path, "--device", "cpu")
    outcome = run_offramp(*arguments, "--only", "required_depth").require(2)
    assert "endpoints are there already" in outcome.err
    assert "--overwrite" in outcome.err
    assert read_endpoints(path) == found
    outcome = run_offramp(*arguments, "--only", "required_depth", "--overwrite", "--json").require(0)
    again = read_endpoints(path)
    assert again.endpoints == ("required_depth",)
    assert again.sizes == Sizes()
    assert outcome.json == {"endpoints": str(path), "required_depth": None}
    assert "half of their answers right" in outcome.err
    path.write_text(path.read_text().replace('"seed":0', '"seed":1').replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DamagedFileError, match="damaged"):
        read_endpoints(path)
    with pytest.raises(InputError, match="no endpoints"):
        read_endpoints(tmp_path / "nothing.json")


def test_bad_input_is_refused_before_a_model_is_loaded(
    endpoint_model: Path,
    endpoint_text: LabText,
    lab_text: LabText,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(*given: Any, **more: Any) -> Any:
        raise AssertionError("loaded")

    monkeypatch.setattr("offramp.lab.endpoints.measure.load_model", load)
    with pytest.raises(InputError, match="no endpoint 'skiped'") as refused:
        measure(endpoint_model, endpoint_text, endpoints=["skiped"])
    assert "skipped" in refused.value.fix
    assert "--only" in refused.value.where
    with pytest.raises(InputError, match="no endpoint is asked for"):
        measure(endpoint_model, endpoint_text, endpoints=[])
    with pytest.raises(InputError, match="another tokenizer"):
        measure(endpoint_model, lab_text)
    damaged = shutil.copytree(endpoint_model, tmp_path / "damaged")
    for content in ('{"kind": "lab training"', "[" * 100_000):
        (damaged / "training.json").write_text(content)
        with pytest.raises(DamagedFileError, match="on what, is damaged"):
            measure(damaged, endpoint_text)
    other = tmp_path / "notes.json"
    other.write_text("{}")
    outcome = run_offramp("lab", "measure", endpoint_model, endpoint_text.folder, "-o", other).require(2)
    assert "something else" in outcome.err
    assert other.read_text() == "{}"
    nowhere = tmp_path / "nowhere" / "endpoints.json"
    outcome = run_offramp("lab", "measure", endpoint_model, endpoint_text.folder, "-o", nowhere).require(2)
    assert "there is no folder for the output" in outcome.err


def test_a_model_whose_weights_were_changed_is_not_measured(
    endpoint_model: Path, endpoint_text: LabText, tmp_path: Path
) -> None:
    changed = shutil.copytree(endpoint_model, tmp_path / "changed")
    with (changed / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(bytes(4))
    with pytest.raises(ModelError, match="not what the training left"):
        measure(changed, endpoint_text, endpoints=["calibration"], sizes=SMALL)


def test_a_text_with_too_little_of_a_kind_is_refused(
    endpoint_model: Path, endpoint_text: LabText, lab_text: LabText, tmp_path: Path
) -> None:
    train(tiny(lab_text, tokens=128, checkpoints=1), tmp_path / "model")
    with pytest.raises(InputError, match="no code in its report part"):
        measure(tmp_path / "model", lab_text, endpoints=["skipped_code"], sizes=SMALL)
    with pytest.raises(InputError, match="no report work of prose or code has 10000 tokens"):
        measure(endpoint_model, endpoint_text, endpoints=["skipped"], sizes=Sizes(prompt_tokens=10_000))
