"""Between records and JSON: a record is a dataclass or pydantic model, whose types say what it may hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from offramp.files import JsonError, read_json

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema, SchemaValidator

Record = TypeVar("Record")


class InvalidRecordError(ValueError):
    """A JSON value is not what a record's types say.

    place: of the first part that is not: "contenders[2].name".
    """

    def __init__(self, place: str, what: str) -> None:
        super().__init__(f"{place}: {what}" if place else what)
        self.place = place
        self.what = what


@dataclasses.dataclass(frozen=True)
class _Array:
    """How a field of numpy numbers is read: a list, of lists where it has more dimensions."""

    dtype: type

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_plain_validator_function(self._read)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: object) -> dict[str, Any]:
        whole = np.issubdtype(self.dtype, np.integer)
        return {"type": "array", "items": {"type": "integer" if whole else ["number", "null"]}}

    def _read(self, value: Any) -> NDArray[Any]:
        whole = np.issubdtype(self.dtype, np.integer)
        if not _are_all(value, (int,) if whole else (int, float, type(None))):
            raise ValueError(f"it holds something that is no {'whole ' if whole else ''}number")
        return np.array(value, dtype=self.dtype)


def _are_all(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether all in a list, of lists perhaps, is of these types."""
    if isinstance(value, list | tuple):
        return all(_are_all(part, kinds) for part in value)
    return type(value) in kinds


class _Number:
    """How a number is read that JSON has as null where it is not one."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(
            lambda value: math.nan if value is None else value, core_schema.float_schema()
        )


NumberOrNan = Annotated[float, _Number()]
"""A float64 field that may be NaN."""

FloatArray = Annotated[NDArray[np.float64], _Array(np.float64)]
"""A field of float64 numbers; null is NaN."""

IntArray = Annotated[NDArray[np.int64], _Array(np.int64)]
"""A field of int64 numbers."""


def to_json(value: Any) -> Any:
    """A record, or anything that holds records, as JSON: tuples are lists, numpy's numbers are Python's.

    A class may name properties in READ_OFF that are written for readers of the file, and not read back;
    fields in NOT_KEPT that are not written; fields in IF_ANY that are not written where they are None; and
    fields in INLINE whose own entries stand in their place. One whose values are texts in files says so by
    AS_TEXT.
    """
    return _json(value, lambda plain: plain)


def finite_json(value: Any) -> Any:
    """The same with null for every number that is not finite."""
    return _json(value, lambda plain: plain if not isinstance(plain, float) or math.isfinite(plain) else None)


def _json(value: Any, plain: Callable[[Any], Any]) -> Any:
    """plain: what becomes of numbers, texts and whatever else holds nothing."""
    if getattr(value, "AS_TEXT", False) and not isinstance(value, type):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        names += getattr(value, "READ_OFF", ())
        left_out = {
            *getattr(value, "NOT_KEPT", ()),
            *(name for name in getattr(value, "IF_ANY", ()) if getattr(value, name) is None),
        }
        entries = {name: _json(getattr(value, name), plain) for name in names if name not in left_out}
        for name in getattr(value, "INLINE", ()):
            entries = {**entries.pop(name), **entries}
        return entries
    if hasattr(value, "model_dump"):  # a pydantic model, without importing what it is of
        value = value.model_dump(by_alias=True)
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _json(part, plain) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_json(part, plain) for part in value]
    return plain(value)


def from_json(kind: type[Record], value: Any) -> Record:
    """The record that `to_json` made JSON of; entries that its type does not have are left out.

    Numbers, truths and texts are read as they are: neither "1" nor true is a number.

    Raises InvalidRecordError for anything else, and what the record's own checks raise.
    """
    from pydantic import ValidationError

    from offramp.kit.given_file import shown_location

    try:
        found: Record = _validator(kind).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        what = first["msg"].removeprefix("Value error, ")  # of a rule or record of ours, not of a type
        raise InvalidRecordError(shown_location(first["loc"]), what) from error
    return found


def read_record(
    path: Path, kind: type[Record], refused: Callable[[Path, ValueError], Exception], *, lenient: bool = False
) -> Record:
    """The record that a JSON file holds. lenient: for files of models (see `offramp.files.parse_json`).

    Raises what `refused` makes of the path and of a JsonError or InvalidRecordError, which says why the file
    holds none; OSError for what cannot be read.
    """
    try:
        return from_json(kind, read_json(path, lenient=lenient))
    except (JsonError, InvalidRecordError) as error:
        raise refused(path, error) from error


_validators: dict[Any, SchemaValidator] = {}


def _validator(kind: type[Record]) -> SchemaValidator:
    from pydantic import TypeAdapter  # only who reads files waits for it
    from pydantic_core import SchemaValidator

    if kind not in _validators:
        _validators[kind] = SchemaValidator(_strict(TypeAdapter(kind).core_schema))
    return _validators[kind]


def _strict(schema: Any) -> Any:
    """A schema of pydantic's that takes nothing for a number, truth or text that is of another type.

    Its own strict mode refuses lists and objects for tuples and records, too. Keys of JSON are texts.
    """
    if isinstance(schema, list | tuple):
        return type(schema)(_strict(part) for part in schema)
    if not isinstance(schema, dict):
        return schema
    strict = {name: part if name == "keys_schema" else _strict(part) for name, part in schema.items()}
    return {**strict, "strict": True} if schema.get("type") in ("int", "float", "bool", "str") else strict
