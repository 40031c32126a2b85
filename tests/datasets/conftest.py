"""Small trees of datasets hold the same MATLAB files again and again."""

import functools
from collections.abc import Iterator

import pytest

from raybrain.datasets import matlab, nod, nsd_tables


@pytest.fixture(autouse=True, scope="module")
def matlab_files_read_once() -> Iterator[None]:
    """Start the process that reads a MATLAB file once for the same bytes; it takes .4 s."""
    known = functools.cache(matlab.read_matlab)

    def read_matlab(content, *names):
        return {name: array.copy() for name, array in known(content, *names).items()}

    with pytest.MonkeyPatch.context() as patch:
        for reader in (nod, nsd_tables):
            patch.setattr(reader, "read_matlab", read_matlab)
        yield
