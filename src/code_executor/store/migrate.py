"""Bring a database to the present schema, in one transaction.

The steps are the Alembic scripts in ``migrations/versions``, shipped in the package. The caller
holds the write lock, so two programs that start together on one database take turns, and the
second finds nothing to do.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from code_executor.errors import HostUnfit

_SCRIPTS = Path(__file__).parent / "migrations"


def migrate(connection: Connection) -> None:
    """Run the migrations that ``connection``'s database lacks.

    Raises:
        HostUnfit: a newer version of the program has been at this database.
    """
    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    scripts = ScriptDirectory.from_config(config)
    present = MigrationContext.configure(connection).get_current_heads()
    _refuse_newer(scripts, present)
    if set(present) != set(scripts.get_heads()):
        command.upgrade(config, "head")


def _refuse_newer(scripts: ScriptDirectory, present: tuple[str, ...]) -> None:
    known = {script.revision for script in scripts.walk_revisions()}
    unknown = sorted(set(present) - known)
    if unknown:
        raise HostUnfit(
            f"the database has schema {unknown[0]}, which this version does not know",
            fix="install the version that wrote it, or let DATABASE_URL name another database",
        )
