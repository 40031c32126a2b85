"""MATLAB files through a process of their own."""

import io

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from raybrain.datasets import matlab
from raybrain.datasets.matlab import read_matlab


@pytest.fixture
def content():
    written = io.BytesIO()
    rng = np.random.default_rng(0)
    savemat(written, {"order": rng.integers(1, 73_000, (1, 50)), "x": rng.random((3, 4))})
    return written.getvalue()


def test_values_are_those_of_scipy(content):
    found = read_matlab(content, "order", "x")
    wanted = loadmat(io.BytesIO(content))
    for name in ("order", "x"):
        np.testing.assert_array_equal(found[name], wanted[name])


def test_a_missing_variable_is_named(content):
    with pytest.raises(KeyError, match="ranks"):
        read_matlab(content, "order", "ranks")


def test_what_is_no_matlab_file_is_said(content):
    with pytest.raises(ValueError, match="mat file"):
        read_matlab(b"<html>not found</html>" * 20, "order")


def test_a_crash_of_the_reader_is_a_sentence(content, monkeypatch):
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    monkeypatch.setattr(matlab, "READER", crash)
    with pytest.raises(ValueError, match="crashes its reader"):
        read_matlab(content, "order")


def test_a_reader_that_hangs_is_ended(content, monkeypatch):
    monkeypatch.setattr(matlab, "READER", "import time; time.sleep(60)")
    monkeypatch.setattr(matlab, "SECONDS", 1)
    with pytest.raises(ValueError, match="more than 1 seconds"):
        read_matlab(content, "order")


@pytest.mark.parametrize(
    ("reader", "sentence"),
    [
        ("raise SystemExit(3)", "ended with status 3"),
        ("print('half an archive')", "cut short|pickled"),
        ("pass", "cut short"),
    ],
)
def test_a_reader_that_ends_early_is_a_sentence(content, monkeypatch, reader, sentence):
    monkeypatch.setattr(matlab, "READER", reader)
    with pytest.raises(ValueError, match=sentence):
        read_matlab(content, "order")
