"""Rehearses what programs do with the data stack; one of the modules that its zygote preloads.

Theory of operation. The first data frame of a forked interpreter writes to 1,100 pages that it
shares with the zygote, reference counts above all, and each is copied then: half of a short
program's time. So a child makes one while it waits for its job. The zygote has made one as well,
and drawn a picture: what libraries compute once is there when it forks.

The child's turn comes by ``os.register_at_fork``. It is over with the first fork: in the children
of a program nothing happens. ``zygote.py`` takes this module out of sight.
"""

import contextlib
import importlib
import io
import os
from collections.abc import Callable

TURNS = [1]


def frame() -> None:
    """What nearly every program with pandas does."""
    pd = importlib.import_module("pandas")

    made = pd.DataFrame({"key": [1, 2, 1], "name": ["a", "b", "c"], "value": [0.5, 1.5, 2.5]})
    made.groupby("key").value.sum().to_dict()
    made["twice"] = made["value"] * 2
    str(made[made["key"] > 1].sort_values("value"))


def more() -> None:
    """What is worth it only where all children have it."""
    pd = importlib.import_module("pandas")

    text = "day,key,value\n2024-01-01,a,1\n2024-01-02,b,2.5\n"
    read = pd.read_csv(io.StringIO(text), parse_dates=["day"])
    other = read.merge(read, on="key").describe()
    str(other), other.to_csv(), read.to_json(), read.pivot_table(index="key", values="value")
    read.set_index("day").resample("D").sum()


def picture() -> None:
    """Without pyplot, whose numbers of figures would show it."""
    forget_fonts = importlib.import_module("matplotlib.font_manager")._get_font.cache_clear
    figure = importlib.import_module("matplotlib.figure").Figure()
    importlib.import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([1, 2, 4], label="a")
    axes.set_title("a")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png")
    forget_fonts()  # they are open files, which a child does not have


def in_child() -> None:
    """The turn of the child, once."""
    if TURNS:
        TURNS.clear()
        attempt(frame)


def attempt(rehearsed: Callable[[], None]) -> None:
    """Without pandas, or where it fails, nothing is gained and nothing lost."""
    with contextlib.suppress(Exception):
        rehearsed()


for each in (frame, more, picture):
    attempt(each)
if "CE_SINGLE" not in os.environ:  # otherwise this is the child
    os.register_at_fork(after_in_child=in_child)
