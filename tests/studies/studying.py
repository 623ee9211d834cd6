"""What the tests of calibration share: tables of judgments, and images without a file."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medqa.studies.readers import JudgedImage

Row = Mapping[str, object]


def write_table(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def simulated_rows(
    images: int, *, readers: int = 3, scores: bool = False, seed: int = 5, per_patient: int = 1
) -> list[dict[str, object]]:
    """Readers who see a severity with scatter; the distance follows it with scatter too."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, object]] = []
    for number in range(images):
        severity = rng.standard_normal()
        distance = round(float(np.exp(-3.2 + 0.9 * severity + 0.3 * rng.standard_normal())), 4)
        for reader in range(readers):
            seen = severity + 0.3 * rng.standard_normal()
            judgment = "reject" if seen > 0.2 else "accept"
            score = int(np.clip(np.rint(3 - 1.2 * seen), 1, 5))
            rows.append(
                {
                    "image": f"image {number}",
                    "reader": f"reader {reader + 1}",
                    "judgment": score if scores else judgment,
                    "distance": distance,
                    "edge_fidelity": round(1 - 0.5 * distance, 4),
                    "patient": f"patient {number // per_patient}",
                    "modality": "CT",
                    "body_part": ("HEAD", "CHEST")[number % 2],
                    "network": "alex",
                }
            )
    return rows


def judged(
    values: Sequence[float], unacceptable: Sequence[bool], measure: str = "distance"
) -> tuple[JudgedImage, ...]:
    return tuple(
        JudgedImage({measure: value}, {"r": int(not bad)}, bad, str(number))
        for number, (value, bad) in enumerate(zip(values, unacceptable, strict=True))
    )
