"""Requests that wait for their records: one look at the database for all of them."""

from __future__ import annotations

import asyncio
import logging

from starlette.concurrency import run_in_threadpool

from medqa.audit import Store
from medqa.errors import StoreError

from .models import JobView
from .queries import ended

__all__ = ["Waiter"]

_LOG = logging.getLogger("medqa.web")
_LOOK_SECONDS = 0.05  # a look takes 1 to 3 ms, an assessment a hundred or more
_TROUBLE_SECONDS = 2.0


class Waiter:
    """Whoever waits is told when his job is over; the database is asked only meanwhile."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, set[asyncio.Future[JobView]]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, job_id: str, seconds: float) -> JobView | None:
        """Return the job once it is over; None where it is not within so many seconds."""
        future: asyncio.Future[JobView] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(future)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError:
            return None
        finally:
            if left := self._waiting.get(job_id):
                left.discard(future)
                if not left:
                    del self._waiting[job_id]

    async def _look(self) -> None:
        while self._waiting:
            try:
                over = await run_in_threadpool(ended, self._store, list(self._waiting))
            except StoreError:  # it may come back before those who wait give up
                _LOG.error("the audit database cannot be read")
                await asyncio.sleep(_TROUBLE_SECONDS)
                continue
            for job_id, view in over.items():
                for future in self._waiting.pop(job_id, ()):
                    if not future.done():
                        future.set_result(view)
            await asyncio.sleep(_LOOK_SECONDS)
