"""JSON schemas of records, as `offramp.kit.typed.finite_json` writes them."""

from __future__ import annotations

from typing import Any, get_type_hints

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema


def schema_of(record: Any) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a record.

    Every entry has to be there, but for those of IF_ANY, and no other. A number may be null, as it is where
    it is not finite, unless its type has a limit.
    """
    return TypeAdapter(record).json_schema(mode="serialization", schema_generator=_OfRecords)


class _OfRecords(GenerateJsonSchema):
    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        found, kind = super().dataclass_schema(schema), schema["cls"]
        entries: dict[str, Any] = found["properties"]
        for name in getattr(kind, "NOT_KEPT", ()):
            del entries[name]
        for name in getattr(kind, "READ_OFF", ()):
            entries[name] = self._of_property(kind, name)
        further, left_out = False, set(getattr(kind, "IF_ANY", ()))
        for name in getattr(kind, "INLINE", ()):
            inner = self.resolve_ref_schema(entries.pop(name))
            left_out |= inner.get("properties", {}).keys() - inner.get("required", ())
            further = further or "properties" not in inner
            entries = {**inner.get("properties", {}), **entries}
        found.pop("title", None)
        return {
            **found,
            "properties": entries,
            "required": [name for name in entries if name not in left_out],
            "additionalProperties": further,
        }

    def _of_property(self, kind: type, name: str) -> JsonSchemaValue:
        hint = get_type_hints(getattr(kind, name).fget, include_extras=True)["return"]
        return self.generate_inner(TypeAdapter(hint).core_schema)

    def float_schema(self, schema: core_schema.FloatSchema) -> JsonSchemaValue:
        found = super().float_schema(schema)
        limited = any(limit in schema for limit in ("ge", "gt", "le", "lt"))
        return found if limited else {**found, "type": ["number", "null"]}

    def callable_schema(self, schema: core_schema.CallableSchema) -> JsonSchemaValue:
        return {}  # of a field that is not kept

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False
