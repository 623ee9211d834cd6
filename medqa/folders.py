"""Two folders of images: which pairs to assess, and their assessments one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medqa.assessment import Assessment, Job
from medqa.catalogue import Catalogue, Entry, look, select, series_words
from medqa.errors import MedqaError, NotAssessableError, UsageError
from medqa.pairing import Pair, Pairing, pair
from medqa.report import IndexRow, Thumbs, index, thumbs, write

__all__ = [
    "Choice",
    "Given",
    "Judged",
    "as_record",
    "assess_pairs",
    "choose",
    "label",
    "leftover",
    "write_index",
]

Given = str | tuple[str, ...]
"""What `Job` takes for an image: a path, or the files of one image."""

# Without a verdict comes first: nobody knows how bad it is.
_WORST_FIRST = ("not_assessable", "unsuitable", "expert_review", "diagnostic")


@dataclass(frozen=True)
class Choice:
    """What to compare.

    Parameters
    ----------
    given
        Reference and candidate of each comparison.
    pairing
        Where they come from, and what is left over; None where there was nothing to find.
    refused
        Files of the two folders that should be images and are not.
    """

    given: tuple[tuple[Given, Given], ...]
    pairing: Pairing | None = None
    refused: tuple[MedqaError, ...] = ()


@dataclass(frozen=True)
class Judged:
    """What became of a pair.

    Parameters
    ----------
    pair
        The images.
    assessment
        Their record, without pictures.
    failure
        Why it is not assessable, where it is not.
    small
        Its worst slice in small pictures.
    """

    pair: Pair
    assessment: Assessment
    failure: NotAssessableError | None = None
    small: Thumbs | None = None


def choose(reference: str, candidate: str, series: str | None = None) -> Choice:
    """Find out which images to compare.

    Two paths stand for themselves unless they are folders that hold several images: then the
    images are paired. Where each side holds one image these two are meant, whatever their headers
    say; NIfTI files beside DICOM images do not count for that, they are masks more often.

    Parameters
    ----------
    reference, candidate
        Files or folders.
    series
        The series of the reference to take, as `medqa.catalogue.select` knows it.

    Raises
    ------
    UsageError
        What belongs together is ambiguous, or nothing does: nothing is to be assessed.
    ReadError
        A folder cannot be read, the series is not in it, or one may be damaged where it is chosen.
    """
    if not Path(reference).is_dir():
        if series is not None:
            raise UsageError(reference, "is not a folder to choose a series of", "leave it out")
        return Choice(((reference, candidate),))
    ours = look(reference)
    wanted = None if series is None else select(ours, series)
    theirs = look(candidate) if Path(candidate).is_dir() else None
    refused = (*ours.refused, *(theirs.refused if theirs else ()))
    if wanted is not None and refused:
        raise refused[0]  # it may be a slice of the series
    mine = wanted or _only(ours)
    if theirs is None:
        return Choice(((reference if wanted is None else _files(wanted), candidate),))
    its = _only(theirs)
    if mine and its:
        return Choice(((_files(mine), _files(its)),))
    if not theirs.entries or not ours.entries:
        return Choice(((reference, candidate),))  # reading them says what is wrong
    found = pair(ours, theirs)
    if wanted is not None:
        found = _of(found, wanted)
    if found.ambiguous:
        reason = f"cannot be paired: {_words(found)}"
        mend = "see which with medqa pair, and assess the right ones file by file"
        raise UsageError(candidate, reason, mend)
    if not found.pairs:
        mend = "see medqa pair; two single images can be given as files"
        raise UsageError(candidate, "holds no candidate for any reference", mend)
    given = tuple((_files(one.reference), _files(one.candidate)) for one in found.pairs)
    return Choice(given, found, refused)


def _only(catalogue: Catalogue) -> Entry | None:
    """Return the one image of a folder, if it holds one and nothing that is damaged."""
    dicom = [one for one in catalogue.entries if one.kind == "dicom"]
    images = dicom or catalogue.entries
    return images[0] if len(images) == 1 and not catalogue.refused else None


def _files(entry: Entry) -> tuple[str, ...]:
    return tuple(map(str, entry.paths))


def _of(found: Pairing, wanted: Entry) -> Pairing:
    """Keep what a pairing says of one reference."""
    return Pairing(
        pairs=tuple(one for one in found.pairs if one.reference == wanted),
        missing=tuple(one for one in found.missing if one == wanted),
        ambiguous=tuple(one for one in found.ambiguous if wanted in one.references),
    )


def _words(found: Pairing) -> str:
    group = found.ambiguous[0]
    ours, theirs = len(group.references), len(group.candidates)
    return (
        f"{ours} reference{'s' if ours > 1 else ''} and {theirs} "
        f"candidate{'s' if theirs > 1 else ''} belong together by {group.rule}"
    )


def label(entry: Entry) -> str:
    """Name an image as its user does: by its file, or by the series and where its files lie."""
    if len(entry.names) == 1:
        return entry.names[0]
    folder = entry.names[0].rpartition("/")[0]
    return f"{series_words(entry)}{f' in {folder}' if folder else ''}"


def leftover(pairing: Pairing, refused: Iterable[MedqaError]) -> list[str]:
    """Return a line for each image that is in no pair, or only partly, and each damaged file."""
    lines = []
    for one in pairing.pairs:
        if one.short_by:
            names = f": {', '.join(one.lacking)}" if one.lacking else ""
            lines.append(
                f"{label(one.reference)}: {one.short_by} slices lack in the candidate{names}"
            )
    lines += [f"{label(one)}: no candidate" for one in pairing.missing]
    lines += [f"{label(one)}: no reference" for one in pairing.unmatched]
    for group in pairing.ambiguous:
        ours, theirs = (
            " and ".join(map(label, some)) for some in (group.references, group.candidates)
        )
        lines.append(f"{ours}: ambiguous by {group.rule}, with {theirs}")
    return lines + [str(error) for error in refused]


def as_record(found: Pairing, refused: Iterable[MedqaError] = ()) -> dict[str, Any]:
    """Pairing as JSON can hold it; images by their files below the folder, without identifiers."""

    def image(one: Entry) -> dict[str, Any]:
        return {
            "files": list(one.names),
            "modality": one.modality,
            "series_number": one.series_number,
            "slices": one.grid.slices,
        }

    return {
        "pairs": [
            {
                "reference": image(one.reference),
                "candidate": image(one.candidate),
                "rule": one.rule,
                "slices_lacking": one.short_by,
                "files_lacking": list(one.lacking),
            }
            for one in found.pairs
        ],
        "missing": [image(one) for one in found.missing],
        "unmatched": [image(one) for one in found.unmatched],
        "ambiguous": [
            {
                "references": [image(one) for one in group.references],
                "candidates": [image(one) for one in group.candidates],
                "rule": group.rule,
            }
            for group in found.ambiguous
        ],
        "refused": [{"file": one.subject, "reason": one.reason} for one in refused],
    }


def assess_pairs(
    jobs: Sequence[Job],
    pairs: Sequence[Pair],
    run: Callable[[Job], Assessment],
    out: Path | None = None,
) -> Iterator[Judged]:
    """Assess one pair after another.

    Parameters
    ----------
    jobs, pairs
        In the same order.
    run
        Does a job.
    out
        Where the reports go: into ``001``, ``002`` and so on.

    Yields
    ------
    Each as soon as it is judged. Its pictures are kept small: of many pairs they would not fit into
    memory.
    """
    for number, (job, one) in enumerate(zip(jobs, pairs, strict=True), start=1):
        assessment = run(job)
        small = None
        if out is not None:
            write(assessment, out / f"{number:03d}")
            small = thumbs(assessment)
        kept = Assessment.model_validate(assessment.model_dump())
        yield Judged(one, kept, assessment.failure, small)


def write_index(judged: Sequence[Judged], out: Path) -> Path:
    """Write ``index.html``: the verdicts, worst first, with a link to each report.

    It names series, but no file: file names may name patients.
    """
    numbered = list(enumerate(judged, start=1))
    numbered.sort(
        key=lambda one: (
            _WORST_FIRST.index(one[1].assessment.verdict),
            -(one[1].assessment.base_lpips_score or 0.0),
        )
    )
    rows = [
        IndexRow(
            label=f"paired by {one.pair.rule}",
            group=f"Pair {number}: {series_words(one.pair.reference)}",
            assessment=one.assessment,
            report=f"{number:03d}/report.html",
            small=one.small,
        )
        for number, one in numbered
    ]
    introduction = "Pairs of images from two folders, the worst first."
    return index(rows, out / "index.html", introduction=introduction)
