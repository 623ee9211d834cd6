"""Whether anything is lost or doubled when the services are killed again and again under traffic.

    python tests/benchmarks/soak.py [--minutes 60] [--every 20] [--write docs/reliability.md]

Starts, on free ports and in temporary folders, PostgreSQL, Orthanc, `medqa serve`, `medqa
dicom-node`, `medqa orthanc` and `medqa worker` (`soak_site`). Pairs of images, no two alike, go in
by C-STORE, by Orthanc and by REST while a visitor reads the review pages (`soak_traffic`). In the
first two thirds of the time, one service after the other is killed and started again, between two
transfers or in the middle of one (`soak_faults`), which a relay holds back there (`soak_wire`). The
last third has no faults, and shows whether memory grows. Senders send again what was not
acknowledged. In the end every pair must have one record, and its results must be given back once
(`soak_check`). Exit code 1: they are not, or the chain is broken, or a job is dead.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from machine import heading
from soak_check import Check, checked, drained
from soak_faults import Act, strike
from soak_site import Service, Site, running
from soak_traffic import Traffic
from tables import Table, publish

SETTLING_SECONDS = 20.0  # after the last start, before memory is compared
AFTER = "after the last fault"


def tables(
    site: Site,
    traffic: Traffic,
    acts: list[Act],
    check: Check,
    drain: float | None,
    minutes: float,
) -> list[Table]:
    channels = list(traffic.channels.values())
    kinds = ("way", "pairs acknowledged", "tries that failed", "longest until acknowledged")
    visitor = traffic.visitor
    odd = Counter[str]()
    for one in (*channels, visitor):
        odd += one.odd
    sent = Table(
        f"{minutes:g} minutes of traffic",
        (*kinds, "with one record", "lost", "doubled", "results given back once"),
        [check.row(one) for one in channels],
        [
            f"Review pages and records: {visitor.requests} rounds, "
            f"{visitor.failed} of them failed, while a service was down. "
            f"{len(visitor.signed)} signatures acknowledged, "
            f"{sum(check.signatures[one] == 1 for one in visitor.signed)} of them there once.",
            f"Answers that were neither a yes nor a request to wait: {words(odd)}.",
            f"Jobs: {words(check.jobs)}; records that supersede another: {check.superseding}; "
            f"results of another record in a job's folder: {check.mixed}.",
            f"The chain is {check.chain}. Identifiers in the logs: {check.names_in_logs}.",
            "The queue was not empty in time."
            if drain is None
            else f"The queue was empty, and everything given back, {drain:.0f} s after the end.",
            f"Half-written files left in the spool: {check.left}.",
        ],
    )
    services = list(site.services.values())
    rows = [
        ["PostgreSQL", str(site.database_killed), "–", span(site.database_back)],
        *([one.name, str(one.killed), str(one.ended), span(one.back)] for one in services),
    ]
    faults = Table(
        "Faults",
        ("service", "killed", "ended by itself", "seconds from start to answering"),
        rows,
        ["PostgreSQL: pg_ctl stop -m immediate; all others: SIGKILL to the service's processes."],
    )
    cut = Table(
        "Of these, cut in the act",
        ("what was under way", "killed", "times", "bytes that had passed"),
        [
            [
                one.what,
                one.victim,
                str(len(one.passed)),
                span(one.passed, "d") if one.marker or any(one.passed) else "–",
            ]
            for one in acts
        ],
        [f"{sum(one.missed for one in acts)} times nothing came that could be cut."],
    )
    memory = Table(
        f"Resident memory, MiB, {AFTER}",
        ("service", "at first", "in the end", "change", "most in the whole run"),
        [memory_row(one, traffic.faults_over) for one in services],
        ["Medians of the first and of the last fifth of that time."],
    )
    return [sent, faults, cut, memory]


def memory_row(service: Service, since: float) -> list[str]:
    late = [mib for at, mib in service.memory if at >= since]
    part = max(1, len(late) // 5)
    if not late:
        return [service.name, "–", "–", "–", "–"]
    first, last = statistics.median(late[:part]), statistics.median(late[-part:])
    most = max(mib for _, mib in service.memory)
    return [service.name, f"{first:.0f}", f"{last:.0f}", f"{last - first:+.0f}", f"{most:.0f}"]


def words(counts: Counter[str]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def span(found: Sequence[float], form: str = ".1f") -> str:
    return f"{min(found):{form}} to {max(found):{form}}" if found else "–"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=20, help="seconds between faults")
    parser.add_argument("--pause", type=float, default=2, help="seconds between a sender's pairs")
    parser.add_argument("--logs", type=Path, help="folder for the services' logs")
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    what = heading("Measured on", 1, "medqa", "pynetdicom", "fastapi", "psycopg")
    with running(asked.minutes) as site:
        traffic = Traffic(site, asked.pause)
        begun = time.monotonic()
        for thread in traffic.threads:
            thread.start()
        acts = strike(site, traffic, begun + 40 * asked.minutes, asked.every)
        traffic.faults_over = time.monotonic() + SETTLING_SECONDS
        time.sleep(max(0.0, begun + 60 * asked.minutes - time.monotonic()))
        traffic.stop.set()
        for thread in traffic.threads:
            thread.join()
        channels = list(traffic.channels.values())
        drain = drained(site, sum(len(one.acknowledged) for one in channels))
        check = checked(site, channels)
        publish("soak", what, tables(site, traffic, acts, check, drain, asked.minutes), asked.write)
        for line, number in check.own_errors.most_common(40):
            print(f"{number:5} {line}")
        if asked.logs is not None:
            asked.logs.mkdir(parents=True, exist_ok=True)
            for one in site.services.values():
                (asked.logs / one.log.name).write_bytes(one.log.read_bytes())
        well = drain is not None and check.well(channels, traffic.visitor.signed)
    print("nothing lost, nothing doubled" if well else "FAILED")
    raise SystemExit(0 if well else 1)


if __name__ == "__main__":
    main()
