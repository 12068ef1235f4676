"""One thread for every test, and one server that has loaded the libraries and forks the workers of
all runs that tests make in-process.

Tiny models gain nothing from more threads, and threads of several test processes wait for each
other. A worker that is spawned loads torch and transformers anew, which takes longer than most of
these runs: where a worker comes from changes nothing that it does, and the commands that tests
start as programs spawn theirs.
"""

import gc
import multiprocessing
import os

import pytest
from helpers.chats import bpe as bpe
from helpers.measured import world as world
from helpers.processes import context, loaded
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
if loaded is not None:
    multiprocessing.get_context = context

# a suite that finds something new on some days lands on others
settings.register_profile("same", derandomize=True, database=None)
settings.load_profile("same")

LONG = (
    "fuzz ray pipeline cli distill_run measure ensemble distill train escape sequential verify "
    "folders"
).split()
"""files that begin before all others: one that begins last is waited for"""


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        # pytest-xdist would begin with the files that have many tests, and those are short
        config.option.loadscopereorder = False


def pytest_collection_finish() -> None:
    gc.freeze()  # modules are no garbage: what looks for some need not look at them


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="module")
def undrawn():
    """Reports whose charts are made and not drawn, which takes most of the time of a report; tests
    of reports and of charts draw them.
    """
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Figure,
            "savefig",
            lambda figure, file, **_: file.write('<svg width="1pt" height="1pt"></svg>'),
        )
        yield
