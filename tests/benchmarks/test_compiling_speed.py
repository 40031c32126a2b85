"""Compiled networks: what the first worker of a node waits for, and what the next one does."""

from pathlib import Path

import pytest

from tests.processes import result_of

pytestmark = pytest.mark.benchmark
WORKER = Path(__file__).with_name("compiling_worker.py")


def drawn(how, *, cache):
    return result_of(WORKER, how, env={"TORCHINDUCTOR_CACHE_DIR": str(cache)})


def test_a_second_worker_finds_what_the_first_compiled(scale, tmp_path):
    plain = drawn("plain", cache=tmp_path)["seconds"]
    first, second = (drawn("compiled", cache=tmp_path) for _ in range(2))
    assert first["sum"] == second["sum"]  # the same program, so the same picture
    waited = [one["seconds"] - plain for one in (first, second)]
    print(f"\nfirst worker {waited[0]:.1f} s, second {waited[1]:.1f} s over {plain:.2f} s to draw")
    ratio = waited[0] / waited[1]
    scale.claim(ratio >= 3, f"a second worker starts {ratio:.1f} times as fast (goal 3)")
