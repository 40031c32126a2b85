"""Reading a session of NSD's size: speed beside plain nibabel and h5py, and peak memory.

``pytest tests/benchmarks/test_ingest.py -m benchmark -s`` makes a session of 750 trials on the grid
of subj01 (81, 104, 83), with 216,000 voxels of noise within a brain and 20,000 voxels wanted.
Times are processor seconds of a process of its own, so that other load does not count.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

pytestmark = pytest.mark.benchmark

GRID = (81, 104, 83)
TRIALS = 750
WANTED = 20_000


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with betas.nii.gz, betas.hdf5 and voxels.npy."""
    folder = tmp_path_factory.mktemp("session")
    rng = np.random.default_rng(0)
    axes = [np.linspace(-1, 1, size) for size in GRID]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = x**2 + y**2 + z**2
    brain = radius < 0.72
    # The back of an outer shell, as early and ventral visual cortex lie.
    voxels = np.flatnonzero((radius < 0.72) & (radius > 0.28) & (y < -0.35))[:WANTED]
    assert len(voxels) == WANTED
    np.save(folder / "voxels.npy", voxels)
    noise = (rng.standard_normal(1_000_003, dtype=np.float32) * 400).astype(np.int16)
    header = nibabel.Nifti1Image(np.zeros((*GRID, 1), np.int16), np.eye(4)).header
    header.set_data_shape((*GRID, TRIALS))
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    betas = np.zeros((TRIALS, *GRID), dtype=np.int16)
    for trial in range(TRIALS):
        start = int(rng.integers(len(noise) - brain.sum()))
        betas[trial][brain] = noise[start : start + brain.sum()]
    with gzip.open(folder / "betas.nii.gz", "wb", compresslevel=1) as file:
        file.write(header.binaryblock + b"\0" * 4)
        for volume in betas:
            file.write(volume.tobytes(order="F"))
    with h5py.File(folder / "betas.hdf5", "w") as file:
        stored = file.create_dataset(
            "betas", shape=(TRIALS, *GRID[::-1]), dtype="i2", chunks=(TRIALS, 1, 1, 1)
        )
        for level in range(GRID[2]):
            stored[:, level] = betas[..., level].transpose(0, 2, 1)
    return folder


def measure(folder: Path, body: str) -> dict[str, float]:
    """Return processor seconds and peak memory of ``body``, which leaves (trial, voxel) betas."""
    script = f"""
        import json, pathlib, time
        import h5py, nibabel, numpy as np
        from raybrain.datasets.files import Root
        from raybrain.datasets.nsd_betas import read_session
        folder, grid, trials = {str(folder)!r}, {GRID}, {TRIALS}
        voxels = np.load(folder + "/voxels.npy")
        start = time.process_time()
        {textwrap.indent(textwrap.dedent(body).strip(), " " * 8).strip()}
        seconds = time.process_time() - start
        # ru_maxrss would count the parent before exec.
        status = pathlib.Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1024**2
        assert betas.shape == (trials, len(voxels)), betas.shape
        print(json.dumps(dict(seconds=seconds, gigabytes=peak, sum=int(betas.sum(dtype="i8")))))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


READER = """
betas = read_session(
    1, root=Root(folder), files={{1: "betas.{ending}"}}, trials={{1: trials}}, voxels=voxels,
    grid=grid, dtype="int16",
)
"""
PLAIN = {
    "nii.gz": """
series = np.asanyarray(nibabel.load(folder + "/betas.nii.gz").dataobj)
x, y, z = np.unravel_index(voxels, grid)
betas = series[x, y, z].T
""",
    "hdf5": """
x, y, z = np.unravel_index(voxels, grid)
with h5py.File(folder + "/betas.hdf5") as file:
    box = file["betas"][:, z.min():z.max() + 1, y.min():y.max() + 1, x.min():x.max() + 1]
betas = box[:, z - z.min(), y - y.min(), x - x.min()]
""",
}


@pytest.mark.parametrize("ending", ["nii.gz", "hdf5"])
def test_reads_a_session_in_bounded_memory_at_the_speed_of_plain_reading(
    session: Path, ending: str
) -> None:
    ours = measure(session, READER.format(ending=ending))
    plain = measure(session, PLAIN[ending])
    assert ours["sum"] == plain["sum"]
    print(
        f"\n{ending}: {ours['seconds']:.2f} s and {ours['gigabytes']:.2f} GB; plain "
        f"{plain['seconds']:.2f} s and {plain['gigabytes']:.2f} GB"
    )
    assert ours["gigabytes"] < 3.0
    assert plain["seconds"] / ours["seconds"] >= 0.7
