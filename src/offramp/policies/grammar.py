"""The one grammar of policies, for CLI and Python: `kind:name=value,name=value`, or a .json file.

never
static:exit=20
threshold:signal=margin,value=0.9,exits=10+15+20
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from offramp.errors import PolicyError
from offramp.files import write_json_atomically
from offramp.policies.kinds import policy_kinds
from offramp.policies.policy import ExitPolicy, ParameterError, text_of
from offramp.policies.signals import suggest

SCHEMA_VERSION = 1


def parse_policy(text: str) -> ExitPolicy:
    """The policy that a text, or the .json file it names, describes; `str(policy)` is read back as equal.

    Raises PolicyError with a caret under the character at fault, or with the file's path.
    """
    if text.endswith(".json"):
        return read_policy(Path(text))
    kind_text, colon, settings = text.partition(":")
    kind = policy_kinds().get(kind_text)
    if kind is None:
        raise _error_at(text, 0, f"unknown policy {kind_text!r}", suggest(kind_text, policy_kinds()))
    starts = _value_starts(text, len(kind_text) + 1, settings, kind) if colon else {}
    for parameter in kind.parameters:
        if parameter.name not in starts:
            what = f"{kind_text} needs {parameter.name}="
            raise _error_at(text, len(text), what, f"add {parameter.name}=, {parameter.meaning}")
    values: dict[str, Any] = {}
    for parameter in kind.parameters:
        start, value = starts[parameter.name]
        try:
            values[parameter.name] = parameter.read(value)
        except ParameterError as error:
            raise _error_at(text, start + error.offset, error.what, error.fix) from error
    return kind(**values)


def _value_starts(text: str, start: int, settings: str, kind: type[ExitPolicy]) -> dict[str, tuple[int, str]]:
    """Where each parameter's value starts in the text, and the value."""
    names = [parameter.name for parameter in kind.parameters]
    found: dict[str, tuple[int, str]] = {}
    for setting in settings.split(","):
        name, equals, value = setting.partition("=")
        if name not in names:
            what = (
                f"{kind.kind} has no parameter {name!r}"
                if name
                else f"a parameter of {kind.kind} is missing here"
            )
            fix = suggest(name, names) if names else f"write {kind.kind} alone"
            if name.strip().isdigit():
                fix = 'join exits with "+", as in exits=10+15+20'
            raise _error_at(text, start, what, fix)
        if name in found:
            raise _error_at(text, start, f"{name} is given twice", "give it once")
        if not equals or not value:
            raise _error_at(text, start + len(setting), f"{name} has no value", f"write {name}=value")
        found[name] = (start + len(name) + 1, value)
        start += len(setting) + 1
    return found


def _error_at(text: str, position: int, what: str, fix: str) -> PolicyError:
    """A PolicyError whose `where` shows the text with a caret under one character."""
    return PolicyError(what, where=f"\n  {text}\n  {' ' * position}^", fix=fix)


def policy_to_json(policy: ExitPolicy) -> dict[str, Any]:
    """The JSON object of a policy: schema version, kind and parameters."""
    return {"schema_version": SCHEMA_VERSION, "kind": policy.kind, "parameters": policy.values()}


def policy_from_json(value: Any, where: str) -> ExitPolicy:
    """The policy of a JSON object; `where` names its source in errors.

    Raises PolicyError for a newer schema version, a missing or unknown key, or a value that does not fit.
    """
    if not isinstance(value, dict) or not isinstance(value.get("schema_version"), int):
        raise PolicyError(
            "this is no policy file", where=where, fix="give one that offramp run wrote below policies/"
        )
    if value["schema_version"] > SCHEMA_VERSION:
        raise PolicyError(
            f"the policy has schema version {value['schema_version']}, newer than {SCHEMA_VERSION}",
            where=where,
            fix="upgrade offramp",
        )
    kind = policy_kinds().get(str(value.get("kind")))
    if kind is None:
        fix = suggest(str(value.get("kind")), policy_kinds())
        raise PolicyError(f"unknown policy {value.get('kind')!r}", where=where, fix=fix)
    parameters = value.get("parameters")
    names = {parameter.name for parameter in kind.parameters}
    if not isinstance(parameters, dict) or set(parameters) != names:
        listed = ", ".join(sorted(names)) or "none"
        raise PolicyError(
            f"the parameters of {kind.kind} do not match", where=where, fix=f"give exactly: {listed}"
        )
    return kind(**_read_values(kind, parameters, where))


def _read_values(kind: type[ExitPolicy], parameters: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Parameter values from JSON, held to the same rules as their texts."""
    values: dict[str, Any] = {}
    for parameter in kind.parameters:
        try:
            values[parameter.name] = parameter.read(text_of(parameters[parameter.name]))
        except ParameterError as error:
            raise PolicyError(error.what, where=f"{where}, {parameter.name}", fix=error.fix) from error
    return values


def read_policy(path: Path) -> ExitPolicy:
    """The policy in a JSON file. Raises PolicyError if there is no such file or it is no policy."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PolicyError("there is no such policy file", where=str(path), fix="check the path") from error
    except OSError as error:
        raise PolicyError(
            f"the policy file cannot be read: {error.strerror}", where=str(path), fix="give a .json file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise PolicyError(
            f"the policy file is no JSON: {error}", where=str(path), fix="write it again"
        ) from error
    return policy_from_json(value, str(path))


def write_policy(policy: ExitPolicy, path: Path) -> None:
    """Write a policy as JSON in one step, to be read by `parse_policy`."""
    write_json_atomically(path, policy_to_json(policy))
