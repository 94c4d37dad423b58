"""Fields of records that stay the JSON that a file has, and are held against a type all the same."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


class _AsWritten:
    """How a number is read that is used as the file has it: a text of digits, or a truth, is none."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return cast("CoreSchema", {**handler(source), "strict": True})


AS_WRITTEN = _AsWritten()
"""Annotates an int field of a record that is only held against JSON (see `Of`)."""


@dataclasses.dataclass(frozen=True)
class Of:
    """Annotates a field of JSON that stays as it is, and of which a record says what it must hold."""

    record: type

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(
            lambda value, read: (read(value), value)[1], handler.generate_schema(self.record)
        )
