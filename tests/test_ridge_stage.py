"""Ridge in a stage: on the GPU of its own task, or as tasks on CPUs."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from raybrain import cluster, config
from raybrain.stages import fitting_ridge


def one_target(*, gpus):
    """Stands for `Data`: 80 images seen once, 12 voxels, 40 dimensions, one of them flat."""
    draw = np.random.default_rng(0)
    betas = draw.standard_normal((80, 12)).astype(np.float32)
    targets = betas @ draw.standard_normal((12, 40)) + 2 * draw.standard_normal((80, 40)) + 3
    targets[:, 5] = 2.5
    image_ids = [f"image{number}" for number in range(80)]
    opened = SimpleNamespace(
        attributes={"target": "image"},
        betas=lambda voxels: betas[:, voxels],
        voxels=pd.DataFrame({"noise_ceiling": np.ones(12)}),
        rois={},
        images=pd.DataFrame({"row": range(80)}, index=image_ids),
        trials=pd.DataFrame({"image_id": image_ids, "run": np.arange(80) // 10}),
    )
    return SimpleNamespace(
        opened=opened,
        decode=SimpleNamespace(min_noise_ceiling=0.0, named_rois=()),
        mask=np.ones(12, bool),
        session=np.repeat([1, 2], 40),
        truth=lambda rows: targets[rows].astype(np.float32),
        experiment=SimpleNamespace(
            resources=SimpleNamespace(tasks=config.Workers(max=2, gpus=gpus))
        ),
    )


@pytest.mark.filterwarnings("ignore:of .* targets")
def test_with_a_gpu_all_blocks_are_solved_in_the_task_that_holds_it(monkeypatch):
    held = []

    def map_tasks(function, items, *, workers, description):
        held.append(workers.gpus)
        return [function(item) for item in items]

    monkeypatch.setattr(cluster, "map_tasks", map_tasks)
    section = config.Ridge()
    data = one_target(gpus=0.5)
    # A GPU that torch cannot use must not be waited for by tasks of a task that holds it.
    on_cpus = fitting_ridge.fit_ridge_of(data, section=section)
    assert held == [0.0]
    monkeypatch.setattr(cluster, "gpu", lambda: "cpu")
    on_gpu = fitting_ridge.fit_ridge_of(data, section=section)
    assert held == [0.0]
    np.testing.assert_array_equal(on_gpu.parameters["alpha"], on_cpus.parameters["alpha"])
    np.testing.assert_array_equal(on_gpu.targets.varying, on_cpus.targets.varying)
    assert on_gpu.targets.scale == pytest.approx(on_cpus.targets.scale, rel=1e-6)
    given = {"session": data.session, "image_id": np.arange(80)}
    betas = data.opened.betas(voxels=data.mask)
    found, expected = (one.predict(betas, **given).values for one in (on_gpu, on_cpus))
    np.testing.assert_allclose(found, expected, atol=1e-3)
