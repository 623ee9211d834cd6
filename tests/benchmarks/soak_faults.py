"""Faults: services killed between two transfers, and in the middle of one."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, zip_longest

from soak_site import Site
from soak_traffic import Traffic
from soak_wire import Cut

__all__ = ["Act", "strike"]

MEETING_SECONDS = 45.0  # until there is something to cut
_NOBODY = "nobody"


@dataclass
class Act:
    """Something that is cut in the act.

    Parameters
    ----------
    what
        The transfer; or what a worker does.
    victim
        Who is killed: a service, storescu, or nobody: the connection is closed.
    marker, most
        What the transfer begins with, and how many bytes of it are passed on before, at most.
    passed
        Bytes passed on, at each time that it came to that.
    missed
        How often nothing came that could be cut.
    """

    what: str
    victim: str
    marker: bytes = b""
    most: int = 20_000
    passed: list[int] = field(default_factory=list)
    missed: int = 0


def in_the_act() -> list[Act]:
    """Return what is cut; two images that storescu sends have 78 kB, three results more."""
    node, web = "C-STORE to the node", "POST /assess"
    forward, back = "results to Orthanc by C-STORE", "results to Orthanc by REST"
    return [
        Act(node, "storescu", most=70_000),
        Act(forward, "Orthanc"),
        Act(back, "Orthanc", b"POST /instances", 8_000),
        Act(node, "medqa dicom-node", most=70_000),
        Act("a worker writes results", "medqa worker"),
        Act(forward, "medqa dicom-node"),
        Act(web, "medqa serve", b"POST /assess", 70_000),
        Act(node, _NOBODY, most=70_000),
        Act(back, "medqa orthanc", b"POST /instances", 8_000),
    ]


def strike(site: Site, traffic: Traffic, until: float, every: float) -> list[Act]:
    """Strike again and again, by turns between two transfers and in one; say what was cut."""
    acts = in_the_act()
    order = cycle(list(_rounds(site, traffic, acts)))
    next_at = time.monotonic() + every / 2
    while next_at < until:
        time.sleep(max(0.0, next_at - time.monotonic()))
        next(order)()
        next_at = max(next_at + every, time.monotonic()) + random.uniform(-0.2, 0.2) * every
    return acts


def _rounds(site: Site, traffic: Traffic, acts: list[Act]) -> Iterator[Callable[[], None]]:
    between = [site.services["medqa worker"].fault, site.database_fault]
    between += [one.fault for name, one in site.services.items() if name != "medqa worker"]
    for act, plain in zip_longest(acts, between):
        yield partial(_cut, site, traffic, act)
        if plain is not None:
            yield plain


def _cut(site: Site, traffic: Traffic, act: Act) -> None:
    wire = site.wires.get(act.what)
    if wire is None:
        _meet(site, act)
        return
    cut = Cut(act.marker, random.randint(1000, act.most))
    wire.arm(cut)
    try:
        if not cut.reached.wait(MEETING_SECONDS):
            act.missed += 1
            return
        act.passed.append(cut.after)
        if act.victim in site.services:
            site.services[act.victim].fault(cut.over.set)
        elif act.victim != _NOBODY and traffic.storescu is not None:
            traffic.storescu.kill()
    finally:
        wire.disarm()
        cut.over.set()


def _meet(site: Site, act: Act) -> None:
    """Kill a worker as soon as it is seen at its results."""
    end = time.monotonic() + MEETING_SECONDS
    while time.monotonic() < end:
        with suppress(OSError):  # the folder comes and goes
            if site.writes_results():
                act.passed.append(0)
                site.services[act.victim].fault()
                return
        time.sleep(0.005)
    act.missed += 1
