"""What the Orthanc plugin must still know after it was killed: an SQLite file in its spool."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from types import TracebackType

from medqa.assessment import Verdict
from medqa.errors import UsageError

__all__ = ["State"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cursor (since INTEGER NOT NULL);
-- Studies to look at, how often that went wrong, and when to try again, in seconds since 1970.
CREATE TABLE IF NOT EXISTS open (
    study TEXT PRIMARY KEY, failures INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL DEFAULT 0
);
-- What was in a study when it was looked at last.
CREATE TABLE IF NOT EXISTS seen (study TEXT PRIMARY KEY, content TEXT NOT NULL);
-- Studies with a derived image whose source, a SOP instance, was not in Orthanc.
CREATE TABLE IF NOT EXISTS lacking (study TEXT PRIMARY KEY, source TEXT NOT NULL);
-- Files in the spool that a study's jobs need.
CREATE TABLE IF NOT EXISTS files (study TEXT, name TEXT, PRIMARY KEY (study, name));
-- Images that jobs are about.
CREATE TABLE IF NOT EXISTS images (image TEXT PRIMARY KEY, study TEXT NOT NULL);
-- Jobs, with what became of them once the results were given back.
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY, job_id TEXT UNIQUE, study TEXT NOT NULL, image TEXT NOT NULL,
    given_back INTEGER NOT NULL DEFAULT 0, assessment_id TEXT, verdict TEXT
);
CREATE INDEX IF NOT EXISTS jobs_study ON jobs (study, given_back);
CREATE INDEX IF NOT EXISTS jobs_image ON jobs (image);
"""
_KEPT_LACKING = 500  # studies: each costs Orthanc a request whenever something new arrives


class State:
    """The plugin's own record of where it stands; for one process at a time.

    Parameters
    ----------
    file
        Made where it is missing.

    Raises
    ------
    UsageError
        Another process has it, or it cannot be written.
    """

    def __init__(self, file: Path) -> None:
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, timeout=1.0, isolation_level=None)
            # Held until it is closed: two processes would supersede each other's assessments.
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.executescript(f"BEGIN EXCLUSIVE; {_SCHEMA} COMMIT;")
        except (OSError, sqlite3.Error) as error:
            raise UsageError(
                file.parent,
                f"cannot be used ({error})",
                "stop the other medqa orthanc that uses it, or name a folder that can be written",
            ) from error

    def __enter__(self) -> State:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._db.close()

    @property
    def since(self) -> int | None:
        """Number of the last change that was read; None at the first start."""
        row = self._db.execute("SELECT since FROM cursor").fetchone()
        return None if row is None else int(row[0])

    def advance(self, since: int, studies: Iterable[str]) -> None:
        """Note up to where changes were read, and which studies are to be looked at for them."""
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.execute("DELETE FROM cursor")
            cursor.execute("INSERT INTO cursor VALUES (?)", (since,))
            cursor.executemany(
                "INSERT OR REPLACE INTO open (study) VALUES (?)", [(s,) for s in studies]
            )
            cursor.execute("COMMIT")

    def open(self) -> list[str]:
        """Return the studies to look at now."""
        query = "SELECT study FROM open WHERE due <= ? ORDER BY failures, rowid"
        return [str(row[0]) for row in self._db.execute(query, (time.time(),))]

    def reopen(self, study: str) -> None:
        """Look at a study again, whatever is known of it."""
        self._db.execute("DELETE FROM seen WHERE study = ?", (study,))
        self._db.execute("INSERT OR REPLACE INTO open (study) VALUES (?)", (study,))

    def failed(self, study: str, seconds: float) -> int:
        """Put off a study that could not be looked at; return how often that happened.

        Parameters
        ----------
        seconds
            For how long at the first time; four times as long each further time.
        """
        query = "SELECT failures FROM open WHERE study = ?"
        failures = int(self._db.execute(query, (study,)).fetchone()[0])
        self._db.execute(
            "UPDATE open SET failures = ?, due = ? WHERE study = ?",
            (failures + 1, time.time() + seconds * 4**failures, study),
        )
        return failures + 1

    def close(self, study: str, content: str | None = None, source: str | None = None) -> None:
        """Note that a study was looked at, what it held, and which source it lacks."""
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.execute("DELETE FROM open WHERE study = ?", (study,))
            cursor.execute("DELETE FROM lacking WHERE study = ?", (study,))
            if content is not None:
                cursor.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", (study, content))
            if source is not None:
                cursor.execute("INSERT INTO lacking VALUES (?, ?)", (study, source))
            cursor.execute("COMMIT")

    def seen(self, study: str) -> str | None:
        """Return what a study held when it was looked at last."""
        row = self._db.execute("SELECT content FROM seen WHERE study = ?", (study,)).fetchone()
        return None if row is None else str(row[0])

    def lacking(self) -> list[tuple[str, str]]:
        """Return the latest studies that lack a source, and which."""
        query = "SELECT study, source FROM lacking ORDER BY rowid DESC LIMIT ?"
        return list(self._db.execute(query, (_KEPT_LACKING,)))

    def need(self, study: str, names: Iterable[str]) -> None:
        """Note which files of the spool a study needs."""
        rows = [(study, name) for name in names]
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN")
            cursor.executemany("INSERT OR IGNORE INTO files VALUES (?, ?)", rows)
            cursor.execute("COMMIT")

    def spent(self) -> list[str]:
        """Return the files that no study needs which is open or has a job that may yet be done."""
        return self._column(
            "SELECT DISTINCT name FROM files WHERE name NOT IN (SELECT name FROM files WHERE "
            "study IN (SELECT study FROM open) "
            "OR study IN (SELECT study FROM jobs WHERE assessment_id IS NULL))"
        )

    def forget(self, name: str) -> None:
        """Note that a file is not in the spool any more."""
        self._db.execute("DELETE FROM files WHERE name = ?", (name,))

    def expect(self, image: str, study: str) -> None:
        """Note that there may be jobs about an image of a study."""
        self._db.execute("INSERT OR REPLACE INTO images VALUES (?, ?)", (image, study))

    def study_of(self, image: str) -> str | None:
        """Return the study of an image; None where there were no jobs about it."""
        row = self._db.execute("SELECT study FROM images WHERE image = ?", (image,)).fetchone()
        return None if row is None else str(row[0])

    def submitted(self, job_id: str, study: str, image: str) -> None:
        """Note a job, unless it is known."""
        self._db.execute(
            "INSERT OR IGNORE INTO jobs (job_id, study, image) VALUES (?, ?, ?)",
            (job_id, study, image),
        )

    def busy(self, study: str) -> bool:
        """Whether a study has a job whose results were not given back."""
        query = "SELECT 1 FROM jobs WHERE study = ? AND NOT given_back LIMIT 1"
        return self._db.execute(query, (study,)).fetchone() is not None

    def keep_jobs(self, study: str, job_ids: Iterable[str]) -> None:
        """Forget the jobs of a study that are not done and not among these."""
        kept = set(job_ids)
        query = "SELECT job_id FROM jobs WHERE study = ? AND NOT given_back"
        for job_id in self._column(query, study):
            if job_id not in kept:
                self._db.execute("DELETE FROM jobs WHERE job_id = ?", (job_id,))

    def given_back(
        self,
        job_id: str,
        study: str,
        image: str,
        assessment_id: str | None,
        verdict: Verdict | None,
    ) -> None:
        """Note that Orthanc has the results of a job."""
        self._db.execute(
            "INSERT INTO jobs (job_id, study, image, given_back, assessment_id, verdict) "
            "VALUES (?, ?, ?, 1, ?, ?) ON CONFLICT (job_id) DO UPDATE SET given_back = 1, "
            "assessment_id = excluded.assessment_id, verdict = excluded.verdict",
            (job_id, study, image, assessment_id, verdict),
        )

    def assessed(self, image: str) -> str | None:
        """Return the latest assessment of an image."""
        found = self._column(
            "SELECT assessment_id FROM jobs WHERE image = ? AND assessment_id IS NOT NULL "
            "ORDER BY number DESC LIMIT 1",
            image,
        )
        return found[0] if found else None

    def verdicts(self, series: str) -> dict[str, tuple[Verdict | None, str | None]]:
        """Return verdict and assessment of the latest job of each image of a series."""
        query = (
            "SELECT image, verdict, assessment_id FROM jobs "
            "WHERE given_back AND (image = ? OR substr(image, 1, ?) = ?) ORDER BY number"
        )
        rows = self._db.execute(query, (series, len(series) + 1, f"{series}/"))
        return {image: (verdict, assessment_id) for image, verdict, assessment_id in rows}

    def _column(self, query: str, *values: str) -> list[str]:
        return [str(row[0]) for row in self._db.execute(query, values)]
