"""One piece of work for each thread of a processor, rather than all threads for each piece.

Several threads that convolve one small image wait for each other at every layer; one image each,
they do not, and what it needs stays in the cache of its core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

__all__ = ["each"]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def each(
    function: Callable[[_Item], _Result], items: Sequence[_Item], most: int
) -> Iterable[_Result]:
    """Return what a function makes of each item, in order, some of them at the same time.

    torch's threads are divided among them, and its inference mode holds in all.

    Parameters
    ----------
    most
        How many may be worked on at a time, at least 1.
    """
    threads = torch.get_num_threads()
    count = min(threads, most, len(items))
    if count < 2:
        return map(function, items)
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def narrow() -> None:
        torch.get_num_threads()  # sets this thread up, which would undo a limit set before
        _openmp().limit(limits=threads // count)

    def run(item: _Item) -> _Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return function(item)

    with ThreadPoolExecutor(count, initializer=narrow) as pool:
        return list(pool.map(run, items))


@cache
def _openmp() -> ThreadpoolController:
    """Return the libraries of torch's threads; a limit set there is of the calling thread."""
    return ThreadpoolController().select(user_api="openmp")
