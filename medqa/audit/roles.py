"""Roles of PostgreSQL: the rights that readers, services and reviewers need, and no more."""

from __future__ import annotations

__all__ = ["grants"]


def grants(reader: str, writer: str, reviewer: str) -> str:
    """Return the SQL that gives three roles their rights; the owner of the tables runs it.

    Parameters
    ----------
    reader
        Lists, shows, verifies and exports.
    writer
        Adds assessments and drafts of approvals too: the role of services.
    reviewer
        Adds them and signs them.
    """
    read, write, review = (_quoted(role) for role in (reader, writer, reviewer))
    return f"""\
GRANT SELECT ON assessments, audit_entries, medqa_schema_version TO {read}, {write}, {review};
GRANT INSERT ON assessments, audit_entries TO {write}, {review};
GRANT SELECT ON jobs TO {read};
GRANT SELECT, INSERT, UPDATE, DELETE ON jobs TO {write}, {review};
ALTER TABLE audit_entries ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS medqa_read ON audit_entries;
DROP POLICY IF EXISTS medqa_write ON audit_entries;
DROP POLICY IF EXISTS medqa_review ON audit_entries;
CREATE POLICY medqa_read ON audit_entries FOR SELECT USING (true);
CREATE POLICY medqa_write ON audit_entries FOR INSERT TO {write}
    WITH CHECK (kind IN ('assessment', 'quality', 'approval'));
CREATE POLICY medqa_review ON audit_entries FOR INSERT TO {review}
    WITH CHECK (kind IN ('assessment', 'signature', 'quality', 'approval'));
"""


def _quoted(role: str) -> str:
    return '"' + role.replace('"', '""') + '"'
