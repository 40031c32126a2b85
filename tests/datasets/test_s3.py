"""A dataset in a bucket, behind a local server that speaks S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raybrain.config import Ingest, InputError
from raybrain.datasets import nsd, open_recording
from tests.datasets import other_trees
from tests.datasets.nsd_tree import SUBJECT, write_tree
from tests.datasets.test_conformance import arrays_entry
from tests.datasets.test_nsd import entry

moto_server = pytest.importorskip("moto.server", reason="needs moto; pip install moto flask-cors")
pytest.importorskip("s3fs", reason="needs s3fs; pip install raybrain[s3]")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def storage(endpoint: str) -> dict:
    return {"key": "none", "secret": "none", "endpoint_url": endpoint, "use_listings_cache": False}


def upload(root: Path, *, bucket: str, storage: dict) -> None:
    import s3fs

    system = s3fs.S3FileSystem(**storage)
    system.mkdir(bucket)
    system.put(f"{root}/", bucket, recursive=True)


@pytest.mark.parametrize("ending", ["nii.gz", "hdf5"])
def test_nsd_from_a_bucket(tmp_path: Path, storage: dict, ending: str) -> None:
    write_tree(tmp_path, endings=(ending,))
    bucket = f"natural-scenes-{ending[:3]}"
    upload(tmp_path, bucket=bucket, storage=storage)
    there = entry(storage=storage)
    settings = Ingest(sessions=2)
    remote = open_recording(there, root=f"s3://{bucket}", subject=SUBJECT, settings=settings)
    here = open_recording(entry(), root=str(tmp_path), subject=SUBJECT, settings=settings)
    pd.testing.assert_frame_equal(remote.trials, here.trials)
    assert remote.sources == here.sources
    np.testing.assert_array_equal(remote.read_session(2), here.read_session(2))
    name = here.images["image_id"].iloc[3]
    np.testing.assert_array_equal(remote.read_images([name])[0], here.read_images([name])[0])
    listed = nsd.required_files(there, root=f"s3://{bucket}", subject=SUBJECT, settings=settings)
    assert all(file.present and file.bytes for file in listed)
    with pytest.raises(InputError, match=r"s3://nowhere/.* is missing"):
        open_recording(there, root="s3://nowhere", subject=SUBJECT, settings=settings)


def test_zarr_from_a_bucket(tmp_path: Path, storage: dict) -> None:
    other_trees.write_arrays(tmp_path, kind="zarr")
    upload(tmp_path, bucket="own-arrays", storage=storage)
    remote = open_recording(
        arrays_entry(storage=storage), root="s3://own-arrays", subject="P1", settings=Ingest()
    )
    here = open_recording(arrays_entry(), root=str(tmp_path), subject="P1", settings=Ingest())
    assert remote.sources == here.sources
    np.testing.assert_array_equal(remote.read_session(2), here.read_session(2))
