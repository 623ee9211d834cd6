"""What is there in the end: every record once, all results given back once, no name in a log."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import httpx
from soak_site import LOGIN, Site
from soak_traffic import DRAIN_SECONDS, PATIENT, Channel

from medqa.audit import Store, verify
from medqa.errors import MedqaError

__all__ = ["Check", "checked", "drained"]


def drained(site: Site, expected: int) -> float | None:
    """Wait until every job is done and given back; seconds, or None where that does not come."""
    begun = time.monotonic()
    open_jobs = (
        "SELECT count(*) FILTER (WHERE state IN ('done', 'dead')), count(*) FILTER "
        "(WHERE origin <> 'web' AND delivered_at IS NULL) FROM jobs"
    )
    while time.monotonic() - begun < DRAIN_SECONDS:
        over, undelivered = site.ask(open_jobs)[0]
        if over >= expected and not undelivered:
            time.sleep(10)  # for what should not come any more
            return time.monotonic() - begun - 10
        for service in site.services.values():
            service.keep()
        time.sleep(1)
    return None


@dataclass(frozen=True)
class Check:
    """What is there in the end: by digest of the candidate, and by study."""

    records: Counter[str]
    given_back: dict[str, list[int]]
    jobs: Counter[str]
    superseding: int
    mixed: int
    left: int
    chain: str
    names_in_logs: int
    own_errors: Counter[str]
    signatures: Counter[str]

    def row(self, channel: Channel) -> list[str]:
        there = [self.records[digest] for _, digest in channel.acknowledged]
        back = [self.given_back.get(study, []) for study, _ in channel.acknowledged]
        whole = sum(one == [1, 1, 1] for one in back)
        return [
            channel.name,
            str(len(channel.acknowledged)),
            str(channel.failed),
            f"{channel.slowest:.0f} s",
            str(there.count(1)),
            str(there.count(0)),
            str(sum(one > 1 for one in there)),
            "–" if channel.name == "REST" else str(whole),
        ]

    def well(self, channels: list[Channel], signed: list[str]) -> bool:
        rows = [self.row(one) for one in channels]
        sent = {digest for one in channels for _, digest in one.acknowledged}
        return (
            all(row[4] == row[1] and row[7] in ("–", row[1]) for row in rows)
            and set(self.records) == sent
            and self.chain == "whole"
            and set(self.jobs) == {"done"}
            and all(self.signatures[one] == 1 for one in signed)
            and not any(one.odd["never acknowledged"] for one in channels)
            and not (self.superseding or self.mixed or self.names_in_logs)
        )


def checked(site: Site, channels: list[Channel]) -> Check:
    rows = site.ask("SELECT record, supersedes FROM assessments")
    records = [json.loads(row[0]) for row in rows]
    folders = site.ask("SELECT results, assessment_id FROM jobs WHERE state = 'done'")
    studies = [s for one in channels if one.name != "REST" for s, _ in one.acknowledged]
    with httpx.Client(base_url=site.orthanc, auth=LOGIN, timeout=60) as client:
        given_back = {study: results(client, study) for study in studies}
    try:
        with Store.open(site.url, readonly=True) as store:
            fault = verify(store).fault
        chain = "whole" if fault is None else f"BROKEN: {fault}"
    except MedqaError as error:
        chain = f"NOT READ: {error}"
    logs = [(one.name, one.log.read_text(errors="replace")) for one in site.services.values()]
    ours = [(name, text) for name, text in logs if name != "Orthanc"]
    uids = [PATIENT, "Soak^Jane", *studies]
    signatures = site.ask("SELECT reason FROM audit_entries WHERE kind = 'signature'")
    return Check(
        records=Counter(
            (one["inputs"]["candidate"] or {}).get("pixels_sha256", "none") for one in records
        ),
        given_back=given_back,
        jobs=Counter(dict(site.ask("SELECT state, count(*) FROM jobs GROUP BY state"))),
        superseding=sum(row[1] is not None for row in rows),
        mixed=sum(not belongs(Path(folder), record) for folder, record in folders),
        left=sum(1 for path in site.spool.rglob("*.part")),
        chain=chain,
        names_in_logs=sum(name in text for _, text in ours for name in uids),
        signatures=Counter(row[0] for row in signatures),
        own_errors=Counter(
            f"{name}: {line.strip()[-160:]}"
            for name, text in ours
            for line in re.findall(r".*(?:Traceback|medqa's own|: \w*Error\b).*", text)
        ),
    )


def results(client: httpx.Client, study: str) -> list[int]:
    """Instances in each of the series that medqa has put into a study of Orthanc's."""
    found = client.post("/tools/lookup", content=study).json()
    all_series = [
        series
        for one in found
        if one["Type"] == "Study"
        for series in client.get(f"/studies/{one['ID']}/series").json()
    ]
    tags = "MainDicomTags"
    return [len(one["Instances"]) for one in all_series if one[tags].get("Manufacturer") == "medqa"]


def belongs(folder: Path, assessment_id: str) -> bool:
    """Whether a folder of results is of the record that the job points to."""
    try:
        found = json.loads((folder / "assessment.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return bool(found["assessment_id"] == assessment_id)
