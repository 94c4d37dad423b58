"""The one grammar of policies, for CLI and Python: `kind:name=value,name=value`, or a .json file.

never
static:exit=20
threshold:signal=margin,value=0.9,exits=10+15+20 (or exits=10,15,20)
votes:need=2,of=[threshold:signal=margin,value=0.9,exits=10+15]+[patience:times=1,exits=10+15]
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from offramp.errors import PolicyError, refused_as, shortened
from offramp.files import (
    SEAL,
    JsonError,
    is_there,
    json_object_in,
    parse_json,
    read_given_text,
    seal_of,
    write_json_atomically,
)
from offramp.kit.arguments import settled
from offramp.kit.rules import suggest
from offramp.kit.typed import from_json
from offramp.plug_ins import Known, asking, is_foreign, load_plug_in, refused
from offramp.policies.binding import TunedOn, require_base
from offramp.policies.parameter_types import EXIT, SEVERAL_EXITS, require_balanced, split_outside_brackets
from offramp.policies.policy import ExitBeyondError, ExitPolicy, Parameter, ParameterError, text_of
from offramp.policies.policy_checks import broken, require_claims
from offramp.policies.rules.around import Filtered, Minimum, NoDeeper
from offramp.policies.rules.combined import Tasks, Votes
from offramp.policies.rules.fixed import Never, Oracle, Schedule, StaticExit
from offramp.policies.rules.learning import Adaptive, Bandit
from offramp.policies.rules.patience import Patience, Sustained
from offramp.policies.rules.short_list import ShortList
from offramp.policies.rules.threshold import Decaying, Dynamic, Threshold, Thresholds
from offramp.tracing.trace import Trace
from offramp.workloads.shared_text import SketchText

ENTRY_POINTS = "offramp.policies"

BUILT_IN: tuple[type[ExitPolicy], ...] = (
    Never,
    StaticExit,
    Schedule,
    Threshold,
    Thresholds,
    Decaying,
    Dynamic,
    Adaptive,
    Bandit,
    Patience,
    Sustained,
    Minimum,
    Filtered,
    NoDeeper,
    Votes,
    ShortList,
    Tasks,
    Oracle,
)


@cache
def policy_kinds() -> Known[type[ExitPolicy]]:
    """Policy classes by kind: the built-in ones, then those of installed plug-ins (group "offramp.policies"),
    each loaded when it is looked up.

    Looking one up raises PolicyError for a plug-in that is no ExitPolicy class, or calls itself otherwise.
    """

    def built_in(policy: type[ExitPolicy]) -> Callable[[], type[ExitPolicy]]:
        return lambda: policy

    return Known(ENTRY_POINTS, {policy.kind: built_in(policy) for policy in BUILT_IN}, _load)


def _load(point: EntryPoint) -> type[ExitPolicy]:
    wanted = "a frozen dataclass derived from ExitPolicy"
    policy: type[ExitPolicy] = load_plug_in(point, _is_kind, "policy", wanted, PolicyError)
    kind = getattr(policy, "kind", None)
    if kind != point.name:
        what = f"the policy of the entry point {point.name!r} calls itself {kind!r}"
        raise refused(point, what, PolicyError)
    return policy


def _is_kind(found: object) -> bool:
    is_policy = isinstance(found, type) and issubclass(found, ExitPolicy) and is_dataclass(found)
    return is_policy and getattr(found, "__hash__", None) is not None  # what is not frozen has none


SCHEMA_VERSION = 1
TUNED_SCHEMA_VERSION = 3
"""That of a file of the tuner, which holds a policy among other things. 3: certificates may be executed."""
FIRST_TUNED_SCHEMA_VERSION = 2
TUNED = "tuned"
"""The kind of such a file."""

MOST_DIGITS = 30
"""Of a whole number that is read at all; Python's own limit is some thousand."""

SHOWN_AROUND = 100
"""Characters of a policy's text that an error shows on each side of a fault."""


def parse_policy(text: str | Path) -> ExitPolicy:
    """The policy that a text, or the .json file it names, describes; `str(policy)` is read back as equal.

    Raises PolicyError with a caret under the character at fault, or with the file's path.

    >>> offramp.parse_policy("threshold:signal=margin,value=0.9,exits=10,20")
    Threshold(...)
    """
    if isinstance(text, Path) or text.endswith(".json"):
        return read_policy(Path(text))
    try:
        require_balanced(text)
        return read_text(text)
    except ParameterError as error:
        if is_there(text):
            if json_object_in(Path(text)) is None:
                raise _no_policy_file(text) from error
            what, fix = "the name of a policy's file ends in .json", f"rename it: {text}.json"
            raise PolicyError(what, where=text, fix=fix) from error
        raise PolicyError(error.what, where=_pointed(text, error.offset), fix=error.fix) from error


def _pointed(text: str, offset: int) -> str:
    """A text, or of a long one what lies around the fault, with a caret under the character at fault."""
    start = max(0, offset - SHOWN_AROUND) if len(text) > 2 * SHOWN_AROUND else 0
    part = text[start : offset + SHOWN_AROUND]
    before, after = "..." if start else "", "..." if start + len(part) < len(text) else ""
    return f"\n  {before}{part}{after}\n  {' ' * (offset - start + len(before))}^"


def parse_policy_for(text: str, trace: Trace) -> ExitPolicy:
    """`parse_policy` for one trace: a tuner's file must fit its model and heads. Raises PolicyError."""
    policy = parse_policy(text)
    try:
        policy.needs(trace.layers)
    except ExitBeyondError as error:
        if place := re.search(rf"\b{error.exit}\b", text):
            error.where = _pointed(text, place.start())
        raise
    tuned = _tuned_file(text)
    if tuned is not None:
        require_base(tuned.get("model") or {}, policy, trace)
    return policy


def tuned_on(text: str) -> TunedOn:
    """The documents that shaped a policy where its text names a tuner's file; else none."""
    tuned = _tuned_file(text) or {}
    return TunedOn(tuned.get("document_digests") or {}, tuned.get("document_texts") or {})


def is_tuned(value: Mapping[str, Any]) -> bool:
    """Whether the JSON object of a policy is the tuner's: an answer, or one policy made of several answers,
    whose seal tells that nobody has changed it.
    """
    return value.get("kind") == TUNED or (SEAL in value and value[SEAL] == seal_of(value))


def _tuned_file(text: str) -> dict[str, Any] | None:
    """The JSON object of the tuner's file that a text names, None if it names none."""
    value = read_policy_file(Path(text)) if text.endswith(".json") else {}
    return value if value.get("kind") == TUNED else None


def read_text(text: str) -> ExitPolicy:
    """The policy of a text whose brackets are balanced, others' held to what they say of themselves.

    Raises ParameterError at the character at fault.
    """
    policy = _read_policy(text)
    if is_foreign(type(policy)):
        require_claims(policy)
        said = str(policy)
        if ExitPolicy.__str__(_read_policy(said)) != ExitPolicy.__str__(policy):
            raise broken(policy, f"its text {said!r} is read as another policy")
    return policy


def _read_policy(text: str) -> ExitPolicy:
    kind_text, colon, settings = text.partition(":")
    kind = policy_kinds().get(kind_text)
    if kind is None:
        raise ParameterError(f"unknown policy {kind_text!r}", fix=suggest(kind_text, policy_kinds()))
    starts = _value_starts(len(kind_text) + 1, settings, kind) if colon else {}
    values: dict[str, Any] = {}
    missing = []
    for parameter in kind.parameters:
        placed = starts.get(parameter.name)
        value = parameter.default if placed is None else placed[1]
        if value is None:
            missing.append(parameter)
            continue
        try:
            with _asking(kind):
                values[parameter.name] = _read_value(parameter, value)
        except ParameterError as error:
            raise error.moved(placed[0] if placed else 0) from error
    if missing:  # after what is misspelt: who reads of a word too few looks there, not at the others
        raise ParameterError(
            f"{kind_text} needs {missing[0].name}=",
            fix=f"add {missing[0].name}=, {missing[0].meaning}",
            offset=len(text),
        )
    try:
        with _asking(kind):
            return kind(**values)
    except ParameterError as error:
        start, _ = starts.get(error.parameter or "", (0, ""))
        raise error.moved(start) from error


def _asking(kind: type[ExitPolicy]) -> AbstractContextManager[None]:
    return asking(kind, f"the policy {kind.kind}", PolicyError)


def _read_value(parameter: Parameter, text: str) -> Any:
    """A parameter's value, as its annotation says; what it must be beside others, its policy refuses.

    Raises ParameterError at the character at fault.
    """
    try:
        value = _read(text, parameter.hint)
    except ParameterError as error:
        if error.fix:
            raise
        fix = f"give {parameter.name}=, {parameter.meaning}"
        raise ParameterError(error.what, fix=fix, offset=error.offset) from error
    try:
        return settled(parameter.name, value, parameter.hint, str(parameter.hint), PolicyError)
    except PolicyError as error:
        raise ParameterError(error.what, fix=error.fix) from error


def _read(text: str, hint: Any, number: str = "a whole number") -> Any:
    """A text as what an annotation says. number: what a whole number is called.

    Raises ParameterError, without a fix where the parameter's meaning is one.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _read(text, parts[0], "an exit" if EXIT in parts else number)
    if origin in (UnionType, Union):
        words = {word for part in parts if get_origin(part) is Literal for word in get_args(part)}
        return text if text in words else _read(text, next(p for p in parts if get_origin(p) is not Literal))
    if origin is tuple:
        return tuple(_read_items(text, parts[0]))
    if hint is int:
        if not (text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS):
            raise ParameterError(f"{text!r} is not {number}", fix="")
        return int(text)
    if hint is float:
        try:
            return float(text)
        except ValueError as error:
            raise ParameterError(f"{text!r} is not a number", fix="") from error
    if hint is ExitPolicy:
        if not (text.startswith("[") and text.endswith("]")):
            raise ParameterError(
                "a policy within another stands in brackets", fix="write it as [threshold:signal=...]"
            )
        try:
            return read_text(text[1:-1])
        except ParameterError as error:
            raise error.moved(1) from error
    return text


def _read_items(text: str, hint: Any) -> Iterator[Any]:
    """The items of a list joined by "+"; a text that holds one itself stands in brackets."""
    for offset, item in split_outside_brackets(text, "+"):
        bracketed = item.startswith("[") and item.endswith("]") and _plain(hint) is str
        try:
            yield _read(item[1:-1] if bracketed else item, hint)
        except ParameterError as error:
            raise error.moved(offset) from error


def _plain(hint: Any) -> Any:
    return _plain(get_args(hint)[0]) if get_origin(hint) is Annotated else hint


def _value_starts(start: int, settings: str, kind: type[ExitPolicy]) -> dict[str, tuple[int, str]]:
    """Where each parameter's value starts in the text, and the value.

    start: characters before the settings.
    """
    names = [parameter.name for parameter in kind.parameters]
    of_exits = [parameter.name for parameter in kind.parameters if parameter.hint in SEVERAL_EXITS]
    found: dict[str, tuple[int, str]] = {}
    last = ""
    for offset, setting in split_outside_brackets(settings, ","):
        place = start + offset
        name, equals, value = setting.partition("=")
        if last in of_exits and name.isdecimal() and not equals:  # exits=10,15 is exits=10+15
            first, exits = found[last]
            found[last] = (first, f"{exits}+{name}")
            continue
        last = name
        if name not in names:
            what = (
                f"{kind.kind} has no parameter {name!r}"
                if name
                else f"a parameter of {kind.kind} is missing here"
            )
            fix = suggest(name, names) if names else f"write {kind.kind} alone"
            meant = "" if equals else _meant(setting, kind, found)
            if name.strip().isdigit() and any(exits in found for exits in of_exits):
                fix = 'join exits with "+", as in exits=10+15+20'
            elif meant:
                fix = f"write {kind.kind}:{meant}={setting.strip()}"
            raise ParameterError(what, fix=fix, offset=place)
        if name in found:
            raise ParameterError(f"{name} is given twice", fix="give it once", offset=place)
        if not equals or not value:
            end = place + len(setting)
            raise ParameterError(f"{name} has no value", fix=f"write {name}=value", offset=end)
        found[name] = (place + len(name) + 1, value)
    return found


def _meant(value: str, kind: type[ExitPolicy], found: Mapping[str, object]) -> str:
    """The parameter that a value without a name can be of: the first one that is needed, not given yet, and
    reads it; "" if there is none, so that `static:20` is told from a name that is misspelt."""
    for parameter in kind.parameters:
        if parameter.default is None and parameter.name not in found and not value.strip().isidentifier():
            with contextlib.suppress(ParameterError):
                _read(value.strip(), parameter.hint)
                return parameter.name
    return ""


def policy_to_json(policy: ExitPolicy) -> dict[str, Any]:
    """The JSON object of a policy: schema version, kind and parameters."""
    return {"schema_version": SCHEMA_VERSION, "kind": policy.kind, "parameters": policy.parameter_values()}


def policy_from_json(value: Any, where: str) -> ExitPolicy:
    """The policy of a JSON object: a plain one, or the one that a tuned policy's file holds.

    where: names its source in errors.

    Raises PolicyError for a newer schema version, a missing or unknown key, a value that does not fit, or a
    tuned policy that was edited.
    """
    if not isinstance(value, dict) or not isinstance(value.get("kind"), str):
        raise _no_policy_file(where)
    version = value.get("schema_version")
    newer = isinstance(version, int) and version > TUNED_SCHEMA_VERSION
    if newer and value["kind"] != TUNED and "parameters" not in value:
        raise _no_policy_file(where)
    if newer:
        raise _newer(version, where)
    if value["kind"] == TUNED and isinstance(version, int) and version >= FIRST_TUNED_SCHEMA_VERSION:
        require_whole(value, where)
        return _policy_within(value.get("policy"), where)
    if version is True or version != SCHEMA_VERSION:
        raise _no_policy_file(where)
    return _plain_policy(value, where)


@dataclass(frozen=True)
class _HeadsEntry:
    """What a tuned policy's file says of exit heads."""

    fingerprint: str | None = None
    kv_maps: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class _BoundModel:
    """Of the model that the policy is bound to."""

    fingerprint: str | None = None
    name: str | None = None
    heads: _HeadsEntry | None = None


@dataclass(frozen=True)
class _ProvenanceEntry:
    """Of how it was tuned."""

    layers: int | None = None
    heads_file: str | None = None


@dataclass(frozen=True)
class _Entries:
    """Types of the entries that policies are bound by."""

    model: _BoundModel = _BoundModel()
    provenance: _ProvenanceEntry = _ProvenanceEntry()
    document_digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    document_texts: Mapping[str, tuple[SketchText, ...]] = field(default_factory=dict)


def require_whole(value: Mapping[str, Any], where: str) -> None:
    """Refuse a tuned policy's object that a newer offramp wrote, or that was edited. Raises PolicyError."""
    version = value.get("schema_version")
    if type(version) is not int:
        what = f"the schema version of the tuned policy is {shortened(repr(version))}, not a number"
        raise PolicyError(what, where=where, fix="copy the file again from where it came, or tune again")
    if version > TUNED_SCHEMA_VERSION:
        raise _newer(version, where)
    if value.get(SEAL) != seal_of(value):
        raise PolicyError(
            "the tuned policy was edited since it was written (SHA-256 differs)",
            where=where,
            fix="tune again: a certificate holds only for the policy that was tested",
        )
    try:
        from_json(_Entries, value)
    except ValueError as error:  # sealed, but by another program
        raise PolicyError(
            f"the tuned policy is not what offramp writes: {error}", where=where, fix="tune again"
        ) from error


def _newer(version: object, where: str) -> PolicyError:
    return PolicyError(
        f"the policy has schema version {version}, newer than {TUNED_SCHEMA_VERSION}",
        where=where,
        fix="upgrade offramp",
    )


def _policy_within(value: Any, where: str) -> ExitPolicy:
    """The policy in a tuned policy's file: a text, or a plain policy's object."""
    if isinstance(value, dict) and value.get("schema_version") == SCHEMA_VERSION:
        return _plain_policy(value, where)
    if not isinstance(value, str) or value.endswith(".json"):
        raise _no_policy_file(where)
    return _policy_of_file(value, where)


def _plain_policy(value: Mapping[str, Any], where: str) -> ExitPolicy:
    """The policy of an object of kind and parameters, which are what its text says of it."""
    unknown = sorted(set(value) - {"schema_version", "kind", "parameters", SEAL})
    if unknown:
        raise PolicyError(f"a policy file has no entry {unknown[0]!r}", where=where, fix="remove it")
    parameters = value.get("parameters")
    if not isinstance(parameters, dict):
        raise _no_policy_file(where)
    settings = ",".join(f"{name}={text_of(given)}" for name, given in parameters.items())
    return _policy_of_file(f"{value.get('kind')}:{settings}" if settings else str(value.get("kind")), where)


def _policy_of_file(text: str, where: str) -> ExitPolicy:
    try:
        require_balanced(text)
        return read_text(text)
    except ParameterError as error:
        place = f"{where}, policy{_pointed(text, error.offset)}"
        raise PolicyError(error.what, where=place, fix=error.fix) from error


def _no_policy_file(where: str) -> PolicyError:
    return PolicyError(
        "this is not a policy file",
        where=where,
        fix="give one that offramp run wrote below policies/, or that offramp tune wrote",
    )


def read_policy(path: Path) -> ExitPolicy:
    """The policy in a JSON file. Raises PolicyError if there is no such file or it is no policy."""
    return policy_from_json(read_policy_file(path), str(path))


def read_policy_file(path: Path) -> dict[str, Any]:
    """The JSON object of a policy's file, a plain one or the tuner's. Raises PolicyError if it is none."""
    text, what = read_given_text(path, "policy file", PolicyError), "the policy file cannot be read"
    with refused_as(PolicyError, what, JsonError, where=str(path), fix="write it again"):
        value: dict[str, Any] = parse_json(text)
    return value


def write_policy(policy: ExitPolicy, path: Path) -> None:
    """Write a policy as JSON in one step, to be read by `parse_policy`."""
    write_json_atomically(path, policy_to_json(policy))
