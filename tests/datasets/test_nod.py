"""The Natural Object Dataset: the known traps, on miniature CIFTI files."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel import cifti2

from raybrain.config import Ingest, InputError
from raybrain.datasets import Recording, cifti, open_recording
from raybrain.datasets.contents import required_files
from raybrain.datasets.files import Root
from raybrain.datasets.synsets import synset_of
from tests.datasets import nod_tree as trees
from tests.datasets.entries import make, nod_entry
from tests.datasets.surface_tree import nibabel_edges, strip, write_surface

RUN = "ses-imagenet01_task-imagenet_run-{}"
RESULTS = f"derivatives/ciftify/{trees.SUBJECT}/results"


def read(root: Path, **changes: object) -> Recording:
    return open_recording(
        nod_entry(**changes), root=str(root), subject=trees.SUBJECT, settings=Ingest()
    )


@pytest.fixture
def tree(tmp_path: Path) -> trees.Tree:
    return trees.write_nod(tmp_path / "nod")


def beta(root: Path, run: str) -> Path:
    return root / RESULTS / run / f"{run}_beta.dscalar.nii"


def positions(tree: trees.Tree) -> np.ndarray:
    return np.array(
        [(side, vertex, 0) for side, some in enumerate(tree.vertices) for vertex in some]
    )


def inside(tree: trees.Tree) -> np.ndarray:
    wanted = [*trees.AREAS.values(), *(number + 180 for number in trees.AREAS.values())]
    return np.isin(tree.areas, wanted)


def test_equals_an_independent_reading(tree: trees.Tree) -> None:
    recording = read(tree.root)
    kept = inside(tree)
    np.testing.assert_array_equal(recording.voxels.xyz, positions(tree)[kept])
    for session in (1, 2):
        found = recording.read_session(session)
        truth = [
            np.asarray(nibabel.load(beta(tree.root, run)).dataobj)[:, : len(kept)][:, kept]
            for run in tree.betas
            if run.startswith(f"ses-imagenet{session:02d}")
        ]
        np.testing.assert_array_equal(found, np.concatenate(truth))
    np.testing.assert_array_equal(recording.rois["V1"], np.isin(tree.areas[kept], (1, 181)))
    np.testing.assert_array_equal(recording.rois["FFA"], np.isin(tree.areas[kept], (18, 198)))


def test_run_10_comes_after_run_2(tree: trees.Tree) -> None:
    trials = read(tree.root).trials
    assert trials["run"].tolist() == [1] * 4 + [2] * 4 + [10] * 4 + [1] * 4 + [2] * 4 + [10] * 4
    shown = [name for run in (1, 2, 10) for name in tree.shown[RUN.format(run)]]
    assert trials["image_id"].tolist()[:12] == shown


def test_the_medial_wall_is_left_out_so_that_a_column_is_no_vertex(tree: trees.Tree) -> None:
    recording = read(tree.root)
    left = tree.vertices[0]
    assert left[-1] > len(left) - 1
    sides = recording.voxels.xyz[:, 0]
    assert set(sides) == {0, 1}
    assert set(recording.voxels.xyz[sides == 0, 1]) <= set(left)
    # The right hemisphere's vertices begin anew.
    assert recording.voxels.xyz[sides == 1, 1].max() < trees.VERTICES
    np.testing.assert_array_equal(
        recording.voxels.index, sides * trees.VERTICES + recording.voxels.xyz[:, 1]
    )


def test_areas_of_the_right_hemisphere_are_181_to_360(tree: trees.Tree) -> None:
    rois = {
        "left": {"atlas": "HCP_MMP1", "labels": ["L_V1"]},
        "right": {"atlas": "HCP_MMP1", "labels": ["R_V1"]},
    }
    recording = read(tree.root, rois=rois)
    assert (recording.voxels.xyz[recording.rois["left"], 0] == 0).all()
    assert (recording.voxels.xyz[recording.rois["right"], 0] == 1).all()
    assert recording.rois["left"].sum() == (tree.areas == 1).sum()
    assert recording.rois["right"].sum() == (tree.areas == 181).sum()


def test_names_of_pictures_that_run_together(tree: trees.Tree) -> None:
    run = RUN.format(1)
    text = (tree.root / RESULTS / run / f"{run}_label.txt").read_text()
    assert "\n" not in text
    read(tree.root)
    path = tree.root / RESULTS / run / f"{run}_label.txt"
    path.write_text("\n".join(f"{name}.JPEG" for name in tree.shown[run]))
    read(tree.root)  # with line breaks as well
    path.write_text(text[::-1])
    with pytest.raises(InputError, match=r"label\.txt names other pictures than"):
        read(tree.root)


def test_voxels_below_the_cortex_are_not_read(tmp_path: Path) -> None:
    with_them = read(trees.write_nod(tmp_path / "a", voxels=5).root)
    assert len(with_them.voxels.index) < 2 * trees.VERTICES


def test_test_categories_are_absent_from_training(tree: trees.Tree) -> None:
    recording = read(tree.root)
    concept = recording.trials["image_id"].map(synset_of)
    tested = set(concept[recording.trials["split"] == "test"])
    assert tested
    assert not tested & set(concept[recording.trials["split"] != "test"])
    split = {"test": "images", "validation": 0.3, "group": "image"}
    images = read(tree.root, split=split)
    assert any("test categories also occur in training" in one for one in images.findings)


def test_repeated_pictures_as_the_test_set(tree: trees.Tree) -> None:
    recording = read(tree.root, split={"test": "coco", "validation": 0.3, "group": "concept"})
    tested = recording.trials[recording.trials["split"] == "test"]
    assert set(tested["image_id"]) == set(trees.COCO)
    assert set(tested["session"]) == {3}
    assert tested["repeat"].tolist() == [0, 0, 1, 1]
    truth = np.concatenate([tree.betas[f"ses-coco_task-coco_run-{k}"] for k in (1, 2)])
    np.testing.assert_array_equal(recording.read_session(3), truth[:, inside(tree)])
    # They take no part otherwise.
    assert not set(trees.COCO) & set(read(tree.root).trials["image_id"])


def test_labels_of_the_localizer(tree: trees.Tree) -> None:
    rois = {
        "faces": {"atlas": "floc-faces"},
        "FFA": {"atlas": "floc-faces", "labels": ["FFA-1"]},
    }
    recording = read(tree.root, rois=rois)
    np.testing.assert_array_equal(recording.voxels.xyz, positions(tree)[tree.faces > 0])
    assert recording.rois["FFA"].sum() == (tree.faces == 2).sum()
    with pytest.raises(InputError, match="did you mean 'FFA-1'"):
        read(tree.root, rois={"FFA": {"atlas": "floc-faces", "labels": ["FFA1"]}})


def test_the_head_of_a_file_is_enough_for_its_names(tree: trees.Tree, tmp_path: Path) -> None:
    path = beta(tree.root, RUN.format(1))
    place = Root(str(path.parent))
    head, whole = cifti.read_heading(place, path.name), cifti.read_maps(place, path.name)
    assert head.names == whole.names
    np.testing.assert_array_equal(head.xyz, whole.xyz)
    assert len(head.values) == 0
    # Even where the values are gone; reading them then fails.
    (tmp_path / "cut.dscalar.nii").write_bytes(path.read_bytes()[:-40])
    place = Root(str(tmp_path))
    assert cifti.read_heading(place, "cut.dscalar.nii").names == whole.names
    with pytest.raises(InputError, match="cannot be read as CIFTI-2"):
        cifti.read_maps(place, "cut.dscalar.nii")


def test_edges_are_those_of_the_mesh_between_kept_vertices(tree: trees.Tree) -> None:
    recording = read(tree.root)
    xyz, surface = recording.voxels.xyz, recording.surface
    np.testing.assert_array_equal(surface.hemisphere, xyz[:, 0])
    wanted = nibabel_edges(trees.surfaces(tree.root), xyz)
    assert {tuple(edge) for edge in surface.edges.tolist()} == wanted
    assert len(surface.edges) == len(wanted) > 20
    # A pair of vertices on both sides of a hemisphere's end is none of the mesh.
    sides = xyz[surface.edges, 0]
    np.testing.assert_array_equal(sides[:, 0], sides[:, 1])
    assert set(sides[:, 0]) == {0, 1}


def test_without_a_mesh_vertices_have_no_neighbours(tree: trees.Tree) -> None:
    with_them = read(tree.root)
    left, right = trees.surfaces(tree.root)
    right.rename(right.with_suffix(".away"))
    with pytest.raises(InputError, match=r"sub-01\.R\.midthickness.*gii is missing; datalad clone"):
        read(tree.root)
    left.unlink()
    few = read(tree.root)
    assert few.surface.edges is None
    np.testing.assert_array_equal(few.surface.hemisphere, with_them.surface.hemisphere)
    assert any(f"neighbours of vertices are not known: {left} and" in one for one in few.findings)
    assert not any("surf.gii" in path for path in few.sources)
    assert sum("surf.gii" in path for path in with_them.sources) == 2
    not_wanted = read(tree.root, layout={"surface": None})
    assert not_wanted.surface.edges is None


def test_a_mesh_of_another_space_is_refused(tree: trees.Tree) -> None:
    left, right = trees.surfaces(tree.root)
    content = left.read_bytes()
    left.write_bytes(right.read_bytes())
    with pytest.raises(InputError, match="says it is CortexRight, but CortexLeft is wanted"):
        read(tree.root)
    left.write_bytes(content)
    write_surface(right, strip(40), vertices=40, side="CortexRight")
    with pytest.raises(InputError, match="has 40 vertices, but the betas lie on a surface of 24"):
        read(tree.root)


def test_the_plan_names_the_mesh(tree: trees.Tree) -> None:
    entry = nod_entry()
    told = {"root": str(tree.root), "subject": trees.SUBJECT, "settings": Ingest()}
    found = [one for one in required_files(entry, **told) if one.path.endswith("surf.gii")]
    assert [one.present for one in found] == [True, True]
    for path in trees.surfaces(tree.root):
        path.unlink()
    found = [one for one in required_files(entry, **told) if one.path.endswith("surf.gii")]
    assert [one.present for one in found] == [False, False]


def _rewrite(root: Path, change: object) -> None:
    run = RUN.format(2)
    image = nibabel.load(beta(root, run))
    values = np.asarray(image.dataobj).copy()
    rows, columns = (image.header.get_axis(axis) for axis in (0, 1))
    values, rows, columns = change(values, rows, columns)
    trees.write_maps(beta(root, run), values, rows=rows, columns=columns)
    (root / RESULTS / run / f"{run}_label.txt").unlink()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda v, r, c: (v[:, :10], r, c[:10]), "does not hold both hemispheres"),
        (lambda v, r, c: (v[:, 1:], r, c[1:]), "other vertices than the runs before"),
        (lambda v, r, c: (v, cifti2.ScalarAxis([""] * len(v)), c), "not named by their pictures"),
        (lambda v, r, c: (v, cifti2.ScalarAxis(["x.jpg"] * len(v)), c), "pictures are missing"),
        (
            lambda v, r, c: (v, r, cifti2.SeriesAxis(0, 1, v.shape[1])),
            "has no vertices in its columns",
        ),
    ],
)
def test_bad_files(tree: trees.Tree, change: object, sentence: str) -> None:
    _rewrite(tree.root, change)
    with pytest.raises(InputError, match=sentence):
        read(tree.root)


def test_annex_links_without_content_are_told(tree: trees.Tree) -> None:
    path = beta(tree.root, RUN.format(2))
    path.unlink()
    path.symlink_to("../.git/annex/objects/gone")
    few = read(tree.root)
    assert any("1 runs have no betas here and are left out" in one for one in few.findings)
    for run in (1, 10):
        beta(tree.root, RUN.format(run)).unlink()
    first = beta(tree.root, RUN.format(1))
    first.symlink_to("../.git/annex/objects/gone")
    for run in (1, 2, 10):
        beta(tree.root, f"ses-imagenet02_task-imagenet_run-{run}").unlink()
    with pytest.raises(InputError, match="datalad get"):
        read(tree.root)


def test_values_that_are_not_finite(tree: trees.Tree) -> None:
    _rewrite(tree.root, lambda v, r, c: (np.full_like(v, np.inf), r, c))
    with pytest.raises(InputError, match=r"run-2_beta\.dscalar\.nii has responses that are not"):
        read(tree.root).read_session(1)


def test_bad_areas(tree: trees.Tree) -> None:
    names = tree.root / "supportfiles/roilbl_mmp.csv"
    content = names.read_bytes()
    names.write_bytes(content[:-40])
    with pytest.raises(InputError, match=r"names 17[0-9] areas"):
        read(tree.root)
    names.write_bytes(content)
    with pytest.raises(InputError, match="did you mean"):
        read(tree.root, rois={"V1": {"atlas": "HCP_MMP1", "labels": ["V11"]}})
    (tree.root / "supportfiles/MMP_mpmLR32k.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(InputError, match=r"MMP_mpmLR32k\.mat cannot be read"):
        read(tree.root)
    assert make("nod").layout == {}
