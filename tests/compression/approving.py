"""What the tests of approvals share: an approval, made by hand as a study would."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from medqa.assessment import MetricRef
from medqa.compression.approval import Approval, RatioEvidence, Scope, Share
from medqa.compression.codecs import CODECS, version
from medqa.thresholds import load
from medqa.weights import find


def approval(**changes: Any) -> Approval:
    """An approval of JPEG 2000 for CT, up to 10:1, unless told otherwise."""
    modality = changes.pop("modality", "CT")
    codec = changes.get("codec", "j2k")
    profile = changes.pop("profile_name", {"CT": "ct", "MR": "mr"}.get(modality, "xray"))
    weights = find("gray", None)
    values: dict[str, Any] = {
        "approval_id": str(uuid.uuid4()),
        "created_at": datetime.datetime(2026, 3, 1, tzinfo=datetime.UTC),
        "medqa_version": "0.1.0",
        "scope": Scope(modality=modality, body_part=None, devices=()),
        "codec": codec,
        "codec_version": version(CODECS[codec]),
        "highest_ratio": 10.0,
        "profile": load(profile).ref,
        "metric": MetricRef(
            backbone=weights.backbone, version=weights.version, weights_sha256=weights.sha256
        ),
        "required_share": 0.95,
        "confidence": 0.95,
        "highest_auc_loss": None,
        "evidence": (
            RatioEvidence(
                ratio=10.0,
                measured=10.02,
                share=Share(good=60, images=60, lower=0.951),
                median_distance=0.02,
                worst_distance=0.05,
            ),
        ),
        "guideline": None,
        "study_sha256": "a" * 64,
        "expires_on": datetime.date(2100, 1, 1),
        "voided_by": ("another version of the codec",),
    }
    return Approval.model_validate(values | changes)
