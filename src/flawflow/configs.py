"""Settings are frozen dataclasses of plain values; this reads them back from JSON and refuses unknown keys."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from flawflow.errors import OptionError

T = TypeVar("T")
_LARGEST = sys.float_info.max


def read_settings(kind: type[T], values: Any, name: str) -> T:
    """Build the settings dataclass ``kind`` from a mapping; keys left out take their defaults.

    Args:
        kind: a dataclass whose fields are numbers, strings, bools, tuples, None or such dataclasses.
        values: what `dataclasses.asdict`, perhaps by way of JSON, made of it.
        name: how messages call the whole.

    Raises:
        OptionError: a key is unknown, or a value has another type than its field.
    """
    if not isinstance(values, Mapping):
        raise OptionError(f"{name} is {values!r}: expected settings by name")
    known = [entry.name for entry in fields(kind)]  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in values if key not in known)
    if unknown:
        raise OptionError(f"{name} has no setting {', '.join(unknown)}: expected some of {', '.join(known)}")
    hints = get_type_hints(kind)
    return kind(**{key: _value(hints[key], value, f"{name}.{key}") for key, value in values.items()})


def change_settings(settings: T, changes: Mapping[str, str], name: str) -> T:
    """Copy of ``settings`` with dotted keys set: ``{"flow.blocks": "4"}``.

    A text is read as JSON where it is JSON (``4``, ``true``, ``null``, ``[2, 3]``), else taken as it stands. A key of
    settings that are None begins them with their defaults.

    Raises:
        OptionError: a key is unknown or a value does not fit.
    """
    tree: dict[str, Any] = asdict(settings)  # type: ignore[call-overload]
    begun: list[Any] = []  # what is None and gets settings now: which of them there are is known when they are read
    for key, text in changes.items():
        *parents, leaf = key.split(".")
        node: Any = tree
        for parent in parents:
            if isinstance(node, dict) and parent in node and node[parent] is None:
                node[parent] = {}
                begun.append(node[parent])
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or (leaf not in node and not any(node is one for one in begun)):
            raise OptionError(f"{name} has no setting '{key}': expected one of {', '.join(_leaves(tree))}")
        try:
            node[leaf] = json.loads(text)
        except ValueError:
            node[leaf] = text
    return read_settings(type(settings), tree, name)


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return found


def _value(hint: Any, value: Any, name: str) -> Any:
    """One value in the type that its field declares; lists become tuples, whole numbers pass as floats."""
    choices = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for choice in choices:
        origin = get_origin(choice)
        if is_dataclass(choice) and isinstance(choice, type) and isinstance(value, Mapping):
            return read_settings(choice, value, name)
        if choice is NoneType and value is None:
            return None
        if origin is Literal and value in get_args(choice):
            return value
        if choice is float and type(value) in (int, float) and abs(value) <= _LARGEST:  # not so for NaN
            return float(value)
        if choice is type(value) and choice is not float:
            return value
        if origin is tuple and isinstance(value, list | tuple):
            return _tuple(choice, value, name)
    raise OptionError(f"{name} is {value!r}: expected {_readable(choices)}")


def _tuple(hint: Any, value: list[Any] | tuple[Any, ...], name: str) -> tuple[Any, ...]:
    parts = get_args(hint)
    if len(parts) == 2 and parts[1] is Ellipsis:
        parts = (parts[0],) * len(value)
    if len(parts) != len(value):
        raise OptionError(f"{name} is {value!r}: expected {len(parts)} values")
    return tuple(_value(part, item, name) for part, item in zip(parts, value, strict=True))


def _readable(choices: tuple[Any, ...]) -> str:
    names = {int: "a whole number", float: "a finite number", str: "a text", bool: "true or false", NoneType: "null"}
    texts = [
        "one of " + ", ".join(map(str, get_args(c))) if get_origin(c) is Literal else names.get(c, str(c))
        for c in choices
    ]
    return " or ".join(texts)
