"""``evaluate images=FOLDER``: pictures from anywhere score as the pipeline's own do."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import raybrain
from raybrain import cli, outputs, store
from raybrain.config import InputError
from raybrain.datasets.drawn import find_drawn
from raybrain.evaluation import CEILING, MEAN_IMAGE, RANDOM_TRAINING, SHUFFLED, SYSTEM
from raybrain.stages import drawing, scoring
from tests.inline import in_this_process

pytestmark = pytest.mark.filterwarnings("default")

ROWS = tuple(scoring.ROW_NAMES)


def find(folder: Path, ids):
    return find_drawn(str(folder), image_ids=ids, rows=ROWS, system=drawing.SYSTEM)


def write(folder: Path, *names: str, size=(8, 8)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        Image.new("RGB", size, (number, 0, 0)).save(folder / name)


@pytest.fixture(scope="module")
def exported(finished_here, file_here) -> Path:
    with in_this_process():
        assert cli.main(["export", str(file_here)]) == 0
    return Path(outputs.pictures(finished_here).folder)


@pytest.mark.usefixtures("inline")
def test_exported_pictures_score_as_the_run_that_drew_them(
    finished_here, file_here, exported, tmp_path, capsys
):
    own = raybrain.Results(finished_here, outputs.report(finished_here).folder).table
    brought = tmp_path / "from the other lab"
    shutil.copytree(exported / "system", brought)
    assert cli.main(["evaluate", str(file_here), f"images={brought}"]) == 0
    printed = capsys.readouterr().out
    assert "ceiling" in printed
    [report] = Path(outputs.run_folder(finished_here), "scored").glob("from_the_other_lab-*/report")
    table = raybrain.load_table(report / scoring.SCORES)
    assert table.image_ids == own.image_ids
    assert set(table.rows) == {MEAN_IMAGE, RANDOM_TRAINING, SHUFFLED, SYSTEM, CEILING}
    for row in table.rows:
        for metric in table.protocol.metrics:
            mine, theirs = (t.score(row=row, metric=metric.name) for t in (own, table))
            np.testing.assert_allclose(
                [theirs.value, theirs.low, theirs.high, theirs.p],
                [mine.value, mine.low, mine.high, mine.p],
                atol=1e-6,
                err_msg=f"{row} {metric.name}",
            )
    assert (report / scoring.GALLERY).stat().st_size > 10_000
    # what is sealed is not scored again, and a run can be compared with it
    results = raybrain.run(raybrain.Experiment.load(file_here), "evaluate", images=str(brought))
    assert "sealed already" in capsys.readouterr().out
    assert results.report == str(report)
    assert cli.main(["compare", outputs.run_folder(finished_here), str(report)]) == 0


@pytest.mark.usefixtures("inline")
def test_the_ceiling_is_drawn_where_nothing_was_decoded_and_is_the_same(
    finished_here, file_here, exported
):
    words = [
        str(file_here),
        "name=scored-only",
        f"images={exported / 'system'}",
        "resources.generate.max=1",
    ]
    assert cli.main(["evaluate", *words]) == 0
    drawn = outputs.ceiling(finished_here.model_copy(update={"name": "scored-only"})).folder
    np.testing.assert_array_equal(
        store.read_rows(drawn, "ceiling"),
        store.read_rows(outputs.reconstructions(finished_here).folder, "ceiling"),
    )
    assert not Path(drawn).with_name("predictions.zarr").exists()


@pytest.mark.usefixtures("inline")
def test_a_folder_of_rows_brings_its_own_ceiling(finished_here, file_here, exported):
    done = raybrain.run(
        raybrain.Experiment.load(file_here, "name=rows"), "evaluate", images=exported
    )
    own = raybrain.Results(finished_here, outputs.report(finished_here).folder).table
    for row in (SYSTEM, CEILING):
        assert done.table.score(row=row, metric="two_way").value == pytest.approx(
            own.score(row=row, metric="two_way").value
        )
    assert not Path(done.folder, "ceiling.zarr").exists()


@pytest.mark.usefixtures("inline")
def test_what_is_wrong_with_a_folder_is_one_sentence_and_nothing_is_written(
    finished_here, file_here, exported, tmp_path, capsys
):
    def refused(folder: Path, *words: str) -> str:
        name = f"name=refused-{folder.name}"
        assert cli.main(["evaluate", str(file_here), name, f"images={folder}"]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        for word in words:
            assert word in printed
        assert not Path(finished_here.workspace, "runs", f"refused-{folder.name}").exists()
        return printed

    def changed(name: str) -> Path:
        shutil.copytree(exported / "system", tmp_path / name)
        return tmp_path / name

    refused(tmp_path / "absent", "there is no folder")
    lacking = changed("lacking")
    for file in sorted(lacking.glob("*_0.png"))[:2]:
        file.unlink()
        Path(str(file).replace("_0.png", "_1.png")).unlink()
    refused(lacking, "2 of 10 test images have no picture", "draw these too")
    more = changed("more")
    write(more, "somebody_0.png")
    refused(more, "1 of 21 pictures", "somebody_0.png")
    uneven = changed("uneven")
    sorted(uneven.glob("*_1.png"))[0].unlink()
    refused(uneven, "draw all images equally often")
    odd = changed("odd")
    write(odd, sorted(odd.glob("*.png"))[3].name, size=(16, 16))
    refused(odd, "16 x 16 pixels", "bring all to one size")
    wide = changed("wide")
    for file in wide.glob("*.png"):
        write(wide, file.name, size=(32, 24))
    refused(wide, "32 x 24 pixels", "squares")
    damaged = changed("damaged")
    sorted(damaged.glob("*.png"))[5].write_bytes(b"\x89PNG\r\n\x1a\nno")
    refused(damaged, "not a readable picture")
    twice = changed("twice")
    first = sorted(twice.glob("*.png"))[0]
    Image.open(first).save(first.with_suffix(".bmp"))
    refused(twice, "are both sample 0 of image", "keep one")


def test_pictures_are_matched_by_id_with_or_without_samples_folders_and_zeros(tmp_path):
    write(tmp_path / "a", "00012.png", "00345.png")
    assert find(tmp_path / "a", ["00012", "00345"]).rows == {
        "system": (("00012.png",), ("00345.png",))
    }
    write(tmp_path / "b", "12_1.jpg", "345_0.jpg", "12_0.jpg", "345_1.jpg")
    assert find(tmp_path / "b", ["00012", "00345"]).rows["system"] == (
        ("12_0.jpg", "12_1.jpg"),
        ("345_0.jpg", "345_1.jpg"),
    )
    write(tmp_path / "c", "dog_01b.png", "cat_02s.png")
    assert find(tmp_path / "c", ["cat/cat_02s.jpg", "dog/dog_01b.jpg"]).rows["system"] == (
        ("cat_02s.png",),
        ("dog_01b.png",),
    )
    # ids that end as samples do
    write(tmp_path / "d", "run_1.png", "run_2.png")
    assert find(tmp_path / "d", ["run_1", "run_2"]).rows["system"] == (
        ("run_1.png",),
        ("run_2.png",),
    )
    write(tmp_path / "e", "run_1_0.png", "run_2_0.png")
    assert find(tmp_path / "e", ["run_1", "run_2"]).rows["system"] == (
        ("run_1_0.png",),
        ("run_2_0.png",),
    )
    # hidden files and others are no pictures
    (tmp_path / "e" / "._run_1_0.png").write_bytes(b"")
    (tmp_path / "e" / "notes.txt").write_text("")
    assert find(tmp_path / "e", ["run_1", "run_2"]).rows["system"][0] == ("run_1_0.png",)


@pytest.mark.parametrize(
    ("names", "ids", "sentence"),
    [
        (["run_1.png", "run_2.png"], ["run", "run_1", "run_2"], "could be of image run_1, or"),
        (["x.png"], ["a/x.jpg", "b/x.jpg"], "could be of image a/x.jpg or b/x.jpg"),
        (["sub/x.png", "x.png"], ["x"], "has pictures beside folders"),
        (["other/x.png"], ["x"], "in its folder other"),
        (["ceiling/x.png"], ["x"], "but not 'system'"),
        (["notes.txt"], ["x"], "holds no pictures"),
    ],
)
def test_what_could_be_read_two_ways_is_refused(tmp_path, names, ids, sentence):
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("")
        else:
            write(path.parent, path.name)
    with pytest.raises(InputError, match=sentence):
        find(tmp_path, ids)


def test_options_belong_to_their_stages(tmp_path, capsys, monkeypatch):
    demo = raybrain.Experiment.load(raybrain.DEMO, f"workspace={tmp_path}")
    with pytest.raises(InputError, match="'images' is no option of train; it is one of evaluate"):
        raybrain.run(demo, "train", images="here")
    assert cli.main(["train", str(raybrain.DEMO), "images=here"]) == 2
    assert "'images' is not a setting" in capsys.readouterr().err
