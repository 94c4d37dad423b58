"""Commands that offramp suggests, built in one place, so that each runs as it is printed.

A suggestion names everything that the command needs: the model with its transforms and dtype, the policy, the
text it is asked on, the exit heads that it reads through. A test runs those of every command.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

IN_MEMORY = "a model object in memory"
"""As the source of a model: no command line can name it."""

NO_MODEL = "none"
"""As `--model`: nothing is decoded."""

LAB_MOVED = (
    "it is a package of its own in offramp's sources: pip install ./experiments/lab, then offramp-lab text, "
    "train, measure, study, report or given"
)
"""What to do in the place of `offramp lab`, and of studies with a table [lab]; said for one release."""

USUAL_DTYPE = "float32"
"""What a processor computes in unless it is told otherwise."""


def command_line(command: str, *subjects: str | Path, transforms: Iterable[str] = (), **options: Any) -> str:
    """A command of offramp, quoted as a shell needs it.

    command: its words, such as "bench" or "hardware measure". subjects: what stands without an option's name,
    in order: a model as a command line names it (`words_of`), the folder of a run or a trace. options: by
    name, "_" for "-": `policy`, `kv`, `heads`, `workload`, `floor`, `prompt`, ...; None and False are left
    out, True stands alone, a list is given again for each of its values.

    >>> command_line("bench", "smollm2", policy="runs/a b/p.json", kv=None, workload="prose:short")
    "offramp bench smollm2 --policy 'runs/a b/p.json' --workload prose:short"
    """
    words = words_of(*subjects, transforms=transforms, **options)
    return " ".join([f"offramp {command}", *map(shlex.quote, words)])


def words_of(*subjects: str | Path, transforms: Iterable[str] = (), **options: Any) -> list[str]:
    """The words of a command after its name, as in `command_line`, not quoted."""
    words = [str(subject) for subject in subjects]
    for name, value in {"transform": list(transforms), **options}.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(option)
        elif value is not None and value is not False:
            for part in value if isinstance(value, (list, tuple)) else [value]:
                words += [option, number_text(part) if isinstance(part, float) else str(part)]
    return words


def no_option(name: str) -> str:
    """A model's name as a command line takes it: one that looks like an option is said to be a path."""
    return f"./{name}" if name.startswith("-") else name


def number_text(number: float) -> str:
    """A number in as few digits as it takes to read the same one back: 0.05, 20, 0.9000001.

    >>> number_text(20.0), number_text(0.0123456789)
    ('20', '0.0123456789')
    """
    short = f"{number:g}"
    return short if float(short) == number else repr(float(number))


@dataclass(frozen=True)
class RunCall:
    """What a run was asked for: whatever is suggested after it follows from this, in a shell or in Python."""

    model: tuple[str, ...] | None
    """The words that load its model, its options among them, as every command takes them; None of a model
    object, which no command line can name."""
    options: Mapping[str, Any]
    """Of the run alone, by their names on the command line, without usual ones, --minutes and what makes it
    anew."""

    def again(self, **changes: Any) -> str:
        """What repeats the run, with other options; one that is None is left out."""
        return self.on_model("run", **{**self.options, **changes})

    def on_model(self, command: str, **options: Any) -> str:
        """A command on the same model."""
        if self.model is None:
            return python_call(command, **options)
        return command_line(command, *self.model, **options)


def command_for(command: str, model: Mapping[str, Any], **options: Any) -> str:
    """A command of offramp on the model of a trace or a tuned policy, as their records describe it.

    model: `Tuned.model`, `Model.described`, or `trace.request["model"]` with its "dtype": name, source,
    transforms. options: as of `command_line`, after the model. Of a model object, which no command line can
    name, the call in Python that does the same, with the object as `model`.
    """
    if model.get("source") == IN_MEMORY:
        return python_call(command, **options)
    dtype = model.get("dtype")
    named = {} if dtype in (None, USUAL_DTYPE) else {"dtype": dtype}
    transforms = model.get("transforms", ())
    return command_line(
        command, no_option(loadable_name(model) or "MODEL"), transforms=transforms, **named, **options
    )


def filled(advice: str, given: Mapping[str, Any]) -> str:
    """Advice of a library, which names what a command needs by words in capitals, for a command at hand.

    given: what that was given, by parameter: its model and transforms, its text, its study's file.

    >>> filled("offramp heads fit MODEL --workload W -o FILE makes one", {"model": "smollm2"})
    'offramp heads fit smollm2 --workload prose -o heads.safetensors makes one'
    """
    if str(file := given.get("study_file") or "").endswith(".toml"):
        advice = advice.replace("STUDY.toml", shlex.quote(str(file)))
    before, offramp, command = advice.partition("offramp ")
    if not offramp or given.get("model") in (None, "", NO_MODEL):
        return advice
    model = command_line("", no_option(str(given["model"])), transforms=given.get("transform") or ())
    texts = given.get("workload") or "prose"
    text = texts if isinstance(texts, str) else next(iter(texts))
    for name, value in {
        "MODEL": model.removeprefix("offramp  "),
        "--workload W": f"--workload {shlex.quote(str(text))}",
        "-o FILE": "-o heads.safetensors" if command.startswith("heads") else "-o FILE",
    }.items():
        command = re.sub(rf"(?<!\w){name}\b", value.replace("\\", r"\\"), command)
    return f"{before}{offramp}{command}"


CALLS = {
    "generate": ("generate", "prompt"),
    "heads fit": ("fit_heads", "workload"),
    "hardware measure": ("measure_hardware", ""),
    "run": ("run", "workload"),
    "trace": ("trace", "workload"),
}
"""Of a command on a model: the function of offramp that does the same, and what it takes after the model."""


def python_call(command: str, **options: Any) -> str:
    """The call of Python that does what a command on a model does, the model being `model`."""
    kept = {name: value for name, value in options.items() if value is not None and value is not False}
    if command != "run":  # what the others make is returned
        kept.pop("output", None)
    if kept.pop("no_decode", False):
        kept["decode"] = False
    if command == "bench":
        arguments = [repr(str(kept.pop("policy"))), "prompts=[model.encode('TEXT')]"]
        kept.pop("workload", None)
        name = command
    else:
        name, positional = CALLS[command]
        arguments = [_python(kept.pop(positional))] if positional in kept else []
    named = [f"{KEYWORDS.get(option, option)}={_python(value)}" for option, value in kept.items()]
    return f"offramp.{name}({', '.join(['model', *arguments, *named])})"


KEYWORDS = {"floor": "floors"}
"""Options whose keyword in Python has another name."""


def _python(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_python, value))}]"
    return repr(value) if isinstance(value, (bool, int, float)) else repr(str(value))


def loadable_name(model: Mapping[str, Any]) -> str | None:
    """What a model is loaded by: its folder or file while that is there, else its name, None without one."""
    source, name = model.get("source"), model.get("name")
    if source and Path(str(source)).exists():
        return str(source)
    transforms = "".join(f" + {transform}" for transform in model.get("transforms", ()))
    return None if name is None else str(name).removesuffix(transforms)
