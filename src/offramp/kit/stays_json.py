"""Fields of records that stay the JSON that a file has, and are held against a type all the same."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler
    from pydantic_core import CoreSchema


@dataclasses.dataclass(frozen=True)
class Of:
    """Annotates a field of JSON that stays as it is, and of which a record says what it must hold."""

    record: type

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import core_schema

        return core_schema.no_info_wrap_validator_function(
            lambda value, read: (read(value), value)[1], handler.generate_schema(self.record)
        )
