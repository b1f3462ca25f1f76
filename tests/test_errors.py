"""The errors: one family, drawn as it is, each also what Python programs expect."""

import inspect

import pytest

import flawflow
from flawflow import errors

FAMILY = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]


def test_one_except_catches_all() -> None:
    assert len(FAMILY) == 9
    assert all(issubclass(kind, errors.FlawflowError) for kind in FAMILY)
    assert flawflow.FlawflowError is errors.FlawflowError


@pytest.mark.parametrize("kind", FAMILY)
def test_the_drawing_shows_every_error_below_its_parent(kind: type[Exception]) -> None:
    assert errors.__doc__ is not None and kind.__doc__
    lines = [
        line for line in errors.__doc__.splitlines() if "Error" in line and ("──" in line or line.strip().isalpha())
    ]
    depths = {line.replace("│", " ").split()[-1 if line.strip().isalpha() else 1]: line for line in lines}
    indent = {name: len(line) - len(line.lstrip(" │├└─")) for name, line in depths.items()}
    assert kind.__name__ in indent
    parent = kind.__mro__[1]
    if parent in FAMILY:
        assert indent[kind.__name__] == indent[parent.__name__] + 4


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [(errors.ImageError, ValueError), (errors.DatasetError, ValueError), (errors.OptionError, ValueError)]
    + [(errors.OutputError, OSError)],
)
def test_they_are_pythons_own_too(kind: type[Exception], builtin: type[Exception]) -> None:
    with pytest.raises(builtin, match="what came"):
        raise kind("what came")
    assert str(kind("what came")) == "what came"
