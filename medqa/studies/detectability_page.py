"""The page of a study of detectability: one HTML file that needs nothing but itself."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from medqa._version import __version__
from medqa.compression.codecs import Codec, version
from medqa.pages import templates
from medqa.studies.compression.lesions import TELLING
from medqa.studies.detectability_examples import Examples
from medqa.studies.detectability_study import AtRatio
from medqa.studies.intervals import Estimate
from medqa.studies.observer import Channels
from medqa.studies.signals import Signal

__all__ = ["Asked", "page", "record"]

_WIDTH, _HEIGHT = 640, 300  # of the drawing in its own units
_STEP = 0.1  # of the axis of the AUC
_CHANCE = 0.5


@dataclass(frozen=True)
class Asked:
    """What was looked for, in what, by whom.

    Parameters
    ----------
    codec
        What compressed.
    signal
        The lesion; its contrast in `unit`.
    channels
        What the observer saw through.
    images, slices
        How many images, and slices of each at most.
    seed
        Of the places.
    unit
        Of the images.
    """

    codec: Codec
    signal: Signal
    channels: Channels
    images: int
    slices: int
    seed: int
    unit: str

    @property
    def lesion(self) -> str:
        """The lesion in words."""
        unit = f" {self.unit}" if self.unit != "arbitrary" else ""
        shape = "Gaussians" if self.signal.shape == "gaussian" else "discs"
        return f"{shape} {self.signal.diameter:g} mm wide, {self.signal.contrast:+g}{unit}"


@dataclass(frozen=True)
class _Drawing:
    """The AUC by ratio, whose axis is logarithmic, in the units of the drawing."""

    first: float
    last: float
    lowest: float

    def x(self, ratio: float) -> float:
        # A single ratio stands in the middle.
        span = math.log(self.last / self.first) or 1.0
        share = math.log(ratio / self.first) / span if self.last > self.first else 0.5
        return round(_WIDTH * (0.06 + 0.88 * share), 1)

    def y(self, auc: float) -> float:
        return round(_HEIGHT * (1.0 - (auc - self.lowest) / (1.0 - self.lowest)), 1)

    @property
    def ticks(self) -> list[float]:
        steps = round((1.0 - self.lowest) / _STEP)
        return [1.0 - _STEP * step for step in range(steps + 1)]


def page(asked: Asked, found: Sequence[AtRatio], examples: Examples | None) -> bytes:
    """HTML of the page; it names no image, no patient and no file.

    Parameters
    ----------
    found
        By ratio, ascending; at least one.
    examples
        None where the slice to be shown has no room for a lesion.
    """
    ends = [
        end
        for at in found
        for one in (at.found.before, at.found.after)
        for end in (one.value, one.low)
        if end is not None
    ]
    lowest = _STEP * math.floor(min(_CHANCE, *ends) / _STEP + 1e-9)
    drawing = _Drawing(found[0].ratio, found[-1].ratio, max(0.0, lowest))
    before = found[0].found
    return (
        templates()
        .get_template("detectability.html")
        .render(
            asked=asked,
            found=found,
            one=before,
            drawing=drawing,
            curve=" ".join(
                f"{drawing.x(at.ratio)},{drawing.y(at.found.after.value)}" for at in found
            ),
            said=[_said(at.found.loss) for at in found],
            first_loss=next((at for at in found if (at.found.loss.low or 0.0) > 0.0), None),
            caution=_caution(before.before.value),
            words=_words,
            signed=_signed,
            examples=examples,
            codec_version=version(asked.codec),
            width=_WIDTH,
            height=_HEIGHT,
            medqa_version=__version__,
        )
        .encode()
    )


def record(asked: Asked, found: Sequence[AtRatio]) -> bytes:
    """Figures and how they were found, as JSON."""
    content = {
        "medqa_version": __version__,
        "codec": asked.codec.name,
        "codec_version": version(asked.codec),
        "lesion": asdict(asked.signal),
        "channels": asked.channels,
        "seed": asked.seed,
        "ratios": [asdict(at) for at in found],
    }
    return json.dumps(content, indent=2).encode()


def _caution(before: float) -> str:
    if before > TELLING[1]:
        return "The lesion is so plain that little could be lost: take a fainter one."
    if before < TELLING[0]:
        return "The lesion is so faint that there is little to lose: take a plainer one."
    return ""


def _said(loss: Estimate) -> str:
    if loss.low is None or loss.high is None:
        return "not known"
    if loss.low > 0.0:
        return "less is found"
    return f"no loss is shown; it is at most {max(loss.high, 0.0):.3f}"


def _words(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return f"{one.value:.3f}"
    return f"{one.value:.3f} ({one.low:.3f} to {one.high:.3f})"


def _signed(one: Estimate) -> str:
    if one.low is None or one.high is None:
        return f"{one.value:+.3f}"
    return f"{one.value:+.3f} ({one.low:+.3f} to {one.high:+.3f})"
