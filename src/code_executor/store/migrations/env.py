"""What Alembic runs to apply the scripts, on the connection that ``store.migrate`` hands over."""

from alembic import context

from code_executor.store.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite changes a column only by copying its table
)
with context.begin_transaction():
    context.run_migrations()
