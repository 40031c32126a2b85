"""The wheel carries what the commands need: no checkout is about."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Return the folder that the wheel was unpacked to."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    assert wheel.stat().st_size < 30e6
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_an_installed_package_plans_its_demo_and_a_study_of_ones_own(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed)}

    def raybrain(*words: str) -> str:
        found = subprocess.run(
            [sys.executable, "-m", "raybrain", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        return found.stdout

    where = subprocess.run(
        [sys.executable, "-c", "import raybrain; print(raybrain.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(installed)
    raybrain("init", "study")
    assert "reconstruct" in raybrain("plan", "study/experiment.yaml")
    shipped = installed / "raybrain/assets/experiments"
    originals = ROOT / "jobs/experiments"
    assert {p.name for p in shipped.iterdir()} == {p.name for p in originals.iterdir()}
    # What a checkout has behind a link is the file itself.
    assert not shipped.is_symlink()
    assert "reconstruct" in raybrain("plan", str(shipped / "demo.yaml"))
