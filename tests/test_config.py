import pytest
import yaml

from raybrain import config
from raybrain.config import Experiment, InputError

SMALL = {
    "name": "t",
    "dataset": "simulated",
    "subject": "subj01",
    "decode": {"latents": {"rois": ["V1"]}, "prompt_embeds": {"rois": ["ventral"]}},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


def _load(file, *assignments) -> Experiment:
    return config.load(file, assignments, schema=Experiment)


def test_assignments_win_over_the_file_and_keep_sibling_fields(file):
    loaded = _load(file, "training.lr=1e-4", "decode.latents.min_noise_ceiling=0.1")
    assert loaded.training.lr == 1e-4
    assert loaded.decode.latents.rois == ("V1",)
    assert loaded.decode.latents.min_noise_ceiling == 0.1


def test_every_flattened_address_can_be_assigned_back(file):
    loaded = _load(file, "decode.latents.decoder.kind=residual_mlp")
    leaves = config.flatten(loaded)
    assert leaves["decode.latents.decoder.kind"] == "residual_mlp"
    again = [
        f"{address}={yaml.safe_dump(value, default_flow_style=True).removesuffix('...' + chr(10))}"
        for address, value in leaves.items()
        if value is not None
    ]
    assert _load(file, *again) == loaded


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("trainin.lr=1", "'trainin' is not a setting; did you mean 'training'"),
        ("training.learning_rate=1", "'training.learning_rate' is not a setting"),
        ("training.lr=-1", "'training.lr': input should be greater than 0 (found -1)"),
        ("decode.latents.rois=[]", "'decode.latents.rois'"),
        ("decode.latents.decoder.width=3", "'decode.latents.decoder.width' is not a setting"),
        ("decode.latents=null", "needs decode.latents"),
        ("reconstruct.gradient={}", "reconstruct.gradient guides towards the image embedding"),
        ("reconstruct.gradient={size: 0}", "'reconstruct.gradient.size'"),
        ("training.lr", "is not an assignment"),
        ("training.lr=[1", "is not valid YAML"),
        ("resources.tasks.min=9", "min=9 is above max=2"),
    ],
)
def test_a_bad_assignment_is_one_sentence(file, assignment, sentence):
    with pytest.raises(InputError) as error:
        _load(file, assignment)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_environment_fills_paths_only(file, monkeypatch):
    monkeypatch.setenv("SOMEWHERE", "/data")
    monkeypatch.delenv("NOWHERE", raising=False)
    assert _load(file, "workspace=${SOMEWHERE}/w").workspace == "/data/w"
    assert _load(file, "workspace=${NOWHERE:-here}").workspace == "here"
    assert _load(file, "name=a").name == "a"
    with pytest.raises(InputError, match="NOWHERE, which is not set"):
        _load(file, "workspace=${NOWHERE}/w")


def test_a_missing_or_broken_file_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="there is no experiment file"):
        _load(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [")
    with pytest.raises(InputError, match="not valid YAML"):
        _load(broken)


@pytest.mark.parametrize("address", ["tracking.uri", "tuning.storage", "workspace"])
def test_a_password_in_an_address_is_refused_and_not_repeated(address, tmp_path, monkeypatch):
    monkeypatch.setenv("DATABASE", "postgresql://lab:hunter2@10.0.0.1/runs")
    file = tmp_path / "one.yaml"
    space = {"training.lr": {"low": 1e-5, "high": 1e-2}}
    file.write_text(yaml.safe_dump({**SMALL, "tuning": {"space": space}}))
    with pytest.raises(InputError, match=f"'{address}': holds a password") as caught:
        config.load(file, (f"{address}=${{DATABASE}}",), schema=Experiment)
    assert "hunter2" not in str(caught.value)
    without = "tracking.uri=postgresql://lab@10.0.0.1/runs"
    assert config.load(file, (without,), schema=Experiment).tracking.uri


def test_rois_that_a_decoder_tells_voxels_apart_by_are_named_beside_those_decoded_from():
    def named(**decoder):
        return config.Decode.model_validate({"rois": ["early"], "decoder": decoder}).named_rois

    assert named(kind="gcn") == ("early", "V1", "V2", "V3", "hV4")
    assert named(kind="gcn", nodes=[["V1"], ["early"]]) == ("early", "V1")
    assert named(kind="kernel_ridge", weights={"V1": 0.5}) == ("early", "V1")
    assert named(kind="roi_graph") == named(kind="ridge") == ("early",)
