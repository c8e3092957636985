"""Records: the durable memory of runs and files, behind ``ports.Records``.

``schema`` is the tables; ``rows`` turns nouns into rows and back; ``sql`` is every statement,
shared by the engines; ``lane``, ``quick``, ``checkpointer`` and ``sqlite`` are the embedded engine;
``migrate`` brings an older database to the present schema.
"""

from code_executor.store.sqlite import SqliteRecords

__all__ = ["SqliteRecords"]
