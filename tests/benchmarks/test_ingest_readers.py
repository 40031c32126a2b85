"""A session of every other reader, from its file to a chunk of the store, beside a plain read.

``pytest tests/benchmarks/test_ingest_readers.py -m benchmark -s`` writes files of published size:
BData of 6,000 samples x 12,000 columns, a session of BOLD5000 of 370 volumes, ten runs of NOD of
100 maps x 59,412 vertices, and volumes of LAION-fMRI's grid, 143 x 143 x 143. Plain is what one
types to have the chosen voxels of the same files in memory, with h5py or nibabel; the reader also
checks what it reads and writes it to the store. Times are processor seconds of a process of its
own.
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
from nibabel import cifti2

pytestmark = pytest.mark.benchmark

SAMPLES, COLUMNS = 6_000, 12_000
BOLD_GRID, BOLD_TRIALS = (71, 89, 72), 370
LAION_GRID, LAION_TRIALS = (143, 143, 143), 1_066
LAION_FEW = 100
"""Trials that are read plainly as well, which takes the memory of all of them."""
VERTICES, MAPS, RUNS = 32_492, 100, 10
CORTEX = 29_706
"""Vertices of a hemisphere without the medial wall."""
WANTED = 10_000


def write_bdata(folder: Path, *, columns: int = COLUMNS, wanted: int = COLUMNS - 1_000) -> None:
    rng = np.random.default_rng(0)
    np.save(folder / "rows.npy", np.arange(SAMPLES))
    np.save(folder / "columns.npy", np.sort(rng.permutation(columns)[:wanted]))
    with h5py.File(folder / "bdata.h5", "w") as file:
        data = file.create_dataset("dataset", shape=(SAMPLES, columns), dtype="f8")
        for start in range(0, SAMPLES, 500):
            data[start : start + 500] = rng.standard_normal((500, columns))


def write_runs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    sides = [
        cifti2.BrainModelAxis.from_surface(
            np.sort(rng.permutation(VERTICES)[:CORTEX]), VERTICES, name=f"CORTEX_{side}"
        )
        for side in ("LEFT", "RIGHT")
    ]
    columns = sides[0] + sides[1]
    np.save(folder / "voxels.npy", np.sort(rng.permutation(2 * CORTEX)[:WANTED]))
    for run in range(RUNS):
        rows = cifti2.ScalarAxis([f"n01440764_{k}.JPEG" for k in range(MAPS)])
        values = rng.standard_normal((MAPS, 2 * CORTEX), dtype=np.float32)
        header = cifti2.Cifti2Header.from_axes((rows, columns))
        nibabel.save(cifti2.Cifti2Image(values, header), folder / f"run-{run}.dscalar.nii")


def write_volumes(
    folder: Path,
    *,
    grid: tuple[int, ...],
    trials: int,
    name: str = "betas.nii.gz",
    wanted: int = WANTED,
) -> None:
    """Gzipped float32 volumes of noise within a brain, of which eight follow each other."""
    rng = np.random.default_rng(0)
    axes = [np.linspace(-1, 1, size) for size in grid]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = x**2 + y**2 + z**2
    brain = radius < 0.5
    inside = np.flatnonzero((radius < 0.5) & (radius > 0.2) & (y < -0.25))
    # Regions, not voxels here and there: what lies together is chosen together.
    np.save(folder / "voxels.npy", inside[:wanted])
    header = nibabel.Nifti1Image(np.zeros((1, 1, 1, 1), np.float32), np.eye(4)).header
    header.set_data_shape((*grid, trials))
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    # A gzip file may consist of several, so that a volume is compressed once.
    members = []
    for _ in range(min(8, trials)):
        volume = np.zeros(grid, np.float32)
        volume[brain] = rng.standard_normal(int(brain.sum()), dtype=np.float32)
        members.append(gzip.compress(volume.tobytes(order="F"), compresslevel=1))
    with (folder / name).open("wb") as file:
        file.write(gzip.compress(header.binaryblock + b"\0" * 4))
        for trial in range(trials):
            file.write(members[trial % len(members)])


VOLUMES = """
from raybrain.datasets.things_betas import read_volume_session
read = partial(
    read_volume_session, root=Root(folder), files={{1: ["betas.nii.gz"]}},
    volumes={{1: [np.arange({trials})]}}, counts={{1: [{trials}]}}, flat=voxels, grid={grid},
)
rows = {trials}
"""
PLAIN_VOLUMES = """
series = np.asanyarray(nibabel.load(folder + "/betas.nii.gz").dataobj)
x, y, z = np.unravel_index(voxels, {grid})
betas = series[x, y, z].T
"""
BOLD = {"grid": BOLD_GRID, "trials": BOLD_TRIALS}
LAION = {"grid": LAION_GRID, "trials": LAION_FEW}
READERS = {
    "kamitani": (
        write_bdata,
        """
voxels, kept = np.load(folder + "/columns.npy"), np.load(folder + "/rows.npy")
from raybrain.datasets.kamitani import _read_session
read = partial(_read_session, root=Root(folder), sessions={1: ("bdata.h5", kept, voxels)})
rows = len(kept)
""",
        """
with h5py.File(folder + "/bdata.h5") as file:
    data = file["dataset"][()]
betas = data[np.load(folder + "/rows.npy")][:, np.load(folder + "/columns.npy")].astype("f4")
""",
    ),
    "bold5000": (
        lambda folder: write_volumes(folder, **BOLD),
        VOLUMES.format(**BOLD),
        PLAIN_VOLUMES.format(**BOLD),
    ),
    "nod": (
        write_runs,
        f"""
from raybrain.datasets.nod import _read_session
runs = [f"run-{{run}}.dscalar.nii" for run in range({RUNS})]
rows = {RUNS * MAPS}
read = partial(_read_session, root=Root(folder), sessions={{1: runs}}, trials={{1: rows}},
               chosen=voxels, vertices={2 * CORTEX})
""",
        f"""
runs = [f"{{folder}}/run-{{run}}.dscalar.nii" for run in range({RUNS})]
betas = np.concatenate([np.asarray(nibabel.load(run).dataobj)[:, voxels] for run in runs])
""",
    ),
    "laion": (
        lambda folder: write_volumes(folder, **LAION),
        VOLUMES.format(**LAION),
        PLAIN_VOLUMES.format(**LAION),
    ),
}

INGEST = """
from functools import partial
import pandas as pd
from raybrain import store
from raybrain.datasets import Recording, Voxels
from raybrain.datasets.files import Root
from raybrain.stages import ingesting
{reader}
count = len(voxels)
recording = Recording(
    dataset="d", subject="s", read_session=read, read_images=None, rois={{}},
    trials=pd.DataFrame(dict(image_id="i", session=1, run=1, repeat=0, split="train"),
                        index=range(rows)),
    voxels=Voxels(np.arange(count), np.zeros((count, 3), "i4"), np.zeros(count, "f4")),
    images=pd.DataFrame(dict(image_id=["i"], captions=[("c",)], group=["g"])),
)
path = folder + "/s.zarr"
store.create_store(path, recording, side=8)
(block,) = store.beta_blocks(path)
start = time.process_time()
ingesting._write_betas(block, recording=recording, path=path)
seconds = time.process_time() - start
peak = highest()
betas = np.asarray(store.open_sealed(path)["betas"])
"""
PLAIN = """
start = time.process_time()
{plain}
seconds = time.process_time() - start
peak = highest()
"""
FRAME = """
import json, pathlib, time
import h5py, nibabel, numpy as np
folder = {folder!r}
voxels = np.load(folder + "/voxels.npy") if pathlib.Path(folder, "voxels.npy").exists() else None
def highest():
    # ru_maxrss would count the parent before exec.
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024**2
{body}
# The same numbers in the same places, not only the same sum.
told = [float(betas.sum(dtype="f8")), float(betas[:, ::7].sum(dtype="f8")), *betas.shape]
print(json.dumps(dict(seconds=seconds, gigabytes=peak, told=told)))
"""


def measure(folder: Path, body: str) -> dict[str, float]:
    """Return processor seconds and peak memory (GB) of a process that leaves ``betas``."""
    script = FRAME.format(folder=str(folder), body=textwrap.dedent(body))
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", list(READERS))
def test_a_session_reaches_the_store_at_the_speed_of_plain_reading(
    tmp_path: Path, name: str
) -> None:
    write, reader, plain = READERS[name]
    write(tmp_path)
    # Whoever comes first finds the files in no cache; both are read once before.
    for file in tmp_path.iterdir():
        file.read_bytes()
    theirs = measure(tmp_path, PLAIN.format(plain=plain))
    ours = measure(tmp_path, INGEST.format(reader=reader))
    ratio = theirs["seconds"] / ours["seconds"]
    print(
        f"\n{name}: {ours['seconds']:.2f} s and {ours['gigabytes']:.2f} GB to the store; plain "
        f"{theirs['seconds']:.2f} s and {theirs['gigabytes']:.2f} GB; ratio {ratio:.2f}"
    )
    assert ours["told"] == pytest.approx(theirs["told"], rel=1e-6, abs=1e-2)
    assert ours["gigabytes"] < 3.0
    assert ratio >= 0.7


LARGE = {
    "kamitani": lambda folder: write_bdata(folder, columns=5 * COLUMNS, wanted=20_000),
    "laion": lambda folder: write_volumes(
        folder, grid=LAION_GRID, trials=LAION_TRIALS, wanted=50_000
    ),
}
"""Files larger than the memory that a task may take: BData of 2.9 GB, five times the largest that
is published, and a whole session of LAION-fMRI, 12.5 GB once inflated. A session of BOLD5000 and
the runs of NOD are of full size above."""


@pytest.mark.parametrize("name", list(LARGE))
def test_a_large_file_is_read_in_bounded_memory(tmp_path: Path, name: str) -> None:
    LARGE[name](tmp_path)
    reader = READERS[name][1]
    if name == "laion":
        reader = VOLUMES.format(grid=LAION_GRID, trials=LAION_TRIALS)
    ours = measure(tmp_path, INGEST.format(reader=reader))
    for file in tmp_path.glob("b*"):
        print(f"\n{name}: {file.stat().st_size / 1e9:.1f} GB on disk, ", end="")
        file.unlink()
    print(f"{ours['gigabytes']:.2f} GB of memory, {ours['seconds']:.1f} s")
    assert ours["gigabytes"] < 3.0
