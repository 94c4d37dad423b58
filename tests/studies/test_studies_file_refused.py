"""Study files that are wrong: the error names the line and the key, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from study_files import plan_of, small_world, write_model, write_study

from offramp.errors import InputError
from offramp.studies.plan import make_plan
from offramp.studies.study_file import read_study

AXES = 'models = ["a"]\nworkloads = [{ name = "one", source = "txt:one.txt" }]\nmachines = ["h100"]\n'
"""Lines 1 to 3; [study] is line 5 where nothing stands between, its name line 6."""


def refused(folder: Path, text: str, settings: str = 'name = "small"\nthreads = 1\n') -> InputError:
    """The error that reading or planning a study gives."""
    small_world(folder)
    with pytest.raises(InputError) as caught:
        make_plan(read_study(write_study(folder, text, settings)))
    assert caught.value.exit_code == 2
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("text", "line", "where", "what", "fix"),
    [
        ("modls = []\n" + AXES, 1, "modls", "has no entry 'modls'", "did you mean 'models'?"),
        (AXES + "[decod]\n", 8, "decod", "has no entry 'decod'", "did you mean 'decode'?"),
        (
            'workloads = ["prose"]\n[[models]]\nname = "a"\nstag = "base"\n',
            8,
            "models[1].stag",
            "unknown key 'stag'",
            "did you mean 'stage'?",
        ),
        (
            'workloads = ["prose"]\n[[models]]\nname = "a"\nstage = "tunde"\n',
            8,
            "models[1].stage",
            "'tunde'",
            "did you mean 'tuned'?",
        ),
        (
            'workloads = ["prose"]\n[[models]]\nname = "a"\nreleased = "April"\n',
            8,
            "models[1].released",
            "'April'",
            "2024-11",
        ),
        (
            'workloads = ["prose"]\n[[models]]\nsource = "a"\n',
            6,
            "models[1].name",
            "'name' is missing",
            "add it",
        ),
        (
            'workloads = ["prose"]\n[[models]]\nsource = "a"\nnmae = "a"\n',
            8,
            "models[1].nmae",
            "unknown key 'nmae'",
            "did you mean 'name'?",
        ),
        (
            'workloads = ["prose"]\n[[models]]\nname = "a"\nreleased = 2024-11-01\n',
            8,
            "models[1].released",
            "released is 2024-11-01, which does not fit",
            'released = "2024-11"',
        ),
        (
            'workloads = ["prose"]\n[[models]]\nname = "a"\nfamily = 3\n',
            8,
            "models[1].family",
            "family is 3",
            "a text in quotes",
        ),
        ('modls = ["a"]\nworkloads = ["prose"]\n', 1, "modls", "has no entry", "did you mean 'models'?"),
        ('models = ["a"]\n', 1, "workloads", "'workloads' is missing", "models, workloads"),
        ('models = []\nworkloads = ["prose"]\n', 1, "models", "models is a list", "at least 1"),
        ("models = [3]\n" + AXES.split("\n", 1)[1], 1, "models[1]", "is 3", "a name in quotes"),
        ('models = "a"\nworkloads = ["prose"]\n', 1, "models", "models is 'a'", "square brackets"),
        (AXES + '"a[b]" = 1\n', 4, "a[b]", "has no entry 'a[b]'", "choose one of"),
        (AXES + "[decode]\nbest = 0\n", 9, "decode.best", "best is 0", "greater than or equal to 1"),
        (AXES + '[decode]\nbest = "5"\n', 9, "decode.best", "best is '5'", "valid integer"),
    ],
)
def test_the_shape_of_the_file(tmp_path: Path, text: str, line: int, where: str, what: str, fix: str) -> None:
    error = refused(tmp_path, text)
    assert error.where == f"{tmp_path / 'STUDY.toml'}, line {line}, {where}"
    assert what in error.what
    assert fix in error.fix


@pytest.mark.parametrize(
    ("settings", "where", "what", "fix"),
    [
        ('name = "My Study"\n', "line 6, study.name", "'My Study'", "small letters"),
        ('name = "s"\ntokens = 0\n', "line 7, study.tokens", "tokens is 0", "greater than or equal to 1"),
        ('name = "s"\ntokens = 1.5\n', "line 7, study.tokens", "tokens is 1.5", "integer"),
        ('name = "s"\ndtype = "float16"\n', "line 7, study.dtype", "unknown dtype 'float16'", "'bfloat16'"),
        (
            'name = "s"\nexits = "ten"\n',
            "line 7, study.exits",
            "'ten' are not a list",
            "exits = [10, 20, 30]",
        ),
        ('name = "s"\nexits = [0]\n', "line 7, study.exits", "", "greater than or equal to 1"),
        ('name = "s"\nexits = [9]\n', "line 7, study.exits", "no exit 9", "1 to 4"),
        (
            'name = "s"\nsignals = ["logit_gab"]\n',
            "line 7, study.signals",
            "logit_gab",
            "did you mean logit_gap",
        ),
        ('name = "s"\nsignals = ["prompt_entropy"]\n', "line 7, study.signals", "given texts", "prompts"),
        ('name = "s"\nfloors = [1.0]\n', "line 7, study.floors[1]", "1.0", "less than 1"),
        ('name = "s"\nfloors = [0.9,\n0.9]\n', "line 8, study.floors[2]", "0.9 is given twice", "once"),
        ('name = "s"\nthreads = -1\n', "line 7, study.threads", "-1", "greater than or equal to 1"),
    ],
)
def test_settings(tmp_path: Path, settings: str, where: str, what: str, fix: str) -> None:
    error = refused(tmp_path, AXES, settings)
    assert error.where.startswith(f"{tmp_path / 'STUDY.toml'}, {where}")
    assert what in error.what
    assert fix in error.fix


@pytest.mark.parametrize(
    ("text", "where", "what", "fix"),
    [
        # Names.
        (
            'models = ["a", "a"]\nworkloads = ["prose"]\n',
            "line 1, models[2].name",
            "two models are called 'a'",
            "line 1",
        ),
        (
            'models = ["smolm2"]\nworkloads = ["prose"]\n',
            "line 1, models[1].source",
            "unknown model 'smolm2'",
            "smollm2",
        ),
        (
            'models = ["gone.gguf"]\nworkloads = ["prose"]\n',
            "line 1, models[1].source",
            "unknown model",
            "a .gguf file",
        ),
        (
            'models = ["a"]\nworkloads = ["prosa"]\n',
            "line 2, workloads[1].source",
            "no workload 'prosa'",
            "'prose'",
        ),
        ('models = ["a"]\nworkloads = ["txt:on.txt"]\n', "line 2, workloads[1]", "does not exist", "one.txt"),
        (
            'models = ["a"]\nworkloads = ["prose:shrt"]\n',
            "line 2, workloads[1].source",
            "no workload 'prose:shrt'",
            "did you mean 'prose:short'?",
        ),
        ('models = ["a"]\nworkloads = ["txt:"]\n', "line 2, workloads[1].source", "no workload", "txt:PATH"),
        (AXES.replace("h100", "h10"), "line 3, machines[1]", "unknown hardware 'h10'", "did you mean h100"),
        (AXES.replace("h100", "mine.toml"), "line 3, machines[1]", "cannot be read", "check the path"),
        # Policies.
        (AXES + 'policies = ["leage"]\n', "line 4, policies[1]", "unknown policy 'leage'", ""),
        (AXES + 'policies = ["static:exit=x"]\n', "line 4, policies[1]:", "not an exit", "layer number"),
        (AXES + 'policies = ["tuned.json"]\n', "line 4, policies[1]", "by their texts", "threshold:"),
        (
            AXES + '[[policies]]\nname = "never"\nkv = "propagat"\n',
            "line 10, policies[1].kv",
            "'propagat'",
            "'propagate'",
        ),
        (
            AXES + '[[policies]]\nname = "league"\nbatch = 8\n',
            "line 10, policies[1].batch",
            "league",
            "remove batch",
        ),
        (
            AXES.replace('"a"', '"b", "a"') + 'policies = ["static:exit=5"]\n',
            "line 4, policies[1]",
            "does not fit a: exit 5 is beyond the model, which has 4 layers",
            "1 to 4",
        ),
        (
            AXES + 'policies = ["threshold:signal=logit_gap,value=1,exits=2"]\n',
            "line 4, policies[1]",
            "reads logit_gap, which the traces will not hold",
            'add "logit_gap" to signals',
        ),
        (
            AXES + 'policies = ["threshold:signal=correctness,value=0.9,exits=2"]\n',
            "line 4, policies[1]",
            "reads correctness",
            'fit "correctness" in [[heads]]',
        ),
        (
            AXES + 'policies = ["threshold:signal=kl_to_previous,value=0.1,exits=1+3"]\n',
            "line 4, policies[1]",
            "kl_to_previous at exit 3 was recorded against exit 2",
            "1,3,4",
        ),
        # Transforms.
        (AXES + 'transforms = ["int7"]\n', "line 4, transforms[1]", "unknown transform 'int7'", "int8"),
        (AXES + 'transforms = ["prune:drop=9"]\n', "line 4, transforms[1]", "leaves out layer 9", "1 to 4"),
        (
            AXES + 'transforms = ["prune:by=angular,layers=4"]\n',
            "line 4, transforms[1]",
            "all of the model's 4",
            "3 at most",
        ),
        (
            AXES + 'transforms = ["prune:by=influence,layers=1,trace=x"]\n',
            "line 4, transforms[1]",
            "from elsewhere",
            "leave out trace=",
        ),
        (
            AXES + '[[transforms]]\nname = "none"\nsteps = ["int8"]\n',
            "line 8, transforms[1]",
            "'none' has steps",
            "",
        ),
        (
            AXES + '[[transforms]]\nname = "x"\nsteps = ["prune:drop=1", "prune:drop=2"]\n',
            "line 8, transforms[1]",
            "given twice",
            "",
        ),
        (
            AXES + 'transforms = ["prune:by=angular,layers=1,workload=prosa"]\n',
            "line 4, transforms[1]",
            "no workload 'prosa'",
            "did you mean 'prose'?",
        ),
        (
            AXES + 'transforms = ["prune:by=angular,layers=1,workload=txt:one.txt"]\n',
            "line 4, transforms[1]",
            "from wherever the study runs",
            "one.txt",
        ),
        # Heads.
        (AXES + '[[heads]]\nname = "lens"\n', "line 8, heads[1]", "of no kind", "fit ="),
        (
            AXES + '[[heads]]\nname = "lens"\nfit = ["two"]\n',
            "line 10, heads[1].fit[1]",
            "no workload 'two'",
            "one, prose",
        ),
        (
            AXES + '[[heads]]\nname = "lens"\nfit = ["one"]\nclassifiers = ["correctnes"]\n',
            "line 11, heads[1].classifiers[1]",
            "is unknown",
            "'correctness'",
        ),
        (
            AXES + '[[heads]]\nname = "lens"\nfit = ["one"]\nlens = false\n',
            "line 8, heads[1]",
            "neither a lens",
            "",
        ),
        (
            AXES + '[[heads]]\nname = "none"\nlens = false\n',
            "line 8, heads[1]",
            "lens is of fitted heads",
            "remove it",
        ),
        (
            AXES + '[[heads]]\nname = "lens"\nfile = "gone.safetensors"\n',
            "line 10, heads[1].file",
            "does not exist",
            "",
        ),
        # Excludes and pairs.
        (AXES + '[[exclude]]\nmodel = "b"\n', "line 9, exclude[1].model", "no model 'b'", "choose one of: a"),
        (AXES + "[[exclude]]\n", "line 8, exclude[1]", "without a key", "kind, model"),
        (
            AXES + '[[exclude]]\nkind = "score"\nmachine = "h100"\n',
            "line 8, exclude[1]",
            "matches no cell",
            "remove it",
        ),
        (AXES + '[[exclude]]\nmodel = "a"\n', "line 8, exclude", "no cell is left", "remove some"),
        (
            AXES + '[[pairs]]\nkind = "k"\nfirst = "a"\nsecond = "bb"\n',
            "line 11, pairs[1].second",
            "names no model of the study: 'bb'",
            "choose one of: a",
        ),
        (
            AXES + '[[pairs]]\nkind = "k"\nfirst = "a"\nsecond = "a + int8"\n',
            "line 11, pairs[1].second",
            "'a + int8'",
            "",
        ),
        (
            AXES + '[[pairs]]\nkind = "k"\nfirst = "a"\nsecond = "a"\n',
            "line 11, pairs[1].second",
            "with itself",
            "",
        ),
        # Decoding.
        (AXES + "[decode]\n", "line 8, decode", "not among the machines", 'add "local"'),
        (
            AXES.replace("h100", "local") + 'policies = ["tuned"]\n[decode]\n',
            "line 9, decode",
            "not among the policies",
            'add "league"',
        ),
        (
            AXES.replace("h100", "local") + "[decode]\nfloor = 0.8\n",
            "line 9, decode.floor",
            "no floor 0.8",
            "0.99, 0.95, 0.9",
        ),
        (
            AXES + '[combine]\naccelerations = ["exits"]\n',
            "line 8, combine",
            "exits needs a policy",
            "policy =",
        ),
        (
            AXES + '[combine]\naccelerations = ["prompt_lookup"]\npolicy = "static:exit=2"\n',
            "line 8, combine",
            "without exits",
            "",
        ),
        (
            AXES + '[combine]\naccelerations = ["promt_lookup"]\n',
            "line 9, combine.accelerations",
            "unknown acceleration",
            "'prompt_lookup'",
        ),
        (
            AXES + '[combine]\naccelerations = ["prompt_lookup", "prompt_lookup"]\n',
            "line 9, combine.accelerations",
            "given twice",
            "",
        ),
        (
            AXES + '[combine]\naccelerations = ["exits"]\npolicy = "oracle:which=saturation"\n',
            "line 10, combine.policy",
            "oracle",
            "",
        ),
        (
            AXES + '[combine]\naccelerations = ["exits"]\npolicy = "static:exit=5"\n',
            "line 10, combine.policy",
            "exit 5 is beyond",
            "",
        ),
        # Models that stay on disk.
        (
            AXES + '[[heads]]\nname = "lens"\nfit = ["one"]\n[large]\n',
            "line 8, heads[1]",
            "stay on disk",
            "remove the heads",
        ),
        (
            AXES.replace("h100", "local") + "[large]\n",
            "line 3, machines[1]",
            "cannot be timed on this machine",
            "h100",
        ),
        (AXES.replace("h100", "local") + "[large]\n[decode]\n", "line 3, machines[1]", "cannot be timed", ""),
        (
            AXES + "[large]\n[combine]\naccelerations = ['prompt_lookup']\n",
            "line 9, combine",
            "cannot be timed in decoding",
            "[large]",
        ),
        (
            AXES + 'transforms = ["prune:drop=1"]\n[large]\n',
            "line 4, transforms[1]",
            "cannot be pruned",
            "[large]",
        ),
        (AXES + '[large]\nmemory = "much"\n', "line 8, large: memory", "not an amount of memory", "4GB"),
        (AXES + '[large]\nstream = false\nmemory = "4GB"\n', "line 10, large.memory", "none is streamed", ""),
        (
            AXES.replace("txt:one.txt", "chat") + "[large]\n",
            "line 2, workloads[1]",
            "need answers",
            "given text",
        ),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, text: str, where: str, what: str, fix: str) -> None:
    error = refused(tmp_path, text)
    assert error.where.startswith(f"{tmp_path / 'STUDY.toml'}, {where}")
    assert what in error.what
    assert fix in error.fix


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (
            AXES + 'policies = ["never",\n"static:exit=2",\n{ name = "again", policy = "static:exit=2" }]\n',
            "line 6, policies[3]",
        ),
        (
            AXES + 'transforms = ["prune:drop=1+2", "prune:drop=2+1"]\n',
            "line 4, transforms[2]",
        ),
        (
            'models = ["a"]\nmachines = ["h100"]\nworkloads = ["txt:one.txt",\n"txt:same.txt"]\n',
            "line 4, workloads[2]",
        ),
        ('models = ["a",\n"copy"]\nworkloads = ["txt:one.txt"]\nmachines = ["h100"]\n', "line 2, models[2]"),
        (
            'models = ["b/c", { name = "again", source = "b/c" }]\nworkloads = ["txt:one.txt"]\n',
            "line 1, models[2]",  # neither is here: they are one by their source
        ),
        (AXES.replace('"h100"', '"h100", { name = "mine", source = "h100" }'), "line 3, machines[2]"),
        (
            AXES.replace('"a"', '"a", "b"') + 2 * '[[pairs]]\nkind = "k"\nfirst = "a"\nsecond = "b"\n',
            "line 13, pairs[2]",
        ),
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
    with pytest.raises(InputError, match="cannot be read"):
        read_study(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_study(tmp_path / "GONE.toml")


def test_a_folder_that_is_no_model_is_wrong_input(tmp_path: Path) -> None:
    small_world(tmp_path)
    (tmp_path / "a" / "config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json") as caught:
        plan_of(tmp_path, AXES)
    assert "line 1, models[1].source" in caught.value.where


def test_a_pair_of_models_that_excludes_keep_apart(tmp_path: Path) -> None:
    small_world(tmp_path)
    apart = 'models = ["a", "b"]\nworkloads = ["txt:one.txt", "txt:two.txt"]\nmachines = ["h100"]\n'
    excludes = [("a", "txt:one.txt"), ("b", "txt:two.txt")]
    tables = "".join(f'[[exclude]]\nmodel = "{model}"\nworkload = "{text}"\n' for model, text in excludes)
    with pytest.raises(InputError, match="a and b have no workload and heads in common") as caught:
        plan_of(tmp_path, f'{apart}{tables}[[pairs]]\nkind = "k"\nfirst = "a"\nsecond = "b"\n')
    assert "line 15, pairs[1]" in caught.value.where


def test_quantisation_of_a_family_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.models.transforms.quantise.Quantised.check", lambda self, dtype=None: None)
    small_world(tmp_path)
    write_model(tmp_path / "a", model_type="gpt2")
    with pytest.raises(InputError, match="int8 cannot be applied to a \\(gpt2\\)") as caught:
        plan_of(tmp_path, AXES + 'transforms = ["none", "int8"]\n')
    assert "line 4, transforms[2]" in caught.value.where


@pytest.mark.slow
def test_int4_in_float32(tmp_path: Path) -> None:
    error = refused(tmp_path, AXES + 'transforms = ["none", "int4"]\n')
    assert "line 4, transforms[2]" in error.where
    assert "int4" in error.what
    assert "bfloat16" in error.fix
