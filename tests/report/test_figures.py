import numpy as np
import pytest
from PIL import Image

from raybrain.report import noise_ceiling_figure, score_figure
from tests.evaluation.made import made_table


def test_scores_are_drawn_as_pixels_and_as_vectors(tmp_path):
    files = score_figure(made_table(images=10), folder=tmp_path)
    picture = np.asarray(Image.open(files.png).convert("RGB"))
    assert picture.std() > 10
    pdf = files.pdf.read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"/Font" in pdf  # text stays text
    assert b"/Subtype /Image" not in pdf


def test_the_same_scores_give_the_same_bytes(tmp_path):
    a = score_figure(made_table(images=10), folder=tmp_path / "a")
    b = score_figure(made_table(images=10), folder=tmp_path / "b")
    assert a.png.read_bytes() == b.png.read_bytes()
    assert a.pdf.read_bytes() == b.pdf.read_bytes()


def test_a_voxel_is_drawn_where_it_lies(tmp_path):
    grid = np.stack(np.meshgrid(range(3), range(4), range(2), indexing="ij"), axis=-1)
    xyz = grid.reshape(-1, 3) + np.array([10, 20, 30])
    dark = noise_ceiling_figure(xyz=xyz, noise_ceiling=np.zeros(24), folder=tmp_path, name="dark")
    one = np.zeros(24)
    one[np.flatnonzero((xyz == [12, 23, 30]).all(axis=1))] = 1.0  # top right of the first slice
    spot = noise_ceiling_figure(xyz=xyz, noise_ceiling=one, folder=tmp_path, name="spot")
    pictures = [np.asarray(Image.open(f.png).convert("RGB")).astype(int) for f in (dark, spot)]
    yellow = np.argwhere(np.abs(pictures[1] - pictures[0]).sum(axis=2) > 100)
    purple = np.argwhere(np.abs(pictures[0] - [68, 1, 84]).sum(axis=2) < 12)
    columns = np.unique(purple[:, 1])
    end_of_first = columns[np.flatnonzero(np.diff(columns) > 1)[0]]
    assert abs(yellow[:, 0].min() - purple[:, 0].min()) <= 2
    assert abs(yellow[:, 1].max() - end_of_first) <= 2


def test_a_value_is_needed_for_every_voxel(tmp_path):
    with pytest.raises(ValueError, match="a value per voxel"):
        noise_ceiling_figure(xyz=np.zeros((3, 3), int), noise_ceiling=np.ones(2), folder=tmp_path)
