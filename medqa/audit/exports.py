"""Export: the chain with its assessments, one flat row for each entry, text as it is stored."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from medqa.audit.chain import SEARCH_COLUMNS
from medqa.audit.files import new_file
from medqa.audit.journal import Stored, chain
from medqa.audit.store import Store
from medqa.audit.tables import entries

__all__ = ["Format", "export"]

Format = Literal["jsonl", "csv", "parquet"]
_NUMBERS = {"sequence": "int64", "assessment_sequence": "int64", "base_lpips_score": "float64"}
_SEARCH = tuple(name for name in SEARCH_COLUMNS if name not in ("sequence", "assessment_id"))
#: The entry's columns; then the assessment's, without the id that the entry has too.
COLUMNS = (
    *(column.name for column in entries.c),
    "assessment_sequence",
    *_SEARCH,
    "record",
)
_BATCH = 500


def export(store: Store, file: Path, form: Format, since: str | None = None) -> int:
    """Write the chain to a new file, a row for each entry; the file is whole or not there.

    Parameters
    ----------
    form
        JSON Lines, CSV or Parquet, in UTF-8. `body` and `record` are JSON as text, just as they
        are stored, so that digests can be computed anew.
    since
        Only what was recorded at this time or later, written as `Entry.recorded_at` is.

    Returns
    -------
    How many entries were written.

    Raises
    ------
    StoreError
        The database cannot be read, or the file is there already or cannot be written.
    """
    write = {"jsonl": _write_jsonl, "csv": _write_csv, "parquet": _write_parquet}[form]
    with store.reading() as connection, new_file(file) as temporary:
        return write(temporary, map(_flat, chain(connection, since)))


def _flat(stored: Stored) -> dict[str, Any]:
    columns = stored.columns
    return {
        **vars(stored.entry),
        "assessment_sequence": columns["sequence"],
        **{name: columns[name] for name in _SEARCH},
        "record": stored.record,
    }


def _write_jsonl(file: Path, flat: Iterator[dict[str, Any]]) -> int:
    count = 0
    with file.open("w", encoding="utf-8") as stream:
        for count, one in enumerate(flat, start=1):  # noqa: B007
            stream.write(json.dumps(one, ensure_ascii=False) + "\n")
    return count


def _write_csv(file: Path, flat: Iterator[dict[str, Any]]) -> int:
    count = 0
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        for count, one in enumerate(flat, start=1):  # noqa: B007
            writer.writerow(one)
    return count


def _write_parquet(file: Path, flat: Iterator[dict[str, Any]]) -> int:
    import pyarrow  # here: it takes a while
    from pyarrow import parquet

    schema = pyarrow.schema(
        [(name, getattr(pyarrow, _NUMBERS.get(name, "string"))()) for name in COLUMNS]
    )
    count = 0
    with parquet.ParquetWriter(file, schema) as writer:
        while batch := list(islice(flat, _BATCH)):
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
            count += len(batch)
    return count
