"""The application: what the service is made of."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool

from medqa._version import __version__
from medqa.audit import Store
from medqa.errors import MedqaError, UsageError
from medqa.queue.pruning import KEPT_SECONDS, prune
from medqa.queue.submission import Spool
from medqa.thresholds import names

from . import assessing, reading, review, watching
from .keys import Keyring
from .metrics import Metrics
from .middleware import Guard
from .problems import Problem, install
from .service import Service
from .settings import Settings
from .uploads import ORIGIN
from .waiting import Waiter

__all__ = ["create_app"]

_LOG = logging.getLogger("medqa.web")
_PRUNE_SECONDS = 3600.0
_DESCRIPTION = """\
May this processed medical image still be read? Send it with its reference; what comes back is the
audit record. It informs a qualified person; it is not a medical device."""


def create_app(settings: Settings) -> FastAPI:
    """Make the service.

    Raises
    ------
    UsageError
        The database, the spool or the file of the keys cannot be used, or the rate is none.
    """
    service = _service(settings)

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        pruning = asyncio.create_task(_prune(service))
        yield
        pruning.cancel()
        service.store.close()

    app = FastAPI(
        title="medqa",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # these pages load their scripts from the internet
        redoc_url=None,
        lifespan=running,
    )
    app.state.service = service
    for part in (assessing, reading, review, watching):
        app.include_router(part.router)
    install(app)
    _document(app, settings)
    app.add_middleware(Guard, limits=settings.limits, metrics=service.metrics, tls=settings.tls)
    return app


async def _prune(service: Service) -> None:
    """Let go of what is old and needed no more, now and every hour."""
    while True:
        before = time.time() - KEPT_SECONDS
        try:
            gone = await run_in_threadpool(prune, service.store, service.spool, before, [ORIGIN])
        except (MedqaError, OSError) as error:
            _LOG.error("the spool cannot be pruned: %s", type(error).__name__)
        else:
            if gone:
                _LOG.info("%d old files and folders of the spool deleted", gone)
        await asyncio.sleep(_PRUNE_SECONDS)


def _document(app: FastAPI, settings: Settings) -> None:
    """Add to the OpenAPI document what only a running service knows: its profiles and networks."""
    plain = app.openapi

    def documented() -> dict[str, Any]:
        found = copy.deepcopy(plain())
        schemas = found["components"]["schemas"]
        schemas[Problem.__name__] = Problem.model_json_schema(mode="serialization")
        for path in ("/assess", "/assess/batch"):
            body = found["paths"][path]["post"]["requestBody"]["content"]["multipart/form-data"]
            fields = body["schema"]["properties"]
            fields["profile"]["enum"] = [*names(), *settings.profiles]
            fields["backbone"]["enum"] = list(settings.backbones)
        return found

    app.openapi = documented  # type: ignore[method-assign]  # as FastAPI's own pages show it


def _service(settings: Settings) -> Service:
    try:
        rate = parse(settings.limits.rate)
    except ValueError as error:
        raise UsageError(settings.limits.rate, "is no rate", "write 600/minute") from error
    folder = settings.spool.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            folder, f"cannot be made ({error.strerror})", "name a folder that may be written"
        ) from error
    keyring = None if settings.keys is None else Keyring(settings.keys)
    store = Store.open(settings.db)
    return Service(
        settings=settings,
        store=store,
        spool=Spool(folder),
        keyring=keyring,
        metrics=Metrics(store),
        waiter=Waiter(store),
        limiter=MovingWindowRateLimiter(MemoryStorage()),
        rate=rate,
        receiving=asyncio.Semaphore(settings.limits.bodies),
    )
