"""The queue: jobs wait in the audit database until a worker does them, each exactly once."""

from medqa.queue.jobs import (
    Leased,
    LeaseLostError,
    Queued,
    QueueFullError,
    State,
    counts,
    deliver,
    drop,
    enqueue,
    extend,
    fail,
    finish,
    lease,
    listed,
    retry,
    undelivered,
)

__all__ = [
    "LeaseLostError",
    "Leased",
    "QueueFullError",
    "Queued",
    "State",
    "counts",
    "deliver",
    "drop",
    "enqueue",
    "extend",
    "fail",
    "finish",
    "lease",
    "listed",
    "retry",
    "undelivered",
]
