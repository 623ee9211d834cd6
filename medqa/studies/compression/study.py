"""From the rows of a study to its files: the table, the decisions, the drafts of approvals."""

from __future__ import annotations

import datetime
import hashlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from medqa._version import __version__
from medqa.assessment import MetricRef
from medqa.compression.approval import Approval, Scope
from medqa.compression.codecs import CODECS, version
from medqa.errors import UsageError
from medqa.files import write_file
from medqa.studies.compression.decision import Claim, Decision, Group, decide, groups_of
from medqa.studies.compression.lesions import Detected, detected, words_of
from medqa.studies.compression.planning import Plan
from medqa.studies.compression.rows import Row, csv_of, write_parquet
from medqa.studies.compression.sweep import Swept
from medqa.studies.detectability import Responses
from medqa.thresholds import Profile, load

__all__ = ["Study", "approvals_of", "conclude", "write_tables"]


@dataclass(frozen=True)
class Study:
    """What a study found.

    Parameters
    ----------
    rows
        Of all images in their order.
    decisions
        For each kind of image and codec.
    profiles
        The thresholds of each kind.
    metrics
        What the distances of each kind were measured with.
    detected
        What each codec costs a lesion on each kind; empty where none was looked for.
    sha256
        Of the table as CSV.
    """

    plan: Plan
    claim: Claim
    rows: tuple[Row, ...]
    decisions: tuple[Decision, ...]
    profiles: Mapping[Group, Profile]
    metrics: Mapping[Group, MetricRef]
    detected: Mapping[tuple[Group, str], Detected]
    sha256: str

    @property
    def groups(self) -> tuple[Group, ...]:
        """Kinds of images."""
        return tuple(self.profiles)

    @property
    def supported(self) -> bool:
        """Whether at least one codec can be approved for every kind of image."""
        able = {one.group for one in self.decisions if one.highest is not None}
        return able == set(self.groups)


def conclude(
    plan: Plan,
    found: Mapping[int, Swept],
    claim: Claim,
    answers: Callable[[int, str, float], Responses | None],
) -> Study:
    """Decide for each kind of image and codec.

    Parameters
    ----------
    answers
        Of the observer who looked for lesions, by image, codec and ratio.

    Raises
    ------
    UsageError
        No image could be used.
    """
    rows = tuple(row for number in sorted(found) for row in found[number].rows)
    groups = groups_of(rows)
    if not groups:
        reason = f"could use none of {len(plan.images)} images: {rows[0].reason}"
        raise UsageError("study", reason, "give other images; results.csv says why of each")
    named = plan.settings.profile
    profiles = {group: load(named or group.profile) for group in groups}
    metrics = {group: _metric(rows, found) for group, rows in groups.items()}
    kinds = {
        (group, codec): [row for row in rows if row.codec == codec]
        for group, rows in groups.items()
        for codec in plan.settings.codecs
    }
    detections = {}
    if plan.settings.lesion is not None:
        unseen = {number: one.unseen for number, one in found.items() if one.unseen}
        detections = {
            (group, codec): detected(rows, codec, answers, unseen)
            for (group, codec), rows in kinds.items()
        }
    decisions = tuple(
        decide(
            group,
            codec,
            rows,
            claim,
            profiles[group].limits.diagnostic.value,
            detections.get((group, codec)),
        )
        for (group, codec), rows in kinds.items()
    )
    sha256 = hashlib.sha256(csv_of(rows)).hexdigest()
    return Study(plan, claim, rows, decisions, profiles, metrics, detections, sha256)


def _metric(rows: Sequence[Row], found: Mapping[int, Swept]) -> MetricRef:
    metrics = {metric for row in rows if (metric := found[row.image].metric) is not None}
    if len(metrics) != 1:
        raise UsageError(
            "study",
            f"was measured with {len(metrics)} networks",
            "start it again in a new folder: medqa was changed while it was under way",
        )
    return metrics.pop()


def write_tables(out: Path, rows: Sequence[Row]) -> None:
    """Write ``results.csv`` and ``results.parquet``."""
    write_file(out / "results.csv", csv_of(rows))
    write_parquet(out / "results.parquet", rows)


def approvals_of(study: Study, valid_days: int, now: datetime.datetime) -> tuple[Approval, ...]:
    """Make the draft of an approval for every codec that can be approved.

    Parameters
    ----------
    valid_days
        How long they hold.
    now
        With its time zone.
    """
    return tuple(
        _approval(study, one, one.highest, valid_days, now)
        for one in study.decisions
        if one.highest is not None
    )


def _approval(
    study: Study, one: Decision, highest: float, valid_days: int, now: datetime.datetime
) -> Approval:
    group, claim, profile = one.group, study.claim, study.profiles[one.group]
    devices = {
        row.device
        for row in study.rows
        if (row.modality, row.body_part, row.codec) == (group.modality, group.body_part, one.codec)
        and row.device
    }
    software = version(CODECS[one.codec])
    override = claim.mammography if group.modality == "MG" else None
    return Approval(
        approval_id=str(uuid.uuid4()),
        created_at=now,
        medqa_version=__version__,
        scope=Scope(
            modality=group.modality, body_part=group.body_part, devices=tuple(sorted(devices))
        ),
        codec=one.codec,
        codec_version=software,
        highest_ratio=highest,
        profile=profile.ref,
        metric=study.metrics[group],
        required_share=claim.share,
        confidence=claim.confidence,
        highest_auc_loss=claim.auc_loss,
        lesion=study.plan.settings.lesion and words_of(study.plan.settings.lesion),
        evidence=one.evidence,
        guideline=one.guideline,
        overridden=override and f"mammograms stay lossless; by {override}",
        study_sha256=study.sha256,
        expires_on=(now + datetime.timedelta(days=valid_days)).date(),
        voided_by=(
            f"another encoder, or another version of it, than {software}",
            "a device, a reconstruction or a protocol that the studied images are not from",
            f"a change of the thresholds {profile.name} {profile.version} or of the network",
            "a reader who finds an image compressed under it unfit for diagnosis",
        ),
    )
