"""The audit record: what was judged and signed, added once, chained, never changed.

SQLite by default, PostgreSQL by URL. Triggers in the database refuse to change or delete a row.
Its owner can drop them; then the hash chain shows that, and a signed checkpoint kept elsewhere
shows even a chain that was made anew (`medqa.audit.verification`).
"""

from medqa.audit.chain import Entry, canonical_json
from medqa.audit.checkpoints import Checkpoint
from medqa.audit.exports import export
from medqa.audit.keys import pseudonym
from medqa.audit.signatures import History, Meaning, Signature, histories, sign
from medqa.audit.store import Store
from medqa.audit.verification import Fault, Verification, verify

__all__ = [
    "Checkpoint",
    "Entry",
    "Fault",
    "History",
    "Meaning",
    "Signature",
    "Store",
    "Verification",
    "canonical_json",
    "export",
    "histories",
    "pseudonym",
    "sign",
    "verify",
]
