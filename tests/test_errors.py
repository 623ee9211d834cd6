"""The error tree has one root, and every message is one line."""

from __future__ import annotations

import inspect

import pytest

from medqa import errors
from medqa.errors import MedqaError, ReadError, UsageError


def test_the_tree_is_the_one_that_is_drawn() -> None:
    assert errors.__doc__ is not None
    for name in errors.__all__:
        kind = getattr(errors, name)
        assert issubclass(kind, MedqaError)
        (line,) = [
            line
            for line in errors.__doc__.splitlines()
            if line.split()[-1:] == [name] or f" {name} " in line
        ]
        depth = len(inspect.getmro(kind)) - len(inspect.getmro(MedqaError))
        assert line.index(name) == 4 + 4 * depth


def test_a_message_is_one_line_with_subject_reason_detail_and_mend() -> None:
    error = ReadError("scan.dcm", "cannot be read", "fetch it again", "a\nlong\n  story")
    assert str(error) == "scan.dcm: cannot be read (a long story); fetch it again"
    assert str(UsageError("x", "is wrong", "mend it")) == "x: is wrong; mend it"
    with pytest.raises(TypeError):
        ReadError("scan.dcm")  # type: ignore[call-arg]  # an error without a mend
