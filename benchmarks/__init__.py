"""``make bench``: the service beside the bare interpreter and other sandboxes, in one go.

What is measured and how is told in ``README.md`` beside this file; the last full run's numbers are
in ``RESULTS.md``. From the bottom up: ``programs`` (what is run), ``commands`` and ``service`` (who
runs it), ``clients`` (load over HTTP), ``stats``; then one module per phase (``latency``,
``throughput``, ``memory``, ``stored``, ``soak``); ``results`` (what they return), ``targets``,
``report``; ``__main__`` joins them.
"""
