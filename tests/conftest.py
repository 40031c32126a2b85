"""What holds for every test: as many threads everywhere, and who runs what."""

import os

import pytest

# Sums in another order are other bytes: tests that compare runs fix the number of threads.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

pytest_plugins = ["tests.small_run", "tests.inline"]

SHARED = "finished_here"
"""A fixture that is a whole run: all tests that use it go to one process."""

LONGEST = (
    "tests/test_cluster.py",
    "tests/test_plugins.py",
    SHARED,
    "tests/test_pretraining.py",
    "tests/test_sweep_inline.py",
    "tests/test_mutated_inputs.py",
    "tests/report/test_mlflow_pages.py",
    "tests/decoders/test_brains.py",
    "tests/test_tuning.py",
    "tests/diffusion/test_compiling.py",
)
"""What to begin with: whoever is given one of these last works alone in the end."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the tests out by file to the processes side by side, the longest files first."""
    groups: dict[str, list[pytest.Item]] = {name: [] for name in LONGEST}
    for item in items:
        shared = SHARED in getattr(item, "fixturenames", ())
        group = SHARED if shared else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))
        groups.setdefault(group, []).append(item)
    items[:] = [item for group in groups.values() for item in group]
