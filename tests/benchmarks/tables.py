"""Tables that a benchmark prints, and writes into a page of the documentation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; `notes` stand below it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default=())

    def markdown(self) -> str:
        lines = [
            f"**{self.title}**",
            "",
            f"| {' | '.join(self.header)} |",
            f"|{' --- |' * len(self.header)}",
            *(f"| {' | '.join(row)} |" for row in self.rows),
        ]
        return "\n".join([*lines, *([""] if self.notes else []), *(f"- {n}" for n in self.notes)])

    def show(self, console: Console) -> None:
        table = RichTable()
        for index, name in enumerate(self.header):
            table.add_column(escape(name), justify="left" if index < 2 else "right")
        for row in self.rows:
            table.add_row(*map(escape, row))
        console.print(f"\n{self.title}", markup=False)
        console.print(table)
        for note in self.notes:
            console.print(f"- {note}", markup=False)


def publish(name: str, heading: str, tables: Sequence[Table], page: Path | None) -> None:
    """Print tables, and put them between the markers of that name on a page."""
    console = Console(width=180)
    console.print(heading, markup=False)
    for table in tables:
        table.show(console)
    if page is None:
        return
    first, last = f"<!-- {name}: made by tests/benchmarks/{name}.py -->", f"<!-- {name}: end -->"
    text = page.read_text("utf-8")
    if text.count(first) != 1 or text.count(last) != 1:
        raise SystemExit(f"{page} does not hold once each: {first} {last}")
    before, rest = text.split(first)
    _, after = rest.split(last)
    parts = [first, heading, *(table.markdown() for table in tables), last]
    page.write_text(before + "\n\n".join(parts) + after, "utf-8")
