"""What is said without a model: help of every command, lists, versions."""

from __future__ import annotations

from golden.recorder import Recorder

LEFT_OUT = ("lab",)
"""Commands that leave the tool."""
LISTS = ("models", "workloads", "transforms", "policies", "signals", "hardware")


def record(recorder: Recorder) -> None:
    """Help of every command, found from the help of the one above it, and every list."""
    helped(recorder, ())
    for what in LISTS:
        recorder.command(f"list-{what}", "list", what)
    recorder.command("list-hardware-kept", "list", "hardware", "--json")
    recorder.command("no-command", code=2)


def helped(recorder: Recorder, words: tuple[str, ...]) -> None:
    """Keep the help of a command, and of those below it."""
    said = recorder.command("-".join(("help", *words)), *words, "--help")
    for command in commands_in(said.out):
        if command not in LEFT_OUT:
            helped(recorder, (*words, command))


def commands_in(text: str) -> list[str]:
    """The names that a help lists under "Commands"."""
    _, _, listed = text.partition("─ Commands ")
    lines = (line.strip("│ ").split() for line in listed.splitlines() if line.startswith("│ "))
    return [words[0] for words in lines if words and words[0].islower()]
