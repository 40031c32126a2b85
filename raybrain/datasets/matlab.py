"""MATLAB files, read by a process of their own: some damaged ones crash SciPy's reader."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import numpy as np

SECONDS = 120
"""Longest that reading may take; intact files of these datasets take less than one."""
READER = """
import io, sys
import numpy as np
from scipy.io import loadmat
try:
    found = loadmat(io.BytesIO(sys.stdin.buffer.read()), variable_names=sys.argv[1:])
    arrays = {n: np.asarray(found[n], dtype=np.float64) for n in sys.argv[1:] if n in found}
except Exception as error:
    sys.exit(" ".join(str(error).split()) or type(error).__name__)
written = io.BytesIO()
np.savez(written, **arrays)
sys.stdout.buffer.write(written.getvalue())
"""


def read_matlab(content: bytes, *names: str) -> dict[str, np.ndarray]:
    """Return arrays of float64 of a MATLAB file before version 7.3.

    Parameters
    ----------
    content : bytes
        Of the file.
    names : str
        Of its variables.

    Raises
    ------
    KeyError
        If a variable is missing.
    ValueError
        If the file cannot be read, whatever that does to its reader.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", READER, *names],
            input=content,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"reading it takes more than {SECONDS} seconds") from None
    if done.returncode < 0:
        raise ValueError("it is damaged in a way that crashes its reader")
    if done.returncode > 0:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(told[-1] if told else f"its reader ended with status {done.returncode}")
    try:
        with np.load(io.BytesIO(done.stdout)) as arrays:
            found = dict(arrays)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise ValueError(f"its reader was cut short ({error})") from None
    for name in names:
        if name not in found:
            raise KeyError(name)
    return found
