"""Search for the setting of a codec at which a target is met, with few streams."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["controlled", "crossing"]

#: A search ends where the settings on both sides of the target differ by less than 1 %, which
#: keeps a measure that jumps from being chased,
_SAME_SETTING = 0.01
#: or after so many streams, which halving never needs.
_STREAMS = 30
#: After so many, the rest is halved instead of cut where a line crosses the target.
_LINES = 10


def controlled(ratio: float, reached: Callable[[float], float], strongest: float) -> float | None:
    """Find the setting of a codec with rate control, which now and then stays a little short.

    Parameters
    ----------
    ratio
        To be reached; also the first setting tried.
    reached
        Logarithm of the ratio at a setting.

    Returns
    -------
    The first setting that reaches it; None where the strongest does not.
    """
    setting = ratio
    while setting <= strongest:
        short = ratio / math.exp(reached(setting))
        if short <= 1:
            return setting
        setting *= short * 1.002
    return None


def crossing(
    measure: Callable[[float], float],
    tries: dict[float, float],
    ends: tuple[float, float],
    target: float,
    aim: float,
    whole: bool,
) -> tuple[float | None, float | None]:
    """Find where a measure that rises with strength reaches ``target``.

    Parameters
    ----------
    measure
        Of a setting.
    tries
        What it gave before, by setting; what it gives now is added.
    ends
        Gentlest and strongest setting, positive.
    target, aim
        The search ends early at a value that lies on the same side of the target as ``aim`` and at
        most twice as far.
    whole
        Settings are whole numbers; then the two that are returned are neighbours.

    Returns
    -------
    The strongest setting below the target and the gentlest one that reaches it; None where there
    is none between the ends.
    """
    gentlest, strongest = ends
    forward = 1 if strongest > gentlest else -1
    room = abs(aim - target)
    stuck = 0  # so many tries in a row beyond the target; below it, if negative
    for turn in range(_STREAMS):
        order = sorted(tries, key=lambda one: forward * one)
        beyond = next((n for n, one in enumerate(order) if tries[one] >= target), len(order))
        before = order[beyond - 1] if beyond else None
        after = order[beyond] if beyond < len(order) else None
        near = [one for one in (before, after) if one is not None]
        if not whole and any(abs(tries[one] - aim) <= room for one in near):
            break
        if before is None:
            if after == gentlest:
                break
            guess = gentlest
        elif after is None:
            if before == strongest:
                break
            guess = strongest
        else:
            part = _part(tries[before] - aim, tries[after] - aim, stuck) if turn < _LINES else 0.5
            guess = before * (after / before) ** part
            if whole:
                low, high = sorted((before, after))
                guess = min(max(round(guess), low + 1), high - 1)
            if abs(after - before) <= (1 if whole else _SAME_SETTING * before):
                break
        tries[guess] = measure(guess)
        side = 1 if tries[guess] >= target else -1
        stuck = stuck + side if stuck * side > 0 else side
    return before, after


def _part(low: float, high: float, stuck: int) -> float:
    """How far from one setting to the other the target lies, and never quite at either.

    On the line through the two measures, given here as what they differ by from what is wanted. Of
    a curve that bends, lines close in from one side only; so what stays at the other side counts
    for less and less (the Illinois method, doi:10.1007/BF01934364).
    """
    if not math.isfinite(high - low) or high <= low:
        return 0.5
    weight = 0.5 ** max(0, abs(stuck) - 1)
    low, high = (weight * low, high) if stuck > 0 else (low, weight * high)
    return min(max(low / (low - high), 0.02), 0.98)
