"""What a file of somebody else may not do: climb out of folders, run code, lead to secrets."""

import re
from pathlib import Path

import pytest
import yaml

import raybrain
from raybrain import catalog, config
from raybrain.config import Experiment, InputError
from raybrain.datasets.drawn import file_name

CODE = Path(raybrain.__file__).parent
CLIMBING = ["../../home", "a/b", "/etc", "..", ".", "a\\b", "a\0b", "a\nb", ""]


@pytest.fixture
def entry(tmp_path):
    def written(**changes) -> catalog.CatalogEntry:
        tree = yaml.safe_load((catalog.CATALOG / "nsd.yaml").read_text()) | changes
        file = tmp_path / "theirs.yaml"
        file.write_text(yaml.safe_dump(tree))
        return catalog.load_entry(str(file))

    return written


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("part", ["name", "subjects", "rois"])
def test_no_name_of_an_entry_climbs_out_of_its_folder(entry, part, name):
    roi = {"atlas": "V1"}
    changes = {"name": name, "subjects": [name], "rois": {name: roi}}
    with pytest.raises(InputError, match="becomes the name of a folder or a file") as caught:
        entry(**{part: changes[part]})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["subj01", "sub-01", "P 1", "é", "a.b", "..a", "(x)"])
def test_other_names_are_taken(entry, name):
    found = entry(name=name, subjects=[name], rois={name: {"atlas": "V1"}})
    assert (found.name, found.subjects, list(found.rois)) == (name, (name,), [name])


@pytest.mark.parametrize("name", ["../x", "/x", ".x", "a/b", ""])
def test_no_name_of_an_experiment_climbs_out_of_the_runs(name):
    with pytest.raises(InputError, match="'name'"):
        config.validate(
            {"name": name, "dataset": "simulated", "subject": "s", "decode": {}},
            schema=Experiment,
            source="it",
        )


@pytest.mark.parametrize(
    ("root", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data", "where clouds tell a machine its own"),
        ("http://metadata.google.internal/computeMetadata", "where clouds tell"),
        ("https://[fe80::1]/data", "begins with|where clouds tell"),
        ("https://lab:hunter2@example.org/data", "holds a password or a token"),
        ("https://hunter2@example.org/data", "holds a password or a token"),
        ("https://example.org/data?token=hunter2", "holds a password or a token"),
        ("s3://key:hunter2@bucket/data", "holds a password or a token"),
        ("github://lab:repository@main/data", "holds a password or a token|begins with 'github'"),
        ("zip://data::http://example.org/a.zip", "begins with 'zip'"),
        ("simplecache::s3://bucket/data", "begins with"),
        ("reference://data", "begins with 'reference'"),
    ],
)
def test_no_root_of_an_entry_leads_where_no_dataset_is(entry, root, reason):
    with pytest.raises(InputError, match=reason) as caught:
        catalog.root_of(entry(root=root), workspace="/w")
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "root",
    ["s3://bucket/data", "gs://bucket/data", "https://example.org/data?version=2", "memory://d"],
)
def test_roots_in_buckets_and_on_servers_are_taken(entry, root):
    assert catalog.root_of(entry(root=root), workspace="/w") == root


def test_a_root_in_the_home_or_the_workspace_is_found(entry, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert catalog.root_of(entry(root="~/nsd"), workspace="/w") == f"{tmp_path}/nsd"
    assert catalog.root_of(entry(root="nsd"), workspace="/w") == "/w/nsd"
    assert catalog.root_of(entry(root="/data/nsd"), workspace="/w") == "/data/nsd"


@pytest.mark.parametrize(
    "address",
    [
        "https://hunter2@mlflow.lab.example",
        "https://mlflow.lab.example?access_token=hunter2",
        "postgresql://lab@10.0.0.1/runs?password=hunter2",
        "https://account.blob.example/x?X-Amz-Signature=hunter2",
    ],
)
def test_tokens_in_settings_are_refused_and_not_repeated(address, tmp_path):
    file = tmp_path / "one.yaml"
    rois = {"latents": {"rois": ["V1"]}, "prompt_embeds": {"rois": ["V1"]}}
    file.write_text(
        yaml.safe_dump({"name": "t", "dataset": "simulated", "subject": "s", "decode": rois})
    )
    with pytest.raises(InputError, match="holds a password or a token") as caught:
        config.load(file, (f"tracking.uri={address}",), schema=Experiment)
    assert "hunter2" not in str(caught.value)
    kept = ("postgresql://lab@10.0.0.1/runs?sslmode=require", "https://mlflow.lab.example/a?b=c")
    for uri in kept:
        assert config.load(file, (f"tracking.uri={uri}",), schema=Experiment).tracking.uri == uri


@pytest.mark.parametrize("image_id", ["../../x", "/etc/passwd", "..", ".hidden", "a\\b", "a::b"])
def test_no_image_id_climbs_out_of_the_exported_pictures(image_id, tmp_path):
    path = tmp_path / f"{file_name(image_id)}_0.png"
    assert path.resolve().parent == tmp_path.resolve()
    path.write_bytes(b"")
    assert not path.name.startswith(".")
    assert ":" not in path.name


def test_image_ids_have_a_file_each_and_plain_ones_their_own():
    names = ["a/b", "a_b", "a%2Fb", "a:b", "a", "A", "dog 1", "é", "0001", "a\tb"]
    assert len({file_name(name) for name in names}) == len(names)
    for name in ("a_b", "dog 1", "é", "0001", "x.y"):
        assert file_name(name) == name


def test_no_pickle_is_read_but_what_raybrain_sends_itself():
    """Between its own processes objects are pickled; no file of anybody is unpickled."""
    readers = (
        r"pickle\.loads?\(|read_pickle|joblib|allow_pickle=True|yaml\.(?:unsafe_|full_)?load\("
    )
    allowed = {
        "cluster/errors.py": "pickle.loads(",  # what a worker raised
        "cluster/pool.py": "pickle.loads(",  # a unit and its result
        "spelling.py": "yaml.load(",  # with subclasses of the safe loaders
    }
    for file in sorted(CODE.rglob("*.py")):
        text = file.read_text()
        name = str(file.relative_to(CODE))
        assert set(re.findall(readers, text)) <= {allowed.get(name)}, name
        for call in re.findall(r"torch\.load\((.*)\)", text):
            assert "weights_only=True" in call, name
        assert "weights_only=False" not in text, name


def test_no_except_is_bare():
    for file in sorted(CODE.rglob("*.py")):
        assert not re.search(r"except\s*:", file.read_text()), file
