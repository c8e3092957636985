"""The programs that every subject runs, and what each must print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HELLO = "Hello, world!"


@dataclass(frozen=True, slots=True)
class Program:
    """One program. ``fresh``: every run gets a source that nobody has seen before.

    ``artifact`` names a file under ``outputs/`` that it makes; ``hello`` marks the programs that
    are also tried with ``docker run``, which is too slow for all of them.
    """

    name: str
    title: str
    language: str
    code: str
    prints: bytes
    artifact: str | None = None
    fresh: bool = False
    hello: bool = False

    def source(self, number: int) -> str:
        """Its source for the run of that number."""
        return f"{self.code}\n// {number}\n" if self.fresh else self.code


_GO = f'package main\n\nimport "fmt"\n\nfunc main() {{ fmt.Println("{HELLO}") }}\n'
_PANDAS = """\
import pandas as pd

frame = pd.DataFrame({"key": [n % 7 for n in range(5000)], "value": range(5000)})
print(frame.groupby("key").value.sum().to_dict())
"""
_PLOT = """\
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

plt.plot([n * n for n in range(50)])
plt.savefig("outputs/plot.png")
print("saved")
"""
_CPU = """\
total = 0
for n in range(1_500_000):
    total += n * n % 7
print(total)
"""
_OUTPUT = 'import sys\nsys.stdout.write(("x" * 99 + "\\n") * 10_000)\n'


def _sums() -> bytes:
    sums = {key: sum(range(key, 5000, 7)) for key in range(7)}
    return f"{sums}\n".encode()


def _said(text: str) -> bytes:
    return f"{text}\n".encode()


PROGRAMS: Sequence[Program] = (
    Program("python", "Python `print(1+1)`", "python", "print(1+1)", b"2\n", hello=True),
    Program("node", "Node.js hello", "node", f"console.log('{HELLO}')", _said(HELLO), hello=True),
    Program("ruby", "Ruby hello", "ruby", f"puts '{HELLO}'", _said(HELLO), hello=True),
    Program("php", "PHP hello", "php", f'echo "{HELLO}\\n";', _said(HELLO), hello=True),
    Program("go", "Go hello, never seen before", "go", _GO, _said(HELLO), fresh=True, hello=True),
    Program("go-again", "Go hello, the same program again", "go", _GO, _said(HELLO)),
    Program("pandas", "pandas group-by", "python", _PANDAS, _sums()),
    Program("plot", "matplotlib plot as a file", "python", _PLOT, b"saved\n", artifact="plot.png"),
    Program(
        "cpu",
        "CPU-bound Python",
        "python",
        _CPU,
        _said(str(sum(n * n % 7 for n in range(1_500_000)))),
    ),
    Program("output", "1 MB of output", "python", _OUTPUT, (b"x" * 99 + b"\n") * 10_000),
)
