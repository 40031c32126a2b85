"""Pictures of a study, for MLflow and for people."""

from __future__ import annotations

from pathlib import Path

from raybrain.cluster.study import open_storage


def plot_study(*, name: str, storage: str, folder: str) -> list[Path]:
    """Write history, parallel coordinates and importances as PNG and HTML; return the files.

    Importances need at least two complete candidates and are left out before. The pages need
    plotly and are left out without it.
    """
    import importlib.util
    import warnings

    import matplotlib as mpl
    import optuna

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from optuna import visualization
    from optuna.visualization import matplotlib as drawn

    study = optuna.load_study(study_name=name, storage=open_storage(storage))
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    plots = ["optimization_history", "parallel_coordinate"] if complete else []
    if len({tuple(trial.params.items()) for trial in complete}) > 1:
        plots.append("param_importances")
    target = (lambda trial: trial.values[0]) if len(study.directions) > 1 else None
    pages = importlib.util.find_spec("plotly") is not None
    if not pages:
        warnings.warn(
            "plotly is not installed, so the study is drawn as pictures only; for pages that can "
            "be turned and zoomed type: pip install 'raybrain[plots]'",
            stacklevel=2,
        )
    files = []
    for plot in plots:
        html, png = Path(folder, f"{plot}.html"), Path(folder, f"{plot}.png")
        if pages:
            getattr(visualization, f"plot_{plot}")(study, target=target).write_html(str(html))
            files.append(html)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            axes = getattr(drawn, f"plot_{plot}")(study, target=target)
        axes.figure.savefig(png, dpi=150, bbox_inches="tight")
        plt.close(axes.figure)
        files.append(png)
    return files
