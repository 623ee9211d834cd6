"""Batches on a real cluster of Dask: several processes of this machine, one of which is killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from batching import make_pairs, pixels_recorded

from medqa.assessment import Job
from medqa.audit import Store, verify
from medqa.batch.cluster import Cluster, kubernetes_spec, parse, slurm_options
from medqa.batch.run import assess_all, measuring
from medqa.batch.table import read_table
from medqa.batch.workers import Setting
from medqa.errors import UsageError
from medqa.identity import profile_digest

# Dask's own threads and sockets may still be closing when a test is over.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def local() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        yield cluster


def test_every_pair_exactly_once_although_a_worker_is_killed(tmp_path: Path, local: Any) -> None:
    count = 9
    table = make_pairs(tmp_path / "data", count)
    found = read_table(table, Job(reference="", candidate="", origin="tests"))
    pids = [worker.pid for worker in local.workers.values()]
    with Store.open(str(tmp_path / "a.db")) as store:
        setting = Setting(
            "gray", None, "float32", "cpu", store.key, str(tmp_path), "none", "diagnostic"
        )
        numbers = []
        with Cluster(local.scheduler_address, None) as pool:
            measured = measuring(pool, setting)
            course = assess_all(
                found.rows, pool, store, setting, measured, {None: profile_digest(None)}
            )
            for done in course:
                numbers.append(done.row.number)
                assert done.assessment is not None
                assert done.assessment.verdict != "not_assessable"
                if len(numbers) == 3:
                    os.kill(pids[0], signal.SIGKILL)  # its nanny starts another
        assert sorted(numbers) == list(range(1, count + 1))
        assert verify(store).fault is None
    pairs = pixels_recorded(tmp_path / "a.db")
    assert len(pairs) == count
    assert set(pairs.values()) == {1}


def test_a_job_that_kills_every_worker_is_given_up(local: Any) -> None:
    import dask
    from batching import die, pid

    with dask.config.set({"distributed.scheduler.allowed-failures": 0}):
        local.scheduler.allowed_failures = 0
        with Cluster(local.scheduler_address, None) as pool:
            assert pool.slots == 4
            assert pool.submit(pid, 0).result() != os.getpid()
            assert isinstance(pool.submit(die, 0).exception(60), pool.lost)


def test_where_nothing_answers_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medqa.batch.cluster._SECONDS", 1)
    begin = time.monotonic()
    with pytest.raises(UsageError, match="no cluster answers"):
        Cluster("tcp://127.0.0.1:9", None)
    assert time.monotonic() - begin < 20
    assert threading.active_count() < 50


@pytest.mark.parametrize(
    ("given", "kind", "options"),
    [
        ("tcp://10.0.0.1:8786", "address", {"address": "tcp://10.0.0.1:8786"}),
        (
            "slurm:queue=gpu,cores=4,memory=16GB,walltime=08:00:00",
            "slurm",
            {"queue": "gpu", "cores": 4, "memory": "16GB", "walltime": "08:00:00"},
        ),
        ("kubernetes:image=medqa:1", "kubernetes", {"image": "medqa:1"}),
    ],
)
def test_what_a_cluster_is_called(given: str, kind: str, options: dict[str, Any]) -> None:
    assert parse(given) == (kind, options)


@pytest.mark.parametrize(
    "given", ["lsf:queue=a", "slurm:", "slurm:queue", "slurm:nothing.toml", "x"]
)
def test_what_is_no_cluster(given: str) -> None:
    with pytest.raises(UsageError):
        parse(given)


def test_slurm_gets_the_job_that_is_meant(tmp_path: Path) -> None:
    """By the script that dask-jobqueue would submit; no SLURM is needed to write it."""
    jobqueue = pytest.importorskip("dask_jobqueue")
    file = tmp_path / "slurm.toml"
    file.write_text(
        'queue = "gpu"\naccount = "radiology"\ncores = 8\nmemory = "32GB"\nwalltime = "08:00:00"\n'
        'gpus = 2\njob_extra_directives = ["--qos=low"]\n'
    )
    _, options = parse(f"slurm:{file}")
    with jobqueue.SLURMCluster(
        **slurm_options(options), scheduler_options={"dashboard_address": None}
    ) as cluster:
        script = cluster.job_script()
    for line in ("-p gpu", "-A radiology", "--cpus-per-task=8", "-t 08:00:00", "--qos=low"):
        assert f"#SBATCH {line}" in script
    assert "#SBATCH --gres=gpu:2" in script
    assert "--nworkers 2" in script
    assert "--nthreads 4" in script
    assert "--resources GPU=1" in script
    assert "export MALLOC_TRIM_THRESHOLD_=268435456" in script


def test_slurm_without_gpus_has_a_process_for_each_core() -> None:
    given = slurm_options({"cores": 4, "memory": "16GB", "job_script_prologue": ["module load x"]})
    assert given.pop("job_script_prologue")[-1] == "module load x"
    assert given == {"cores": 4, "memory": "16GB", "processes": 4}


def test_kubernetes_gets_the_pods_that_are_meant() -> None:
    pytest.importorskip("dask_kubernetes")
    options = {"image": "medqa:1", "memory": "6Gi", "gpus": 1, "volumes": {"/archive": "pacs"}}
    spec = kubernetes_spec(options, 3)
    worker = spec["spec"]["worker"]
    (container,) = worker["spec"]["containers"]
    assert worker["replicas"] == 3
    assert container["image"] == "medqa:1"
    assert {"name": "MALLOC_MMAP_THRESHOLD_", "value": "268435456"} in container["env"]
    assert container["resources"]["limits"] == {"memory": "6Gi", "cpu": 1, "nvidia.com/gpu": 1}
    assert " ".join(container["args"]).startswith("dask-worker --nthreads 1 --resources GPU=1")
    assert container["volumeMounts"] == [{"name": "volume-0", "mountPath": "/archive"}]
    (volume,) = worker["spec"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "pacs"}
    with pytest.raises(UsageError, match="names no image"):
        kubernetes_spec({}, 1)
    with pytest.raises(UsageError, match="is no option"):
        kubernetes_spec({"image": "medqa:1", "colour": "red"}, 1)


def test_how_many_workers_to_start_must_be_said() -> None:
    with pytest.raises(UsageError, match="--jobs"):
        Cluster("slurm:cores=1", None)
