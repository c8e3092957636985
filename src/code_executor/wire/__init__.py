"""The wire format: a request body becomes a :class:`~code_executor.model.RunRequest`.

Three gates, each with its own kind of message, and every message names the place:

``parse``   bytes → JSON, refusing what JSON parsers usually let pass: duplicate keys, ``NaN``,
            lone surrogates, a byte order mark, nesting without end;
``shape``   JSON → ``RunBody``. Types are strict (``"5000"``, ``5000.0`` and ``true`` are no
            integers, ``null`` is not "absent"), and unknown fields are refused;
``decode``  ``RunBody`` → ``RunRequest``: the rules that need the configuration or look at
            several fields at once.

The other direction, values → JSON, is :mod:`code_executor.api.views`.
"""

from code_executor.wire.decode import RunRules, decode_run
from code_executor.wire.shape import RunBody

__all__ = ["RunBody", "RunRules", "decode_run"]
