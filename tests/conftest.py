"""Sums in another order are other bytes: tests that compare runs fix the number of threads."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

pytest_plugins = ["tests.small_run"]
