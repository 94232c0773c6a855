# SPDX-License-Identifier: GPL-2.0-or-later
"""As much of JSON Schema as the package's own schemas use."""

from __future__ import annotations

from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "null": (type(None),),
}
KNOWN = {"$schema", "title", "description", "oneOf", "type", "required", "properties", "additionalProperties", "const"}
KNOWN |= {"enum", "minimum", "maximum", "items"}


def check(value: Any, schema: dict[str, Any], where: str = "") -> None:
    """Fail unless `value` is as `schema` says."""
    assert not schema.keys() - KNOWN, f"{where}: the schema says what is not checked: {schema.keys() - KNOWN}"
    if "oneOf" in schema:
        event = value.get("event") if isinstance(value, dict) else None
        matching = [each for each in schema["oneOf"] if each["properties"]["event"]["const"] == event]
        assert len(matching) == 1, f"no schema for {value}"
        check(value, matching[0], str(event))
        return
    assert "const" not in schema or value == schema["const"], where
    assert "enum" not in schema or value in schema["enum"], f"{where}: {value!r}"
    if "type" in schema:
        names = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        is_of_type = any(isinstance(value, TYPES[name]) and not isinstance(value, bool) for name in names)
        assert is_of_type, f"{where}: {value!r} is no {names}"
    if isinstance(value, int | float):
        assert schema.get("minimum", value) <= value <= schema.get("maximum", value), f"{where}: {value}"
    if isinstance(value, list):
        for item in value:
            check(item, schema.get("items", {}), where)
    if isinstance(value, dict) and "properties" in schema:
        assert set(schema["required"]) <= value.keys(), f"{where}: {value.keys()}"
        for name, item in value.items():
            assert name in schema["properties"], f"{where} has a field {name} that is not documented"
            check(item, schema["properties"][name], f"{where}.{name}")
