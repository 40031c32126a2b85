"""What keeping freed memory saves a worker that draws with gradient guidance."""

from pathlib import Path

import pytest

from tests.processes import result_of

pytestmark = pytest.mark.benchmark
WORKER = Path(__file__).with_name("allocator_worker.py")
ROUNDS = 3


def test_a_look_costs_less_where_freed_memory_is_kept(scale):
    found = {"kept": [], "returned": []}
    for _ in range(ROUNDS):
        for how, results in found.items():
            results.append(result_of(WORKER, how))
    assert len({one["sum"] for results in found.values() for one in results}) == 1
    kept, returned = (min(one["seconds"] for one in found[how]) for how in ("kept", "returned"))
    print(f"\nCPU of a row and look: {1000 * kept:.1f} ms kept, {1000 * returned:.1f} ms returned")
    scale.claim(kept <= 0.95 * returned, f"{kept / returned:.2f} of the CPU time (goal .95)")
