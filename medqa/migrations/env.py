"""Run by Alembic inside the transaction that `medqa.audit` has opened; there is no alembic.ini."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
)
context.run_migrations()
