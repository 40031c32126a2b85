"""What keeping freed memory saves a worker that draws with gradient guidance."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.benchmark
WORKER = Path(__file__).with_name("allocator_worker.py")
ROUNDS = 3


def measured(how):
    done = subprocess.run([sys.executable, str(WORKER), how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_look_costs_less_where_freed_memory_is_kept(scale):
    found = {"kept": [], "returned": []}
    for _ in range(ROUNDS):
        for how, results in found.items():
            results.append(measured(how))
    assert len({one["sum"] for results in found.values() for one in results}) == 1
    kept, returned = (min(one["seconds"] for one in found[how]) for how in ("kept", "returned"))
    print(f"\nCPU of a row and look: {1000 * kept:.1f} ms kept, {1000 * returned:.1f} ms returned")
    scale.claim(kept <= 0.95 * returned, f"{kept / returned:.2f} of the CPU time (goal .95)")
