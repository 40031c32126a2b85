"""Side-by-side measurements: run with ``pytest tests/benchmarks -m benchmark -s``.

``RAYBRAIN_BENCHMARK_SCALE`` (1 by default) shrinks every size, to try a benchmark; the ratios that
are asserted are those of full size on a quiet machine, so a smaller scale only prints them.
"""

import os

import pytest

SCALE = float(os.environ.get("RAYBRAIN_BENCHMARK_SCALE", "1"))


class Scale:
    """Sizes of a benchmark, and whether its ratios count."""

    full = SCALE >= 1

    def __call__(self, size, *, least=8):
        return max(least, int(size * SCALE))

    def claim(self, fact, message):
        """Print a measured fact; at full size it must hold."""
        print(f"{'holds' if fact else 'FAILS' if self.full else 'not at this scale'}: {message}")
        assert fact or not self.full, message


@pytest.fixture
def scale():
    return Scale()
