"""What holds for every test: as many threads everywhere, and who runs what."""

import os

import pytest

# Sums in another order are other bytes: tests that compare runs fix the number of threads.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

pytest_plugins = ["tests.small_run", "tests.inline"]

LONGEST = (
    "tests/test_cluster.py",
    "tests/test_plugins.py",
    "tests/test_scoring_pictures.py",  # with the next two the run in this process
    "tests/test_sharing.py",
    "tests/test_api.py",
    "tests/test_pretraining.py",
    "tests/test_sweep_inline.py",
    "tests/test_mutated_inputs.py",
    "tests/report/test_mlflow_pages.py",
    "tests/decoders/test_brains.py",
    "tests/test_tuning.py",
    "tests/diffusion/test_compiling.py",
)
"""Files to begin with: whoever of several processes is given one last works alone in the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONGEST)))
