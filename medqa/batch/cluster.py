"""More than one machine: the same jobs on Dask distributed.

The client alone writes to the database: a worker that is lost, and whose job is done again
elsewhere, cannot record twice.
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, ParamSpec, TypeVar

from medqa.errors import UsageError

__all__ = ["ENVIRONMENT", "Cluster", "kubernetes_spec", "parse", "slurm_options"]

P = ParamSpec("P")
T = TypeVar("T")

_FORMS = "tcp://HOST:PORT, tls://HOST:PORT, slurm:KEY=VALUE,… or kubernetes:KEY=VALUE,…"
#: What a worker's environment should say: memory that was freed is kept for the next image. Dask
#: has it returned to the system beyond 64 KiB, which halves the speed.
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {"MALLOC_TRIM_THRESHOLD_": str(2**28), "MALLOC_MMAP_THRESHOLD_": str(2**28)}
)

_SECONDS = 30  # to reach a scheduler that should be there
_START_SECONDS = 600  # for the first worker: a batch system may have a queue
_LOOK_SECONDS = 5  # how often workers are counted
_KUBERNETES_KEYS = ("image", "namespace", "name", "memory", "cpu", "gpus", "env", "volumes")


def parse(given: str) -> tuple[str, dict[str, Any]]:
    """Return the kind of cluster and its options.

    Parameters
    ----------
    given
        ``tcp://…`` or ``tls://…``: kind ``address``. ``slurm:`` or ``kubernetes:`` with
        ``key=value`` pairs between commas, or with the path of a TOML file, which can hold lists.

    Raises
    ------
    UsageError
        It is none of these.
    """
    kind, _, rest = given.partition(":")
    if rest.startswith("//"):
        return "address", {"address": given}
    if kind not in ("slurm", "kubernetes") or not rest:
        raise UsageError(given, "is no cluster", f"write {_FORMS}")
    if rest.endswith(".toml"):
        try:
            return kind, tomllib.loads(Path(rest).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(rest, "cannot be read", "check the file", str(error)) from error
    pairs = [part.partition("=") for part in rest.split(",")]
    if any(not (key and sign and value) for key, sign, value in pairs):
        raise UsageError(given, "is not key=value between commas", "or name a .toml file")
    return kind, {key: int(value) if value.isdecimal() else value for key, _, value in pairs}


def slurm_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments of `dask_jobqueue.SLURMCluster`.

    Its own names hold (``queue``, ``account``, ``walltime``, ``cores``, ``memory``,
    ``job_script_prologue`` …). Added: ``gpus``, how many each job gets, one worker process for
    each. Without it, a job has one process for each core.
    """
    given = {"cores": 1, "memory": "4GB", **options}
    exports = [f"export {name}={value}" for name, value in ENVIRONMENT.items()]
    given["job_script_prologue"] = [*exports, *given.get("job_script_prologue", ())]
    gpus = int(given.pop("gpus", 0))
    given.setdefault("processes", gpus or given["cores"])
    if gpus:
        directives = [*given.get("job_extra_directives", ()), f"--gres=gpu:{gpus}"]
        resources = [*given.get("worker_extra_args", ()), "--resources", "GPU=1"]
        given |= {"job_extra_directives": directives, "worker_extra_args": resources}
    return given


def kubernetes_spec(options: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """Return the DaskCluster resource that the operator is to make.

    ``image`` holds medqa; ``memory`` and ``cpu`` are of one worker, ``gpus`` 1 where each has one;
    ``env`` and ``volumes`` (persistent volume claims by the path to mount them at) are tables of a
    TOML file. A worker has one thread.

    Raises
    ------
    UsageError
        A key is unknown, or there is no image.
    """
    from dask_kubernetes.operator import make_cluster_spec

    if unknown := sorted(set(options) - set(_KUBERNETES_KEYS)):
        known = ", ".join(_KUBERNETES_KEYS)
        raise UsageError(", ".join(unknown), "is no option of kubernetes:", f"take one of {known}")
    if "image" not in options:
        raise UsageError("kubernetes:", "names no image", "add image=…, one that holds medqa")
    amounts = {"memory": options.get("memory", "4Gi"), "cpu": options.get("cpu", 1)}
    command = ["dask-worker", "--nthreads", "1"]
    limits = dict(amounts)
    if options.get("gpus"):
        limits["nvidia.com/gpu"] = options["gpus"]
        command += ["--resources", "GPU=1"]
    spec: dict[str, Any] = make_cluster_spec(
        name=options.get("name", "medqa"),
        image=options["image"],
        n_workers=workers,
        env={**ENVIRONMENT, **options.get("env", {})},
        worker_command=command,
    )
    worker = spec["spec"]["worker"]["spec"]
    worker["containers"][0]["resources"] = {"requests": amounts, "limits": limits}
    places = options.get("volumes", {})
    for number, (path, claim) in enumerate(places.items()):
        name = f"volume-{number}"
        source = {"name": name, "persistentVolumeClaim": {"claimName": claim}}
        worker.setdefault("volumes", []).append(source)
        mounts = worker["containers"][0].setdefault("volumeMounts", [])
        mounts.append({"name": name, "mountPath": path})
    return spec


class Cluster:
    """Workers of Dask distributed; a context manager.

    Dask itself gives the job of a lost worker to another one, as often as its scheduler allows
    (``distributed.scheduler.allowed-failures``, 3 unless set).
    """

    tries = 1

    def __init__(self, given: str, jobs: int | None) -> None:
        kind, options = parse(given)
        try:
            import distributed
        except ImportError as error:
            raise _missing("distributed", "cluster") from error
        self._left = ExitStack()
        self.lost: tuple[type[BaseException], ...] = (distributed.KilledWorker,)
        try:
            where = options["address"] if kind == "address" else self._start(kind, options, jobs)
            self._client = self._left.enter_context(distributed.Client(where, timeout=_SECONDS))
            self._client.wait_for_workers(1, timeout=_START_SECONDS)
        except (OSError, TimeoutError) as error:
            self._left.close()
            mend = "check the address, and that workers can start"
            raise UsageError(given, "no cluster answers", mend, str(error)) from error
        except BaseException:
            self._left.close()
            raise
        self._executor = self._client.get_executor(pure=False, resources=self._resources())
        self._slots, self._counted = 0, -float(_LOOK_SECONDS)

    def _start(self, kind: str, options: dict[str, Any], jobs: int | None) -> Any:
        """Have workers started, and return the cluster that they belong to."""
        if jobs is None:
            raise UsageError(f"{kind}:", "does not say how many workers", "add --jobs N")
        cluster: AbstractContextManager[Any]
        try:
            if kind == "slurm":
                from dask_jobqueue import SLURMCluster

                cluster = SLURMCluster(**slurm_options(options))
            else:
                from dask_kubernetes.operator import KubeCluster

                cluster = KubeCluster(
                    custom_cluster_spec=kubernetes_spec(options, jobs),
                    namespace=options.get("namespace"),
                )
        except ImportError as error:
            package = "dask-jobqueue" if kind == "slurm" else "dask-kubernetes"
            raise _missing(package, kind) from error
        except (TypeError, ValueError) as error:
            raise UsageError(f"{kind}:", "has an option wrong", "correct it", str(error)) from error
        started = self._left.enter_context(cluster)
        if kind == "slurm":
            started.scale(jobs=jobs)
        return started

    def _resources(self) -> dict[str, int] | None:
        """Ask for a GPU for each job where every worker says that it has one."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        gpu = bool(workers) and all(one["resources"].get("GPU") for one in workers)
        return {"GPU": 1} if gpu else None

    @property
    def slots(self) -> int:
        """Two for each thread, so that none waits for the client; workers may come and go."""
        if time.monotonic() - self._counted > _LOOK_SECONDS:
            self._slots = 2 * max(sum(self._client.nthreads().values()), 1)
            self._counted = time.monotonic()
        return self._slots

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Give a job to the scheduler."""
        future: Future[T] = self._executor.submit(function, *args, **kwargs)
        return future

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.close()


def _missing(package: str, extra: str) -> UsageError:
    return UsageError(package, "is not installed", f"pip install 'medqa[{extra}]'")
