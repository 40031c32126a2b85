"""What is shipped: a wheel that needs no checkout, and a source archive that is all of one."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = (
    "diffusers", "fsspec", "h5py", "matplotlib", "mlflow", "nibabel", "numpy", "optuna", "pandas",
    "plotly", "pydantic", "ray", "scipy", "skimage", "torch", "torch_geometric", "torchvision",
    "transformers", "yaml", "zarr",
)  # fmt: skip
SMALL = (
    "simulation={grid: [12, 12, 10], early_voxels: 120, ventral_voxels: 80, objects: 48, "
    "test_images: 10, trials_per_session: 40}",
    "reconstruct.steps=4",
    "reconstruct.samples=1",
    "reconstruct.references=[ceiling]",
    "evaluate={bootstrap: 200}",
)
"""A subject of 48 images, drawn in the last of four steps."""


def lines_of(name):
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


def scores_of(text: str) -> dict[str, list[tuple[float, float]]]:
    """Return the values and half intervals of every row of a table that was printed."""
    number = r"([+-]?\d*\.\d+)±(\d*\.\d+)"
    rows = {
        line[:20].strip(): [(float(value), float(half)) for value, half in re.findall(number, line)]
        for line in text.splitlines()
    }
    return {name: values for name, values in rows.items() if values}


def built(kind: str, *, folder: Path) -> Path:
    """Return the source archive or the wheel, made by the build backend alone."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "-o", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return built("sdist", folder=tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return built("wheel", folder=tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Return a folder of packages into which the wheel was installed, and nothing else."""
    site = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site]
    subprocess.run([*command, wheel], check=True, capture_output=True)
    return site


@pytest.mark.parametrize("statement", ["import raybrain", "from raybrain import cli; cli.usage()"])
def test_importing_the_package_imports_no_library(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert "raybrain" in loaded
    assert not loaded & set(HEAVY)


def test_the_oldest_set_is_what_the_lower_bounds_say():
    from packaging.requirements import Requirement

    extras = PROJECT["optional-dependencies"]
    wanted = [
        Requirement(one) for one in (*PROJECT["dependencies"], *extras["s3"], *extras["plots"])
    ]
    oldest = lines_of("constraints-oldest.txt")
    assert {one.name for one in wanted} == set(oldest)
    newest = {name.replace("_", "-").lower(): v for name, v in lines_of("constraints.txt").items()}
    for one in wanted:
        (bound,) = [part for part in one.specifier if part.operator == ">="]
        assert oldest[one.name] in one.specifier
        assert oldest[one.name].startswith(bound.version)
        assert newest[one.name.replace("_", "-").lower()] in one.specifier


@pytest.mark.slow
def test_the_source_archive_holds_every_file_of_the_project(archive, wheel, tmp_path):
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("no checkout of git, so nothing says which files there should be")
    with tarfile.open(archive) as content:
        content.extractall(tmp_path, filter="data")
    (top,) = tmp_path.iterdir()
    files = {str(p.relative_to(top)) for p in top.rglob("*") if p.is_file()}
    links = [p.relative_to(ROOT) for p in (ROOT / "raybrain/assets").iterdir() if p.is_symlink()]
    assert Path("raybrain/assets/experiments") in links
    assert set(tracked.stdout.split("\n")) - {"", *map(str, links)} <= files
    assert {str(link / p.name) for link in links for p in (ROOT / link).iterdir()} <= files
    # A wheel made from the archive is the wheel made from the checkout.
    again = tmp_path / "again"
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", again, top]
    subprocess.run(command, check=True, capture_output=True)
    (second,) = again.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(second) as other:
        contents = [{info.filename: info.CRC for info in z.infolist()} for z in (one, other)]
    for content in contents:  # it lists what the others are, in an order of its own
        content.pop(next(name for name in content if name.endswith("/RECORD")))
    assert contents[0] == contents[1]


@pytest.fixture
def raybrain(installed, tmp_path) -> Callable[..., str]:
    """Return a function that calls what was installed in an empty folder, as a person does."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    where = subprocess.run(
        [sys.executable, "-c", "import raybrain; print(raybrain.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)

    def call(*words: str) -> str:
        found = subprocess.run(
            [sys.executable, installed / "bin/raybrain", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    return call


@pytest.mark.slow
def test_an_installed_package_runs_a_study_of_ones_own_in_an_empty_folder(
    wheel, installed, raybrain, tmp_path
):
    assert wheel.stat().st_size < 30e6
    assert (installed / "raybrain/py.typed").is_file()
    shipped = installed / "raybrain/assets/experiments"
    originals = ROOT / "jobs/experiments"
    assert {p.name for p in shipped.iterdir()} == {p.name for p in originals.iterdir()}
    # What a checkout has behind a link is the file itself.
    assert not shipped.is_symlink()
    assert "reconstruct" in raybrain("plan", str(shipped / "demo.yaml"))
    raybrain("init", "study")
    told = raybrain("run", "study/experiment.yaml", *SMALL)
    assert "ceiling" in told
    assert (tmp_path / "workspace/runs/study/report/gallery.html").is_file()
    assert "sealed already" in raybrain("run", "study/experiment.yaml", *SMALL)


@pytest.mark.slow
def test_the_demo_of_an_installed_package_gives_the_readme_s_table(raybrain):
    wanted = scores_of((ROOT / "README.md").read_text())
    found = scores_of(raybrain("demo"))
    assert {"nearest training", "system", "ceiling", "over nearest"} <= set(wanted)
    assert set(found) == set(wanted)
    for row, values in wanted.items():
        # Processors round otherwise, and a picture is another by a grey level here and there.
        for (value, half), (known, interval) in zip(found[row], values, strict=True):
            assert abs(value - known) <= interval / 4 + 1e-3, row
            assert abs(half - interval) <= interval / 4 + 1e-3, row
