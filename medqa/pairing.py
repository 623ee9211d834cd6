"""Which candidate belongs to which reference: the images of two folders, paired by their headers.

`RULES` are asked one after another, the surest first. A rule pairs two images only where each is
the other's only match; what has several is narrowed down by the rules that follow, or stays
ambiguous. Nothing is guessed, and nothing is left out: each image is in a pair, ambiguous,
missing or unmatched.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from medqa.catalogue import Catalogue, Entry, Grid

__all__ = ["RULES", "Ambiguity", "Pair", "Pairing", "Rule", "pair"]

# Fractions of the finer pixel spacing by which positions may differ, as the grids of
# `medqa.image.voxels_apart`; and what direction cosines and spacings may differ by.
_SAME_PLACE = 0.1
_SAME_DIRECTION = 1e-3
_SAME_SPACING = 1e-3
_ENDS = (".nii.gz", ".nii", ".hdr", ".img", ".dcm", ".dicom", ".ima")


@dataclass(frozen=True)
class Pair:
    """A reference and the candidate that belongs to it.

    Parameters
    ----------
    reference, candidate
        The images.
    rule
        Name of the rule that paired them.
    lacking
        Files of the reference that nothing in the candidate answers to, where the candidate has
        fewer slices: as below the folder.
    """

    reference: Entry
    candidate: Entry
    rule: str
    lacking: tuple[str, ...] = ()

    @property
    def short_by(self) -> int:
        """How many slices the candidate has fewer than the reference."""
        return max(0, self.reference.grid.slices - self.candidate.grid.slices)


@dataclass(frozen=True)
class Ambiguity:
    """References and candidates that a rule brings together, without saying which are pairs."""

    references: tuple[Entry, ...]
    candidates: tuple[Entry, ...]
    rule: str


@dataclass(frozen=True)
class Pairing:
    """What became of all the images of two folders.

    Parameters
    ----------
    pairs
        In the order of the references.
    missing
        References without a candidate.
    unmatched
        Candidates without a reference.
    ambiguous
        Where several belong together.
    """

    pairs: tuple[Pair, ...]
    missing: tuple[Entry, ...] = ()
    unmatched: tuple[Entry, ...] = ()
    ambiguous: tuple[Ambiguity, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every image is in a pair, and no candidate has fewer slices."""
        return not (
            self.missing
            or self.unmatched
            or self.ambiguous
            or any(one.short_by for one in self.pairs)
        )


Keys = Callable[[Entry], Iterable[Hashable]]


@dataclass(frozen=True)
class Rule:
    """What brings a reference and a candidate together.

    Parameters
    ----------
    name
        What they have in common, in words.
    of_reference, of_candidate
        They match where they share one of these keys,
    holds
        and this is true of them.
    rival
        Keys of a reference that put a match with another reference in doubt, without being one.
    """

    name: str
    of_reference: Keys
    of_candidate: Keys
    holds: Callable[[Entry, Entry], bool]
    rival: Keys | None = None


def _compatible(reference: Entry, candidate: Entry) -> bool:
    """Nothing says that they show different things: modality, frame of reference, orientation."""

    def differ(one: str | None, other: str | None) -> bool:
        return bool(one and other and one != other)

    if differ(reference.modality, candidate.modality):
        return False
    # Of a copy in another study, this is new too.
    if reference.study_uid == candidate.study_uid and differ(
        reference.frame_of_reference_uid, candidate.frame_of_reference_uid
    ):
        return False
    mine, its = reference.grid.cosines, candidate.grid.cosines
    return mine is None or its is None or _close(mine, its, _SAME_DIRECTION)


def _same_grid(reference: Entry, candidate: Entry) -> bool:
    """Whether they have the same pixels at the same places; unknown places are not the same."""
    one, other = reference.grid, candidate.grid
    return one.slices == other.slices and bool(one.positions_mm) and _overlap(reference, candidate)


def _overlap(reference: Entry, candidate: Entry) -> bool:
    """Whether the slices of one are all among those of the other, as far as places are known."""
    one, other = reference.grid, candidate.grid
    if (one.rows, one.columns) != (other.rows, other.columns):
        return False
    if not _compatible(reference, candidate):
        return False
    if (one.spacing_mm is None) != (other.spacing_mm is None):
        return False
    if one.spacing_mm and other.spacing_mm:
        ratio = np.divide(one.spacing_mm, other.spacing_mm)
        if np.abs(ratio - 1).max() > _SAME_SPACING:
            return False
    if one.positions_mm is None or other.positions_mm is None:
        return one.positions_mm is other.positions_mm
    fewer, more = sorted((one, other), key=lambda grid: grid.slices)
    return _among(fewer, more)


def _among(fewer: Grid, more: Grid) -> bool:
    """Whether each slice of a grid lies where one of the other lies."""
    apart = _SAME_PLACE * min(fewer.spacing_mm or (1.0,))
    mine, its = np.array(fewer.positions_mm), np.array(more.positions_mm)
    if len(mine) == len(its):  # both are sorted along the normal
        return _close(mine, its, apart)
    return all(float(np.abs(its - place).max(axis=1).min()) <= apart for place in mine)


def _close(one: ArrayLike, other: ArrayLike, tolerance: float) -> bool:
    return bool(np.abs(np.subtract(one, other)).max() <= tolerance)


def _anything(_reference: Entry, _candidate: Entry) -> bool:
    return True


def _instances(entry: Entry) -> Iterable[Hashable]:
    return (uid for uid in entry.instances if uid)


def _sources(entry: Entry) -> Iterable[Hashable]:
    return entry.sources


def _related(entry: Entry) -> Iterable[Hashable]:
    return entry.related


def _numbered(entry: Entry) -> Iterator[Hashable]:
    """Study, series and instance numbers: what a copy with new instance UIDs keeps."""
    if entry.study_uid is None:
        return
    for series in (entry.series_uid, entry.series_number):
        if series is not None:
            for number in entry.instance_numbers:
                if number is not None:
                    yield entry.study_uid, series, number


def _placed(entry: Entry) -> Iterator[Hashable]:
    if entry.study_uid and entry.frame_of_reference_uid and entry.grid.positions_mm:
        yield entry.study_uid, entry.frame_of_reference_uid


def _named(entry: Entry) -> Iterable[Hashable]:
    return map(_stem, entry.names)


def _stem(name: str) -> str:
    """Path below the folder without the ending that tells the format."""
    end = next((end for end in _ENDS if name.lower().endswith(end)), "")
    return name[: len(name) - len(end)]


def _described(reference: Entry, candidate: Entry) -> bool:
    """Whether they have one grid, and the description goes on from the reference's."""
    begins, whole = reference.description, candidate.description
    if not (begins and whole and whole.casefold().startswith(begins.casefold())):
        return False
    return _same_grid(reference, candidate)


RULES = (
    Rule("same SOP instances", _instances, _instances, _anything),
    # A copy of a derived image may still name what that was derived from: a rival.
    Rule("source image sequence", _instances, _sources, _compatible, rival=_sources),
    Rule("referenced instances", _instances, _related, _same_grid),
    Rule("series and instance numbers", _numbered, _numbered, _overlap),
    Rule("geometry and series description", _placed, _placed, _described),
    Rule("geometry", _placed, _placed, _same_grid),
    Rule("file name", _named, _named, _compatible),
)
"""In the order in which they are asked."""


class _Edge(NamedTuple):
    """A match by the indices of a reference and a candidate; a doubt makes no pair."""

    reference: int
    candidate: int
    doubt: bool = False


def pair(references: Catalogue, candidates: Catalogue) -> Pairing:
    """Find which candidate belongs to which reference.

    Parameters
    ----------
    references, candidates
        What two folders hold, as `medqa.catalogue.look` returns it.

    Returns
    -------
    Each entry of both in one place: a partial one-to-one map and what is left over. It does not
    depend on the order of the entries.
    """
    ours, theirs = _ordered(references), _ordered(candidates)
    search = _Search()
    for rule in RULES:
        search.ask(rule.name, _matches(rule, ours, theirs))
    pairs = [
        _paired(ours[i], theirs[j], rule) for i, (j, rule) in sorted(search.candidate_of.items())
    ]
    groups = search.ambiguous()
    left = (
        {i for group, _, _ in groups for i in group},
        {j for _, group, _ in groups for j in group},
    )
    return Pairing(
        pairs=tuple(pairs),
        missing=tuple(
            one for i, one in enumerate(ours) if i not in search.candidate_of and i not in left[0]
        ),
        unmatched=tuple(
            one for j, one in enumerate(theirs) if j not in search.reference_of and j not in left[1]
        ),
        ambiguous=tuple(
            Ambiguity(tuple(ours[i] for i in some), tuple(theirs[j] for j in others), rule)
            for some, others, rule in groups
        ),
    )


def _ordered(catalogue: Catalogue) -> list[Entry]:
    return sorted(catalogue.entries, key=lambda one: one.names)


def _matches(rule: Rule, ours: Sequence[Entry], theirs: Sequence[Entry]) -> set[_Edge]:
    """Every match of a rule."""

    def shared(keys: Keys) -> set[tuple[int, int]]:
        by_key: dict[Hashable, set[int]] = {}
        for i, one in enumerate(ours):
            for key in keys(one):
                by_key.setdefault(key, set()).add(i)
        found = {
            (i, j)
            for j, one in enumerate(theirs)
            for key in rule.of_candidate(one)
            for i in by_key.get(key, ())
        }
        return {(i, j) for i, j in found if rule.holds(ours[i], theirs[j])}

    direct = shared(rule.of_reference)
    matched = {j for _, j in direct}
    doubts = shared(rule.rival) - direct if rule.rival else set()
    return {_Edge(i, j) for i, j in direct} | {
        _Edge(i, j, doubt=True) for i, j in doubts if j in matched
    }


class _Search:
    """What the rules asked so far have found."""

    def __init__(self) -> None:
        self.candidate_of: dict[int, tuple[int, str]] = {}
        self.reference_of: dict[int, int] = {}
        # What an ambiguous image may still be paired with; nothing, where no rule can tell.
        self._of_reference: dict[int, set[int]] = {}
        self._of_candidate: dict[int, set[int]] = {}
        self._open: dict[tuple[int, int], str] = {}

    def ask(self, rule: str, edges: Collection[_Edge]) -> None:
        """Pair what matches one to one, and narrow down the rest."""
        edges = [edge for edge in edges if self._allowed(edge)]
        of_reference: dict[int, set[int]] = {}
        of_candidate: dict[int, set[int]] = {}
        for i, j, _ in edges:
            of_reference.setdefault(i, set()).add(j)
            of_candidate.setdefault(j, set()).add(i)
        doubted = {j for _, j, doubt in edges if doubt}
        single = {(i, j) for i, j, _ in edges if len(of_reference[i]) == len(of_candidate[j]) == 1}
        for i, j, doubt in edges:
            if (i, j) in single and not doubt and self._free(i, j):
                self.candidate_of[i], self.reference_of[j] = (j, rule), i
        for i, j, _ in edges:
            if (i, j) not in single and self._free(i, j):
                self._open.setdefault((i, j), rule)
        for i, several in of_reference.items():
            if len(several) > 1:
                # Where each of several candidates has this reference only, all are its own.
                all_its_own = all(len(of_candidate[j]) == 1 for j in several)
                self._of_reference[i] = set() if all_its_own else several
        for j, several in of_candidate.items():
            if len(several) > 1:
                all_its_own = all(len(of_reference[i]) == 1 for i in several) and j not in doubted
                self._of_candidate[j] = set() if all_its_own else several

    def _free(self, i: int, j: int) -> bool:
        return i not in self.candidate_of and j not in self.reference_of

    def _allowed(self, edge: _Edge) -> bool:
        i, j, _ = edge
        if i in self._of_reference and j not in self._of_reference[i]:
            return False
        return j not in self._of_candidate or i in self._of_candidate[j]

    def ambiguous(self) -> list[tuple[list[int], list[int], str]]:
        """Return what belongs together and is in no pair, with the rule that says so."""
        left = {edge: rule for edge, rule in self._open.items() if self._free(*edge)}
        groups = []
        while left:
            (i, j), rule = min(left.items())
            some, others, grown = {i}, {j}, True
            while grown:
                grown = False
                for a, b in left:
                    if (a in some) != (b in others):
                        some.add(a)
                        others.add(b)
                        grown = True
            groups.append((sorted(some), sorted(others), rule))
            left = {edge: rule for edge, rule in left.items() if edge[0] not in some}
        return groups


def _paired(reference: Entry, candidate: Entry, rule: str) -> Pair:
    """Make a pair, and name the files of the reference that nothing answers to."""
    one = Pair(reference, candidate, rule)
    if not one.short_by or len(reference.paths) == 1:
        return one
    uids = {*candidate.instances, *candidate.sources}
    if uids & set(reference.instances):
        answered = [uid in uids for uid in reference.instances]
    elif rule == "file name":
        answered = [_stem(name) in set(_named(candidate)) for name in reference.names]
    else:
        answered = [number in candidate.instance_numbers for number in reference.instance_numbers]
    names = zip(reference.names, answered, strict=True)
    return Pair(reference, candidate, rule, tuple(name for name, found in names if not found))
