"""One piece of work for each thread of a processor, rather than all threads for each piece.

Several threads that convolve one small image wait for each other at every layer; one image each,
they do not, and what it needs stays in the cache of its core.
"""

from __future__ import annotations

import ctypes
import os
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

    def run(item: _Item) -> _Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return function(item)

    return list(_pool(count, threads // count).map(run, items))


@cache
def _pool(count: int, share: int) -> ThreadPoolExecutor:
    """Return threads that have this share of torch's.

    They are kept: to start them takes as long as a small convolution. What runs in one may call
    `each` itself, and waits for others with a smaller share, never for its own.
    """

    def narrow() -> None:
        torch.get_num_threads()  # sets this thread up, which would undo a limit set before
        _openmp().limit(limits=share)
        _limit_products(share)

    return ThreadPoolExecutor(count, "medqa", narrow)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # no thread outlives a fork


def _limit_products(count: int) -> None:
    """Limit the calling thread's products of matrices, where torch has them from MKL.

    MKL keeps a count of its own, and is a part of torch's library, where threadpoolctl does not see
    it. Unlimited, they would wait for each other as well.
    """
    limit = _mkl()
    if limit is not None:
        limit(count)


@cache
def _mkl() -> Callable[[int], int] | None:
    limit: Callable[[int], int] | None
    limit = getattr(ctypes.CDLL(torch._C.__file__), "MKL_Set_Num_Threads_Local", None)
    return limit


@cache
def _openmp() -> ThreadpoolController:
    """Return the libraries of torch's threads; a limit set there is of the calling thread."""
    return ThreadpoolController().select(user_api="openmp")
