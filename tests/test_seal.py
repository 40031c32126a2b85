import pytest

from raybrain import seal
from raybrain.config import InputError
from raybrain.seal import Seal


def _seal(**settings) -> Seal:
    return Seal(
        stage="ingest", settings=settings or {"ingest.image_size": 64}, inputs={"data": "a"}
    )


def test_digest_depends_on_settings_and_inputs_but_not_on_notes():
    base = _seal()
    assert base.digest == Seal(base.stage, base.settings, base.inputs, notes={"zarr": "3"}).digest
    assert base.digest != Seal(base.stage, base.settings, {"data": "b"}).digest
    assert base.digest != _seal(**{"ingest.image_size": 65}).digest


def test_a_sealed_folder_is_skipped_and_an_unfinished_one_is_kept(tmp_path):
    folder = str(tmp_path / "out")
    assert seal.begin(folder, wanted=_seal(), on_change="refuse").state == "missing"
    (tmp_path / "out" / "half").write_text("work")
    assert seal.begin(folder, wanted=_seal(), on_change="refuse").state == "unfinished"
    assert (tmp_path / "out" / "half").exists()
    seal.finish(folder, seal=_seal())
    assert seal.begin(folder, wanted=_seal(), on_change="refuse").state == "sealed"
    assert seal.read_seal(folder) == _seal()


def test_other_settings_are_refused_by_name_or_replace_the_folder(tmp_path):
    folder = str(tmp_path / "out")
    seal.begin(folder, wanted=_seal(), on_change="refuse")
    (tmp_path / "out" / "half").write_text("work")
    other = _seal(**{"ingest.image_size": 128})
    with pytest.raises(InputError, match=r"ingest\.image_size was 64, now 128"):
        seal.begin(folder, wanted=other, on_change="refuse")
    assert (tmp_path / "out" / "half").exists()
    assert seal.begin(folder, wanted=other, on_change="replace").state == "changed"
    assert not (tmp_path / "out" / "half").exists()


def test_a_folder_without_any_seal_counts_as_unfinished(tmp_path):
    assert seal.status(str(tmp_path), wanted=_seal()).state == "unfinished"
