"""Alembic's place: ``env`` and the scripts in ``versions``, run by ``store.migrate``."""
