"""How soon the command answers and the package imports, beside a Python that does nothing."""

import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.benchmark
TIMES = 7


def seconds(*words):
    """Return the median wall time of a Python process."""
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        taken.append(time.perf_counter() - started)
    return sorted(taken)[TIMES // 2]


def test_help_and_import_answer_at_once(scale):
    nothing = seconds("-c", "pass")
    answer = seconds("-m", "raybrain", "--help")
    imported = seconds("-c", "import raybrain")
    print(f"\npython {nothing:.3f} s, raybrain --help {answer:.3f} s, import {imported:.3f} s")
    scale.claim(answer < 0.4, f"raybrain --help {answer:.3f} s (goal .4)")
    scale.claim(imported < 0.3, f"import raybrain {imported:.3f} s (goal .3)")
