"""Code Executor: runs untrusted programs in hardened, limited, single-use sandboxes.

Layers, lowest first; an import never points upward (``tests/test_architecture.py``):

``errors`` ``observe`` ``clock``
    the floor; import nothing of the package.
``model``
    the nouns, frozen.
``lifecycle`` ``ratelimit`` ``signing`` ``languages`` ``plan`` ``ports``
    pure rules and the protocols between the layers.
``sandbox`` ``store`` ``objects`` ``datadir``
    adapters: the technology behind each port.
``auth`` ``pool`` ``worker`` ``readiness`` ``files`` ``janitor`` ``service``
    the core; knows no adapter and no setting.
``wire`` ``api``
    the edge: HTTP.
``config`` ``compose`` ``cli``
    settings, the one place that turns them into live objects, the command line.
"""

__version__ = "0.1.0"
