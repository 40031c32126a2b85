"""Every file that is read, damaged at random: what comes of it is a value or one sentence.

``RAYBRAIN_CASES`` is how many damaged files are tried of each kind, thrice as many of whole trees;
the default keeps this within the fast tests, and ``RAYBRAIN_CASES=1200 pytest -s -o
faulthandler_timeout=0 tests/test_mutated_inputs.py`` tries over 20,000 and counts what came of
them. Nothing but `InputError` may be raised, within a gigabyte more than there was.
"""

from __future__ import annotations

import os
import resource
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from raybrain import catalog, config
from raybrain.config import Experiment, Generator, Ingest, InputError
from raybrain.datasets import open_recording
from raybrain.diffusion.soundness import check_sound
from tests.datasets import bdata_tree, entries, masks_tree, nod_tree
from tests.datasets import other_trees as trees
from tests.datasets.conftest import matlab_files_read_once  # noqa: F401 - a fixture
from tests.datasets.nsd_tree import SUBJECT, write_tree
from tests.datasets.test_conformance import arrays_entry, haxby_entry, things_entry
from tests.datasets.test_nsd import entry as nsd_entry

CASES = int(os.environ.get("RAYBRAIN_CASES", "20"))
ROOT = Path(__file__).parents[1]
WORDS = [b"", b"0", b"-1", b"nan", b"1e999", b"'", b'"', b"\n", b"\0", b",", b"{", b"\xff\xfe"]
WORDS += [b"!!python/object/apply:os.system [ls]", b"&a [*a]", b"99999999999999999999", b"\xe9"]


@dataclass(frozen=True)
class Edit:
    """One damage: where, as a share of the file, and what."""

    kind: str
    place: float
    span: float
    word: bytes


EDITS = st.lists(
    st.builds(
        Edit,
        kind=st.sampled_from(["flip", "cut", "drop", "repeat", "insert", "zero"]),
        place=st.floats(0, 1),
        span=st.floats(0, 0.1),
        word=st.sampled_from(WORDS),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, edits: list[Edit]) -> bytes:
    """Return content with the edits made one after the other."""
    for edit in edits:
        at = int(edit.place * len(content))
        end = min(len(content), at + 1 + int(edit.span * len(content)))
        head, middle, tail = content[:at], content[at:end], content[end:]
        content = {
            "flip": head + bytes(byte ^ (1 << int(edit.span * 79)) for byte in middle) + tail,
            "cut": head,
            "drop": head + tail,
            "repeat": head + middle + middle + tail,
            "insert": head + edit.word + middle + tail,
            "zero": head + bytes(len(middle)) + tail,
        }[edit.kind]
    return content


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    # Whoever asks for much more is refused at once rather than served in pages.
    most = pages * os.sysconf("SC_PAGE_SIZE") + 8 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (most, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2**20, f"{grown / 2**20:.1f} GB were taken"


def read_dataset(entry: catalog.CatalogEntry, subject: str) -> Callable[[Path], None]:
    """Return what ingest reads of a dataset: its tables, a session and some pictures."""

    def read(root: Path) -> None:
        recording = open_recording(entry, root=str(root), subject=subject, settings=Ingest())
        sessions = recording.trials["session"].unique()
        betas = recording.read_session(int(sessions[0]))
        assert betas.shape == (
            (recording.trials["session"] == sessions[0]).sum(),
            len(recording.voxels.index),
        )
        assert np.isfinite(betas).all()
        for image in recording.read_images(recording.images["image_id"].tolist()[:3]):
            assert image.dtype == np.uint8
        assert not any(
            text in ("", "nan") for texts in recording.images["captions"] for text in texts
        )

    return read


def write_checkpoint(root: Path) -> None:
    """Write a copy of the generator that comes with the package."""
    shutil.copytree(ROOT / "raybrain/assets/pocket-diffusion", root, dirs_exist_ok=True)


def write_settings(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "data_catalog/nsd.yaml", root / "entry.yaml")
    tree = yaml.safe_load((ROOT / "jobs/experiments/demo.yaml").read_text())
    (root / "experiment.yaml").write_text(yaml.safe_dump(tree))


def read_settings(root: Path) -> None:
    config.load(root / "experiment.yaml", schema=Experiment)
    catalog.load_entry(str(root / "entry.yaml"))


KINDS: dict[str, tuple[Callable[[Path], object], Callable[[Path], None], tuple[str, ...]]] = {
    "npy": (
        lambda root: trees.write_arrays(root),
        read_dataset(arrays_entry(), "P1"),
        ("P1/betas.npy", "P1/trials.csv", "P1/voxels.csv", "P1/captions.csv"),
    ),
    "picture": (
        lambda root: trees.write_arrays(root),
        read_dataset(arrays_entry(), "P1"),
        ("P1/images/scene 0.png",),
    ),
    "hdf5": (
        lambda root: trees.write_arrays(root, kind="h5"),
        read_dataset(arrays_entry(), "P1"),
        ("P1/betas.h5",),
    ),
    "zarr": (
        lambda root: trees.write_arrays(root, kind="zarr"),
        read_dataset(arrays_entry(), "P1"),
        ("P1/betas.zarr/zarr.json", "P1/betas.zarr/c/0/0"),
    ),
    "nsd": (
        lambda root: write_tree(root),
        read_dataset(nsd_entry(), SUBJECT),
        (),
    ),
    "things": (
        lambda root: trees.write_things(root),
        read_dataset(things_entry(), "sub-01"),
        (),
    ),
    "haxby": (
        lambda root: trees.write_haxby(root),
        read_dataset(haxby_entry(), "subj1"),
        (),
    ),
    "bdata": (
        lambda root: bdata_tree.write_god(root),
        read_dataset(entries.god_entry(), "Subject1"),
        ("Subject1.h5", "words.txt"),
    ),
    "bdata-tables": (
        lambda root: bdata_tree.write_deeprecon(root),
        read_dataset(entries.deeprecon_entry(), "sub-01"),
        ("stimulus_NaturalImageTraining.tsv", "stimulus_NaturalImageTest.tsv"),
    ),
    "bold5000": (
        lambda root: masks_tree.write_bold5000(root),
        read_dataset(
            entries.bold5000_entry(layout={"captions": "captions_train2014.json"}), "CSI2"
        ),
        (),
    ),
    "nod": (
        lambda root: nod_tree.write_nod(root),
        read_dataset(entries.nod_entry(), nod_tree.SUBJECT),
        (),
    ),
    "cifti": (
        lambda root: nod_tree.write_nod(root),
        read_dataset(entries.nod_entry(), nod_tree.SUBJECT),
        tuple(nod_tree.beta_file(run) for run in (1, 2)),
    ),
    "gifti": (
        lambda root: nod_tree.write_nod(root),
        read_dataset(entries.nod_entry(), nod_tree.SUBJECT),
        tuple(str(path) for path in nod_tree.surfaces(Path())),
    ),
    "laion": (
        lambda root: masks_tree.write_laion(root),
        read_dataset(entries.laion_entry(), "sub-01"),
        (),
    ),
    "settings": (write_settings, read_settings, ()),
    "checkpoint": (
        write_checkpoint,
        lambda root: check_sound(Generator(checkpoint=str(root))),
        (),
    ),
}
"""What writes a whole input, what reads it, and which of its files are damaged (all if none)."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # of libraries, about what they then read or refuse
def test_a_damaged_file_is_a_value_or_one_sentence(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    write, read, names = KINDS[kind]
    root = tmp_path_factory.mktemp(kind) / "data"
    write(root)
    read(root)  # whole, it is read
    files = [root / name for name in names] or sorted(p for p in root.rglob("*") if p.is_file())
    whole = {file: file.read_bytes() for file in files}
    outcomes: Counter[str] = Counter()

    @settings(
        max_examples=CASES * (1 if names else 3),
        deadline=None,
        derandomize=CASES < 100,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(which=st.integers(0, len(files) - 1), edits=EDITS)
    def attempt(which: int, edits: list[Edit]) -> None:
        file = files[which]
        file.write_bytes(damaged(whole[file], edits))
        try:
            read(root)
            outcomes["values"] += 1
        except InputError as error:
            outcomes["sentences"] += 1
            sentence = str(error)
            assert sentence.strip(), file
            assert "\n" not in sentence, sentence
        finally:
            file.write_bytes(whole[file])

    attempt()
    print(f"\n{kind}: {dict(outcomes)}")
    assert {file: file.read_bytes() for file in files} == whole
