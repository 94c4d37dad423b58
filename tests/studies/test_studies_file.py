"""Study files: defaults, short forms, heads in a file, and what is wrong named with its line and key."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from study_files import SETTINGS, plan_of, small_world, study_of, write_model, write_study

import offramp
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import write_heads
from offramp.heads.parts import Lens
from offramp.models.source import find_source
from offramp.studies.plan import make_plan
from offramp.studies.study_checks import read_study


def test_short_forms_and_long_forms_say_the_same(tmp_path: Path) -> None:
    short = study_of(
        tmp_path,
        'models = ["smollm2"]\nworkloads = ["prose"]\npolicies = ["league", "never"]\n'
        'transforms = ["none", "prune:drop=1"]\nmachines = ["h100"]\nheads = ["none"]\n',
    )
    long = study_of(
        tmp_path,
        """
[[models]]
name = "smollm2"
source = "smollm2"
base = "smollm2"
[[workloads]]
name = "prose"
source = "prose"
[[policies]]
name = "league"
policy = "league"
[[policies]]
name = "never"
policy = "never"
[[transforms]]
name = "none"
[[transforms]]
name = "prune:drop=1"
steps = ["prune:drop=1"]
[[machines]]
name = "h100"
source = "h100"
[[heads]]
name = "none"
""",
    )
    assert short.to_json() == long.to_json()
    assert short.fingerprint == long.fingerprint


def test_defaults(tmp_path: Path) -> None:
    study = study_of(tmp_path, 'models = ["smollm2"]\nworkloads = ["prose"]\n', 'name = "s"\n')
    assert study == offramp.read_study(tmp_path / "STUDY.toml")
    assert study.settings.tokens == 1600
    assert study.settings.threads == len(os.sched_getaffinity(0))
    assert [entry.name for entry in study.policies] == ["league", "tuned"]
    assert [entry.name for entry in study.machines] == ["local"]
    assert [entry.name for entry in (*study.transforms, *study.heads)] == ["none", "none"]
    assert not study.streamed


def test_heads_in_a_file_belong_to_one_model(tmp_path: Path) -> None:
    small_world(tmp_path)
    identity = find_source(str(tmp_path / "a")).identity
    sizes = {"dtype": "float32", "hidden_size": 8, "vocabulary_size": 32}
    lens = Lens(
        weight=np.zeros((3, 8, 8), dtype=np.float32),
        bias=np.zeros((3, 8), dtype=np.float32),
        penalty=np.ones(3),
        explained=np.zeros(3),
    )
    heads = ExitHeads(
        model={"name": "a", "fingerprint": identity.fingerprint, "layers": 4, **sizes},
        exits=(1, 2, 3),
        lens=lens,
        classifiers={},
        candidate_exit=None,
        shortlist=None,
        documents={},
        provenance={},
    )
    write_heads(heads, tmp_path / "lens.safetensors")
    text = 'models = ["a"]\nworkloads = ["txt:one.txt"]\nmachines = ["h100"]\n'
    table = '[[heads]]\nname = "lens"\nfile = "lens.safetensors"\n'
    plan = plan_of(tmp_path, text + table)
    (task,) = [task for task in plan.tasks.values() if task.kind == "heads"]
    assert task.recipe["file"] == heads.fingerprint
    assert task.sources == {"heads": str(tmp_path / "lens.safetensors")}
    with pytest.raises(InputError, match="fitted on a ") as caught:
        plan_of(tmp_path, text.replace('"a"', '"b"') + table)
    settings = SETTINGS.count("\n")
    assert f"line {3 + 1 + settings + 4}, heads[1].file" in caught.value.where
    # Which layers are dropped is measured when it runs: only then it is known whose heads these are.
    measured = 'transforms = ["prune:by=angular,layers=1"]\n'
    assert plan_of(tmp_path, text + measured + table).tasks
    with pytest.raises(InputError, match="fitted on a "):
        plan_of(tmp_path, text + 'transforms = ["prune:drop=1"]\n' + table)


# --- what is wrong

AXES = 'models = ["a"]\nworkloads = [{ name = "one", source = "txt:one.txt" }]\nmachines = ["h100"]\n'
"""Lines 1 to 3; [study] is line 5 where nothing stands between, its name line 6."""
LOCAL = AXES.replace("h100", "local")
A_MODEL = 'workloads = ["prose"]\n[[models]]\n'
"""Lines 1 and 5: the keys of the model begin with line 6."""


def refused(folder: Path, text: str, settings: str = 'name = "small"\nthreads = 1\n') -> InputError:
    """The error that reading or planning a study gives."""
    small_world(folder)
    with pytest.raises(InputError) as caught:
        make_plan(read_study(write_study(folder, text, settings)))
    assert caught.value.exit_code == 2
    assert caught.value.fix
    return caught.value


SHAPES = [
    (A_MODEL + 'name = "a"\nstag = "base"\n', "line 8, models[1].stag", "did you mean 'stage'?"),
    (A_MODEL + 'name = "a"\nstage = "tunde"\n', "line 8, models[1].stage", "did you mean 'tuned'?"),
    (A_MODEL + 'name = "a"\nreleased = "April"\n', "line 8, models[1].released", "2024-11"),
    (A_MODEL + 'name = "a"\nreleased = 2024-11-01\n', "line 8, models[1].released", 'released = "2024-11"'),
    (A_MODEL + 'name = "a"\nfamily = 3\n', "line 8, models[1].family", "a text in quotes"),
    (A_MODEL + 'source = "a"\n', "line 6, models[1].name", "'name' is missing"),
    (A_MODEL + 'source = "a"\nnmae = "a"\n', "line 8, models[1].nmae", "did you mean 'name'?"),
    ('modls = ["a"]\nworkloads = ["prose"]\n', "line 1, modls", "did you mean 'models'?"),
    ('models = ["a"]\n', "line 1, workloads", "'workloads' is missing"),
    ('models = []\nworkloads = ["prose"]\n', "line 1, models", "at least 1"),
    ('models = [3]\nworkloads = ["prose"]\n', "line 1, models[1]", "a name in quotes"),
    ('models = "a"\nworkloads = ["prose"]\n', "line 1, models", "square brackets"),
    (AXES + "[decod]\n", "line 8, decod", "did you mean 'decode'?"),
    (AXES + '"a[b]" = 1\n', "line 4, a[b]", "has no entry 'a[b]'"),
    (AXES + "[decode]\nbest = 0\n", "line 9, decode.best", "greater than or equal to 1"),
    (AXES + '[decode]\nbest = "5"\n', "line 9, decode.best", "valid integer"),
]
NAMES = [
    ('models = ["a", "a"]\nworkloads = ["prose"]\n', "line 1, models[2].name", "two models are called 'a'"),
    ('models = ["smolm2"]\nworkloads = ["prose"]\n', "line 1, models[1].source", "smollm2"),
    ('models = ["gone.gguf"]\nworkloads = ["prose"]\n', "line 1, models[1].source", "a .gguf file"),
    ('models = ["a"]\nworkloads = ["prosa"]\n', "line 2, workloads[1].source", "'prose'"),
    ('models = ["a"]\nworkloads = ["prose:shrt"]\n', "line 2, workloads[1].source", "'prose:short'"),
    ('models = ["a"]\nworkloads = ["txt:on.txt"]\n', "line 2, workloads[1]", "one.txt"),
    ('models = ["a"]\nworkloads = ["txt:"]\n', "line 2, workloads[1].source", "txt:PATH"),
    (AXES.replace("h100", "h10"), "line 3, machines[1]", "did you mean 'h100'"),
    (AXES.replace("h100", "mine.toml"), "line 3, machines[1]", "cannot be read"),
]
POLICIES = [
    ('policies = ["leage"]\n', "line 4, policies[1]", "unknown policy 'leage'"),
    ('policies = ["static:exit=x"]\n', "line 4, policies[1]:", "not an exit"),
    ('policies = ["tuned.json"]\n', "line 4, policies[1]", "by their texts"),
    ('policies = ["static:exit=5"]\n', "line 4, policies[1]", "does not fit a: exit 5 is beyond"),
    ('policies = ["threshold:signal=logit_gap,value=1,exits=2"]\n', "line 4, policies[1]", "to signals"),
    ('policies = ["threshold:signal=correctness,value=0.9,exits=2"]\n', "line 4, policies[1]", "[[heads]]"),
    ('policies = ["threshold:signal=kl_to_previous,value=0.1,exits=1+3"]\n', "line 4, policies[1]", "1,3,4"),
    ('[[policies]]\nname = "never"\nkv = "propagat"\n', "line 10, policies[1].kv", "'propagate'"),
    ('[[policies]]\nname = "league"\nbatch = 8\n', "line 10, policies[1].batch", "remove batch"),
]
TRANSFORMS = [
    ('transforms = ["int7"]\n', "line 4, transforms[1]", "unknown transform 'int7'"),
    ('transforms = ["prune:drop=9"]\n', "line 4, transforms[1]", "leaves out layer 9"),
    ('transforms = ["prune:by=angular,layers=4"]\n', "line 4, transforms[1]", "3 at most"),
    ('transforms = ["prune:by=influence,layers=1,trace=x"]\n', "line 4, transforms[1]", "leave out trace="),
    ('transforms = ["prune:by=angular,layers=1,workload=prosa"]\n', "line 4, transforms[1]", "'prose'"),
    (
        'transforms = ["prune:by=angular,layers=1,workload=txt:one.txt"]\n',
        "line 4, transforms[1]",
        "from wherever the study runs",
    ),
    ('[[transforms]]\nname = "none"\nsteps = ["int8"]\n', "line 8, transforms[1]", "'none' has steps"),
    (
        '[[transforms]]\nname = "x"\nsteps = ["prune:drop=1", "prune:drop=2"]\n',
        "line 8, transforms[1]",
        "given twice",
    ),
]
LENS = '[[heads]]\nname = "lens"\n'
HEADS = [
    (LENS, "line 8, heads[1]", "of no kind"),
    (LENS + 'fit = ["two"]\n', "line 10, heads[1].fit[1]", "no workload 'two'"),
    (LENS + 'fit = ["one"]\nclassifiers = ["x"]\n', "line 11, heads[1].classifiers[1]", "is unknown"),
    (LENS + 'fit = ["one"]\nlens = false\n', "line 8, heads[1]", "neither a lens"),
    (LENS + 'file = "gone.safetensors"\n', "line 10, heads[1].file", "does not exist"),
    ('[[heads]]\nname = "none"\nlens = false\n', "line 8, heads[1]", "lens is of fitted heads"),
]
BLOCK = '[[trainings]]\nname = "block"\n'
TRAIN = BLOCK + 'kind = "block"\n'
TRAININGS = [
    (BLOCK, "line 8, trainings[1]", "of no kind"),
    (TRAIN + 'folder = "exits"\n', "line 8, trainings[1]", "several things at once"),
    (
        BLOCK + 'folder = "gone"\nsteps = 9\n',
        "line 8, trainings[1]",
        "steps is of exits that the study trains",
    ),
    (BLOCK + 'folder = "gone"\n', "line 10, trainings[1].folder", "does not exist"),
    (BLOCK + 'folder = "a"\n', "line 10, trainings[1].folder", "holds no trained exits"),
    (BLOCK + 'kind = "blok"\n', "line 10, trainings[1].kind", "did you mean 'block'?"),
    (BLOCK + 'kind = "executed"\n', "line 10, trainings[1].kind", "begin from others"),
    (TRAIN + 'text = ["two"]\n', "line 11, trainings[1].text[1]", "no workload 'two'"),
    (TRAIN + "steps = 9\nminutes = 1.0\n", "line 8, trainings[1]", "--minutes means nothing beside --steps"),
    (TRAIN + "steps = 0\n", "line 11, trainings[1].steps", "greater than or equal to 1"),
    (TRAIN + 'at = "ten"\n', "line 11, trainings[1].at", "not a list of layers"),
    (TRAIN + "at = [9]\n", "line 8, trainings[1]", "no exit 9"),
    (
        TRAIN + "at = [1, 2]\n",
        "line 11, trainings[1].at",
        "the exits 1, 2 are trained, and 1, 2, 3 are traced",
    ),
    (TRAIN + "short_list = 4\n", "line 8, trainings[1]", "a short list of 4 tokens is not possible"),
    (TRAIN + "loss_vocabulary = 9\n", "line 8, trainings[1]", "loss vocabulary must be 256 or more"),
    (
        TRAIN + 'precision = "int8"\n',
        "line 8, trainings[1]",
        "precision must be 'auto',",
    ),
    (
        TRAIN.replace("block", "lens") + "units = 8\n",
        "line 8, trainings[1]",
        "--units means nothing",
    ),
    (TRAIN + '[[trainings]]\nname = "block"\nkind = "lens"\n', "line 12, trainings[2].name", "two trainings"),
    (
        LENS.replace("lens", "block") + 'fit = ["one"]\n' + TRAIN,
        "line 12, trainings[1].name",
        "two heads and",
    ),
    (LENS + 'fit = ["one"]\n' + TRAIN, "line 11, trainings", "nothing is read through the heads 'lens'"),
    (TRAIN + "[large]\n", "line 8, trainings[1]", "stay on disk"),
    (TRAIN + '[[exclude]]\ntraining = "lens"\n', "line 12, exclude[1].training", "no training 'lens'"),
]
CELLS = [
    ('[[exclude]]\nmodel = "b"\n', "line 9, exclude[1].model", "no model 'b'"),
    ("[[exclude]]\n", "line 8, exclude[1]", "without a key"),
    ('[[exclude]]\nkind = "score"\nmachine = "h100"\n', "line 8, exclude[1]", "matches no cell"),
    ('[[exclude]]\nmodel = "a"\n', "line 8, exclude", "no cell is left"),
]
COMBINED = "[combine]\naccelerations = "
DECODED = [
    (AXES + "[decode]\n", "line 8, decode", 'add "local"'),
    (LOCAL + 'policies = ["tuned"]\n[decode]\n', "line 9, decode", 'add "league"'),
    (LOCAL + "[decode]\nfloor = 0.8\n", "line 9, decode.floor", "no floor 0.8"),
    (LOCAL + '[decode]\nbeside = ["int8 + exits"]\n', "line 9, decode.beside", "early exit itself"),
    (LOCAL + '[decode]\nbeside = [""]\n', "line 9, decode.beside", "not empty"),
    (AXES + COMBINED + '["exits"]\n', "line 8, combine", "exits needs a policy"),
    (AXES + COMBINED + '["prompt_lookup"]\npolicy = "never"\n', "line 8, combine", "without exits"),
    (AXES + COMBINED + '["promt_lookup"]\n', "line 9, combine.accelerations", "'prompt_lookup'"),
    (AXES + COMBINED + '["int8", "int8"]\n', "line 9, combine.accelerations", "given twice"),
    (
        AXES + COMBINED + '["exits"]\npolicy = "oracle:which=saturation"\n',
        "line 10, combine.policy",
        "oracle",
    ),
    (
        AXES + COMBINED + '["exits"]\npolicy = "static:exit=5"\n',
        "line 10, combine.policy",
        "exit 5 is beyond",
    ),
]
ON_DISK = [
    (AXES + LENS + 'fit = ["one"]\n[large]\n', "line 8, heads[1]", "stay on disk"),
    (LOCAL + "[large]\n", "line 3, machines[1]", "cannot be timed on this machine"),
    (LOCAL + "[large]\n[decode]\n", "line 3, machines[1]", "cannot be timed"),
    (AXES + "[large]\n" + COMBINED + '["prompt_lookup"]\n', "line 9, combine", "cannot be timed in decoding"),
    (AXES + 'transforms = ["prune:drop=1"]\n[large]\n', "line 4, transforms[1]", "cannot be pruned"),
    (AXES + '[large]\nmemory = "much"\n', "line 8, large: memory", "not an amount of memory"),
    (AXES + '[large]\nstream = false\nmemory = "4GB"\n', "line 10, large.memory", "none is streamed"),
    (AXES.replace("txt:one.txt", "chat") + "[large]\n", "line 2, workloads[1]", "need answers"),
]
BEHIND_AXES = [(AXES + text, *rest) for text, *rest in (*POLICIES, *TRANSFORMS, *HEADS, *TRAININGS, *CELLS)]


def test_keys_below_a_table_are_told_to_stand_above_it(tmp_path: Path) -> None:
    """TOML gives them to that table: they are not said to be missing."""
    error = refused(tmp_path, "", 'name = "small"\nmodels = ["a"]\nworkloads = ["prose"]\n')
    assert "'models' stands in a table" in error.what
    assert "study.models" in error.where
    assert "above the first [table]" in error.fix


def test_a_text_in_the_place_of_a_table_is_shown_how_one_begins(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('study = "one"\n' + AXES)
    with pytest.raises(InputError) as caught:
        read_study(tmp_path / "study.toml")
    assert "a line [study]" in caught.value.fix


@pytest.mark.parametrize(("text", "where", "said"), [*SHAPES, *NAMES, *BEHIND_AXES, *DECODED, *ON_DISK])
def test_what_is_wrong_is_named_with_line_and_key(tmp_path: Path, text: str, where: str, said: str) -> None:
    error = refused(tmp_path, text)
    assert error.where.startswith(f"{tmp_path / 'STUDY.toml'}, {where}")
    assert said in error.what + error.fix


@pytest.mark.parametrize(
    ("settings", "where", "said"),
    [
        ('name = "My Study"\n', "line 6, study.name", "small letters"),
        ('name = "s"\ntokens = 0\n', "line 7, study.tokens", "greater than or equal to 1"),
        ('name = "s"\ntokens = 1.5\n', "line 7, study.tokens", "integer"),
        ('name = "s"\ndtype = "bf16"\n', "line 7, study.dtype", "'bfloat16'"),
        ('name = "s"\nexits = "ten"\n', "line 7, study.exits", "exits = [10, 20, 30]"),
        ('name = "s"\nexits = [0]\n', "line 7, study.exits", "greater than or equal to 1"),
        ('name = "s"\nexits = [9]\n', "line 7, study.exits", "no exit 9"),
        ('name = "s"\nsignals = ["logit_gab"]\n', "line 7, study.signals", "did you mean 'logit_gap'"),
        ('name = "s"\nsignals = ["prompt_entropy"]\n', "line 7, study.signals", "prompts"),
        ('name = "s"\nfloors = [1.0]\n', "line 7, study.floors[1]", "less than 1"),
        ('name = "s"\nfloors = [0.9,\n0.9]\n', "line 8, study.floors[2]", "0.9 is given twice"),
        ('name = "s"\nworth = 5\n', "line 7, study.worth", "0.05 for 5 %"),
        ('name = "s"\nthreads = 100000\n', "line 7, study.threads", "less than or equal to 1024"),
        ('name = "s"\ndraws = 1000000000000\n', "line 7, study.draws", "less than or equal to 100000"),
        ('name = "s"\ndraws = 39\n', "line 7, study.draws", "greater than or equal to 40"),
        ('name = "s"\nthreads = -1\n', "line 7, study.threads", "greater than or equal to 1"),
    ],
)
def test_settings_that_are_wrong(tmp_path: Path, settings: str, where: str, said: str) -> None:
    error = refused(tmp_path, AXES, settings)
    assert error.where.startswith(f"{tmp_path / 'STUDY.toml'}, {where}")
    assert said in error.what + error.fix


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (AXES + 'policies = ["never",\n{ name = "again", policy = "never" }]\n', "line 5, policies[2]"),
        (AXES + 'transforms = ["prune:drop=1+2", "prune:drop=2+1"]\n', "line 4, transforms[2]"),
        (AXES.replace('txt:one.txt" }', 'txt:one.txt" },\n"txt:same.txt"'), "line 3, workloads[2]"),
        (AXES.replace('"a"', '"a",\n"copy"'), "line 2, models[2]"),
        # Neither is here: they are one by their source.
        (AXES.replace('"a"', '"b/c", { name = "again", source = "b/c" }'), "line 1, models[2]"),
        (AXES.replace('"h100"', '"h100", { name = "mine", source = "h100" }'), "line 3, machines[2]"),
    ],
)
def test_two_cells_that_are_one(tmp_path: Path, text: str, where: str) -> None:
    small_world(tmp_path)
    write_model(tmp_path / "copy", layers=4, seed=0)
    (tmp_path / "same.txt").write_text("a text called one\n")
    # The texts' only documents are named after their files, which counts; a folder's file has one name.
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text.txt").write_text("the same text\n")
    text = text.replace("txt:one.txt", "txt:first/text.txt").replace("txt:same.txt", "txt:second/text.txt")
    with pytest.raises(InputError, match="two cells are one and the same") as caught:
        plan_of(tmp_path, text)
    assert where in caught.value.where


def test_plug_ins_are_looked_for_as_often_for_many_workloads_as_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[str]()
    monkeypatch.setattr("offramp.plug_ins.entry_points", lambda group: asked.append(group) or ())
    counts = []
    for number in (1, 5):
        workloads = [f"txt:{place}.txt" for place in range(number)]
        study_of(tmp_path, f'models = ["smollm2"]\nworkloads = {workloads}\n')
        counts.append(asked.count("offramp.workloads"))
        asked.clear()
    assert counts[0] == counts[1] > 0


def test_a_file_that_is_no_toml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "STUDY.toml"
    path.write_text('models = ["a"]\nworkloads = [prose]\n')
    with pytest.raises(InputError, match="not TOML") as caught:
        read_study(path)
    assert caught.value.where == f"{path}, line 2"
    path.write_text("models = [")
    with pytest.raises(InputError, match="not TOML"):
        read_study(path)
    path.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        read_study(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_study(tmp_path / "GONE.toml")


def test_a_folder_that_is_no_model_is_wrong_input(tmp_path: Path) -> None:
    small_world(tmp_path)
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json") as caught:
        plan_of(tmp_path, AXES)
    assert "line 1, models[1].source" in caught.value.where


def test_what_is_no_longer_read_says_what_to_use_instead(tmp_path: Path) -> None:
    small_world(tmp_path)
    with pytest.raises(InputError, match="pairs is no longer read here") as caught:
        plan_of(tmp_path, f'{AXES}[[pairs]]\nkind = "k"\nfirst = "a"\nsecond = "b"\n')
    assert "line 9, pairs" in caught.value.where
    assert "experiments/claims/pairs.py --pairs FILE" in caught.value.fix
    model = '[[models]]\nname = "a"\npublished_eas = 0.5\n'
    with pytest.raises(InputError, match="published_eas is no longer read here") as caught:
        plan_of(tmp_path, f'workloads = ["txt:one.txt"]\n{model}')
    assert "line 9, models[1].published_eas" in caught.value.where
    assert "experiments/claims/eas_fit.py" in caught.value.fix


def test_quantisation_of_a_family_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.models.transforms.quantise.Quantised.check", lambda self, dtype=None: None)
    small_world(tmp_path)
    write_model(tmp_path / "a", model_type="gpt2")
    with pytest.raises(InputError, match="int8 cannot be applied to a \\(gpt2\\)") as caught:
        plan_of(tmp_path, AXES + 'transforms = ["none", "int8"]\n')
    assert "line 4, transforms[2]" in caught.value.where


def test_a_study_of_no_source_is_refused() -> None:
    with pytest.raises(InputError, match="source cannot be None"):
        offramp.Study.of({}, None)
    with pytest.raises(InputError, match="values cannot be None"):
        offramp.Study.of(None, None)
