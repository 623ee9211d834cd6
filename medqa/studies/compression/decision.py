"""The decision of a study: for each kind of image and codec the highest ratio that may be approved.

A ratio qualifies where the lower bound of the share of images that stay fit for diagnosis is at
least the share required, and every lower ratio that was studied qualifies too. The bound is
Clopper and Pearson's, one-sided, and counts sources, not images: the images of one series tell no
more than one of them (as `medqa.studies.intervals.share` does).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from medqa.compression.approval import GuidelineRef, RatioEvidence, Share
from medqa.errors import UsageError
from medqa.studies.compression.curves import Curve, curve
from medqa.studies.compression.lesions import Detected
from medqa.studies.compression.rows import Row
from medqa.studies.guidelines import LOSSLESS, Guideline, cap_for

__all__ = [
    "Claim",
    "Decision",
    "Group",
    "check_claim",
    "decide",
    "groups_of",
    "lower_bound",
    "needed",
]

_MOST_NEEDED = 100_000  # beyond, no study is advised but another ratio


@dataclass(frozen=True)
class Claim:
    """What an approval is to guarantee.

    Parameters
    ----------
    share
        Share of images that must stay fit for diagnosis, in (0, 1).
    confidence
        How surely, in (0, 1).
    guideline
        What caps the ratio; None where no guideline does.
    auc_loss
        Detectability that may be lost at most; None where that decides nothing.
    mammography
        Who allows lossy compression of mammograms and why, ``NAME: reason``; None: they stay
        lossless.
    """

    share: float = 0.95
    confidence: float = 0.95
    guideline: Guideline | None = None
    auc_loss: float | None = None
    mammography: str | None = None


@dataclass(frozen=True)
class Group:
    """Images of one kind: modality, body part (None where headers name none), and profile."""

    modality: str
    body_part: str | None
    profile: str

    @property
    def words(self) -> str:
        """Such as ``CT, CHEST``."""
        return f"{self.modality}, {self.body_part or 'body part not stated'}"


@dataclass(frozen=True)
class Decision:
    """What a study says of one codec for one kind of image.

    Parameters
    ----------
    highest
        Highest ratio that may be approved; None where none may.
    supported
        Highest ratio that the images support, whatever a guideline says.
    why
        Why not more, in words.
    evidence
        Each ratio by ascending ratio.
    images, sources
        How many were compressed with this codec.
    guideline
        What caps it, where the guideline has a figure.
    curve
        Distance by ratio.
    """

    group: Group
    codec: str
    highest: float | None
    supported: float | None
    why: str
    evidence: tuple[RatioEvidence, ...]
    images: int
    sources: int
    guideline: GuidelineRef | None
    curve: Curve


def check_claim(claim: Claim) -> None:
    """Refuse a claim that means nothing.

    Raises
    ------
    UsageError
        A share or confidence outside (0, 1), or a person without a reason.
    """
    for name, value in (("share", claim.share), ("confidence", claim.confidence)):
        if not 0.0 < value < 1.0:
            raise UsageError(name, f"is {value:g}, not between 0 and 1", "give such as 0.95")
    if claim.auc_loss is not None and not 0.0 <= claim.auc_loss < 0.5:
        raise UsageError("AUC loss", f"is {claim.auc_loss:g}", "give at least 0 and below 0.5")
    if claim.mammography is not None:
        who, _, why = claim.mammography.partition(":")
        if not (who.strip() and why.strip()):
            raise UsageError(
                "override of mammography", "names no person and reason", "write NAME: reason"
            )


def lower_bound(good: int, images: int, sources: int, confidence: float) -> float:
    """Lower confidence bound of a share, one-sided (Clopper and Pearson 1934).

    Parameters
    ----------
    good, images
        Images that stayed good, and all of them.
    sources
        How many the images count for: the bound is that of so many images with this share.
    confidence
        Of the bound, such as 0.95.

    Returns
    -------
    In [0, 1); 0 where none is good.
    """
    successes = good / images * sources
    if successes == 0:
        return 0.0
    return float(stats.beta.ppf(1 - confidence, successes, sources - successes + 1))


def needed(share: float, confidence: float, bad: int = 0) -> int | None:
    """Fewest sources that can support a share where so many are bad; None where too many.

    With none bad it is the smallest n of ``share ** n <= 1 - confidence``: 59 for 0.95 at 0.95.
    """
    low, high = bad, _MOST_NEEDED
    if lower_bound(high - bad, high, high, confidence) < share:
        return None
    while high - low > 1:  # the bound rises with n
        middle = (low + high) // 2
        enough = lower_bound(middle - bad, middle, middle, confidence) >= share
        low, high = (low, middle) if enough else (middle, high)
    return high


def groups_of(rows: Sequence[Row]) -> dict[Group, list[Row]]:
    """Rows of images that could be judged, by kind of image, sorted."""
    found: dict[Group, list[Row]] = {}
    for row in rows:
        if row.codec is not None and row.modality is not None and row.profile is not None:
            found.setdefault(Group(row.modality, row.body_part, row.profile), []).append(row)
    key = sorted(found, key=lambda one: (one.modality, one.body_part or "", one.profile))
    return {group: found[group] for group in key}


def decide(
    group: Group,
    codec: str,
    rows: Sequence[Row],
    claim: Claim,
    limit: float,
    detected: Detected | None = None,
) -> Decision:
    """Decide on a codec.

    Parameters
    ----------
    rows
        Of this group and codec.
    limit
        The profile's diagnostic limit of the whole image, in LPIPS.
    detected
        What the codec costs a lesion at each ratio, where it was measured.
    """
    lossy = [row for row in rows if row.ratio is not None]
    ratios = sorted({row.ratio for row in lossy if row.ratio is not None})
    images = sorted({row.image for row in lossy})
    sources = {row.image: row.source for row in lossy}
    evidence = tuple(
        one
        for ratio in ratios
        if (one := _evidence(ratio, [r for r in lossy if r.ratio == ratio], claim, detected))
    )
    by_place = {(row.image, row.ratio): row.distance for row in lossy}
    distances = np.array(
        [[math.nan if (d := by_place.get((i, r))) is None else d for r in ratios] for i in images]
    )
    drawn = curve(ratios, distances, [sources[i] for i in images], limit)
    supported, why = _supported(ratios, evidence, claim, len(set(sources.values())), detected)
    guideline = _guideline(group, codec, claim)
    highest, why = _capped(group, ratios, supported, why, guideline, claim)
    return Decision(
        group=group,
        codec=codec,
        highest=highest,
        supported=supported,
        why=why,
        evidence=evidence,
        images=len(images),
        sources=len(set(sources.values())),
        guideline=guideline,
        curve=drawn,
    )


def _guideline(group: Group, codec: str, claim: Claim) -> GuidelineRef | None:
    chosen = claim.guideline
    if chosen is None:
        return None
    cap = cap_for(chosen, group.modality, group.body_part, codec)
    if cap is None:
        return None
    source = f"{chosen.source}; {cap.note}" if cap.note else chosen.source
    return GuidelineRef(body=chosen.name, highest_ratio=cap.highest, source=source)


def _evidence(
    ratio: float, rows: Sequence[Row], claim: Claim, detected: Detected | None
) -> RatioEvidence | None:
    """Say what the images show of a ratio; None where not one could be compressed so."""
    scored = [row for row in rows if row.distance is not None and row.measured is not None]
    if not scored:
        return None
    good, sources = sum(row.good for row in rows), len({row.source for row in rows})
    distances = [row.distance for row in scored if row.distance is not None]
    return RatioEvidence(
        ratio=ratio,
        measured=float(np.median([row.measured for row in scored if row.measured is not None])),
        share=Share(
            good=good,
            images=len(rows),
            lower=lower_bound(good, len(rows), sources, claim.confidence),
        ),
        median_distance=float(np.median(distances)),
        worst_distance=max(distances),
        auc_loss=None if detected is None else detected.losses.get(ratio),
    )


def _supported(
    ratios: Sequence[float],
    evidence: Sequence[RatioEvidence],
    claim: Claim,
    sources: int,
    detected: Detected | None,
) -> tuple[float | None, str]:
    """Highest ratio below which all qualify, and why the next one does not."""
    by_ratio = {one.ratio: one for one in evidence}
    best = None
    for ratio in ratios:
        one = by_ratio.get(ratio)
        if one is None:
            return best, f"no image could be compressed {ratio:g}:1"
        if one.share.lower < claim.share:
            return best, _too_few(one, claim, sources)
        if claim.auc_loss is not None:
            if one.auc_loss is None:
                reason = "it was not asked for" if detected is None else detected.missing[ratio]
                return best, (
                    f"at {ratio:g}:1 it is not known whether lesions are detected: {reason}"
                )
            if one.auc_loss > claim.auc_loss:
                return best, (
                    f"at {ratio:g}:1 up to {one.auc_loss:.3f} of the AUC of small lesions may be "
                    f"lost, more than {claim.auc_loss:g}"
                )
        best = ratio
    return best, "no higher ratio was studied"


def _too_few(one: RatioEvidence, claim: Claim, sources: int) -> str:
    share = one.share
    bad = sources - math.floor(share.good / share.images * sources + 1e-9)
    words = (
        f"at {one.ratio:g}:1 {share.good} of {share.images} images stay fit for diagnosis, so "
        f"that surely {share.lower:.1%} do, not {claim.share:.1%}"
    )
    if share.good < share.images * claim.share:
        return words
    enough = needed(claim.share, claim.confidence, bad)
    if enough is None:
        return words
    seen = "none fails" if bad == 0 else f"{bad} fail"
    return f"{words}: {enough} series are needed where {seen}, and {sources} were given"


def _capped(
    group: Group,
    ratios: Sequence[float],
    supported: float | None,
    why: str,
    guideline: GuidelineRef | None,
    claim: Claim,
) -> tuple[float | None, str]:
    if group.modality == "MG" and claim.mammography is None:
        return None, "mammograms stay lossless unless somebody overrides that by name"
    if group.body_part is None:
        return None, (
            "the headers name no body part, and what is approved must say for which; add "
            "--body-part NAME where all these images show the same"
        )
    if guideline is None or supported is None or supported <= guideline.highest_ratio:
        return supported, why
    if math.isclose(guideline.highest_ratio, LOSSLESS):
        return None, f"{guideline.body} accepts no irreversible compression"
    within = [ratio for ratio in ratios if ratio <= guideline.highest_ratio]
    words = f"{guideline.body} accepts {guideline.highest_ratio:g}:1 at most"
    if not within:
        return None, f"{words}, and no ratio so low was studied"
    return max(within), words
