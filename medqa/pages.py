"""HTML pages from templates, in which whatever comes from elsewhere is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import jinja2

__all__ = ["spread", "templates"]


def templates(*helpers: Callable[..., object], **values: object) -> jinja2.Environment:
    """Templates of the package; what they name and nobody gives is an error.

    Parameters
    ----------
    helpers
        Functions that templates call by their names, without the underscore of private ones.
    values
        What templates name besides.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("medqa"),
        autoescape=True,  # names of files, devices, regions and people come from elsewhere
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {one.__name__.lstrip("_"): one for one in helpers}
    environment.globals |= values
    return environment


def spread() -> Iterator[float]:
    """Van der Corput's sequence, in (0, 1): neighbours stand apart, and it is always the same."""
    count = 0
    while True:
        count += 1
        yield sum(((count >> bit) & 1) / 2 ** (bit + 1) for bit in range(count.bit_length()))
