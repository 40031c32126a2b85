"""A decoder in scikit-learn's manner: `fit`, `predict`, `score`, pipelines and cross-validation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from raybrain import cluster, config, decoders
from raybrain.config import InputError
from raybrain.decoders import Predicted, TrainedDecoder

UNSEEN = -1
"""A session of its own, which no decoder was fitted on."""


class Decoder(MultiOutputMixin, RegressorMixin, BaseEstimator):
    """From the betas of trials to a target; the same decoders as ``raybrain train``, in process.

    Betas are z-scored within each scan session, voxels that never vary are left out, and the
    repeats of an image are averaged, all by the decoder, so that cross-validation is honest: give
    it betas as they are stored.

    Parameters
    ----------
    kind : str
        ``ridge``, ``residual_mlp``, ``mindeye2`` or any other decoder of an experiment.
    settings : mapping, optional
        Its settings, as under ``decode.<target>.decoder``: ``{"alphas": [0.1, 1, 10]}``.
    training : mapping, optional
        Of networks, as under ``training``: ``{"lr": 1e-4, "epochs": 20}``.
    validation : float
        Share of the images on which a network stops early. Ridge uses every image.
    random_state : int
        Seed of a network's weights, order and split.

    Attributes
    ----------
    trained_ : raybrain.decoders.TrainedDecoder
        What was fitted; `save` writes it.
    n_features_in_ : int
        Voxels.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import cross_val_score
    >>> from raybrain import Decoder
    >>> rng = np.random.default_rng(0)
    >>> betas = rng.normal(size=(200, 30))
    >>> latents = betas @ rng.normal(size=(30, 4)) + 2 * rng.normal(size=(200, 4))
    >>> bool(cross_val_score(Decoder(), betas, latents, cv=4).min() > 0.75)
    True
    """

    def __init__(
        self,
        kind: str = "ridge",
        *,
        settings: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        validation: float = 0.1,
        random_state: int = 0,
    ) -> None:
        self.kind = kind
        self.settings = settings
        self.training = training
        self.validation = validation
        self.random_state = random_state

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        *,
        session: ArrayLike | None = None,
        image_id: ArrayLike | None = None,
    ) -> Decoder:
        """Fit and return the decoder.

        Parameters
        ----------
        X : array, shape (trial, voxel)
            Betas, in any unit.
        y : array, shape (trial,) or (trial, dimension)
            The target of the image that each trial showed.
        session : array, shape (trial,), optional
            Scan sessions, each of which is z-scored by itself; one when not given.
        image_id : array, shape (trial,), optional
            Which image each trial showed; its repeats are averaged and left out together. All
            different when not given.

        Raises
        ------
        InputError
            If a setting does not fit.
        ValueError
            If the arrays do not fit together, or nothing varies in them.
        """
        betas, truth = validate_data(
            self, X, y, dtype=np.float32, multi_output=True, y_numeric=True, ensure_min_samples=2
        )
        self._flat = truth.ndim == 1
        targets = np.asarray(truth, np.float32).reshape(len(betas), -1)
        sessions = _sessions(session, trials=len(betas), default=0)
        images = _images(image_id, trials=len(betas))
        section, training = self._section(), self._training()
        try:
            if isinstance(section, config.ClosedForm):
                examples = decoders.prepare(
                    betas,
                    session=sessions,
                    image_id=images,
                    estimate_ceiling=decoders.wants_ceiling(section),
                )
                first = np.unique(images, return_index=True)[1]
                self.trained_ = decoders.train_ridge(
                    examples, targets=targets[first], section=section, device=cluster.gpu()
                )
            else:
                self.trained_ = self._network(
                    betas,
                    targets,
                    sessions=sessions,
                    images=images,
                    section=section,
                    training=training,
                )
        except InputError as error:  # about these arrays: what scikit-learn expects is a ValueError
            raise ValueError(str(error)) from error
        return self

    def predict(self, X: ArrayLike, *, session: ArrayLike | None = None) -> NDArray[np.float64]:
        """Return least-squares predictions of single trials, shape (trial,) or (trial, dimension).

        Parameters
        ----------
        X : array, shape (trial, voxel)
        session : array, shape (trial,), optional
            One that was not fitted, or none, is z-scored with the statistics of all fitted trials.
        """
        return self._shaped(self._predicted(X, session=session).estimates)

    def predict_to_draw(
        self,
        X: ArrayLike,
        *,
        session: ArrayLike | None = None,
        image_id: ArrayLike | None = None,
    ) -> NDArray[np.float64]:
        """Return predictions with the spread of true targets, which a generator draws from.

        Parameters
        ----------
        X : array, shape (trial, voxel)
        session : array, shape (trial,), optional
        image_id : array, shape (trial,), optional
            With it the repeats of an image are averaged: a row per image, ascending.

        Returns
        -------
        ndarray of float64, shape (row,) or (row, dimension)
            A row per trial, or per image where repeats are averaged.
        """
        return self._shaped(self._predicted(X, session=session, image_id=image_id).values)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the fitted decoder to a folder, which `from_pretrained` reads."""
        check_is_fitted(self)
        self.trained_.save(os.fspath(folder))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Decoder:
        """Return the decoder of a folder: one that was saved, trained or exported as a model.

        Raises
        ------
        InputError
            If there is no decoder in it.
        """
        trained = decoders.load_decoder(os.fspath(folder))
        section = trained.section
        settings = section.model_dump(exclude_defaults=True, exclude={"kind"})
        found = cls(section.kind, settings=settings or None)
        found.trained_ = trained
        found.n_features_in_ = len(trained.voxels)
        found._flat = False
        return found

    def _section(self) -> config.ClosedForm | config.NetworkDecoder:
        tree = {"kind": self.kind, **(self.settings or {})}
        wanted: dict[str, Any] = {"rois": ["all"], "decoder": tree}
        return config.validate(wanted, schema=config.Decode, source="Decoder").decoder

    def _training(self) -> config.Training:
        tree = dict(self.training or {})
        return config.validate(tree, schema=config.Training, source="Decoder: training")

    def _network(
        self,
        betas: NDArray[np.float32],
        targets: NDArray[np.float32],
        *,
        sessions: NDArray[np.int64],
        images: NDArray[np.int64],
        section: config.NetworkDecoder,
        training: config.Training,
    ) -> TrainedDecoder:
        from raybrain.training import fit_task  # imports torch

        names, first = np.unique(images, return_index=True)
        held = max(1, round(self.validation * len(names)))
        if held >= len(names):
            raise ValueError(
                f"a network needs images to train on beside those it stops early on; found "
                f"{len(names)} in all (n_samples = {len(betas)}), of which {held} are held out"
            )
        chosen = np.random.default_rng(self.random_state).permutation(names)[:held]
        train = ~np.isin(images, chosen)
        examples = decoders.prepare(betas[train], session=sessions[train], image_id=images[train])
        validation = examples.like(betas[~train], session=sessions[~train], image_id=images[~train])
        truth = dict(zip(names.tolist(), first.tolist(), strict=True))
        task = decoders.gradient_task(
            examples,
            targets=targets[[truth[int(name)] for name in examples.image_id]],
            validation=validation,
            validation_targets=targets[[truth[int(name)] for name in validation.image_id]],
            section=section,
        )
        network = task.build(seed=self.random_state)
        epochs = fit_task(network, task=task, settings=training, seed=self.random_state)
        for _ in epochs:
            pass
        return task.finish(network)

    def _predicted(
        self,
        X: ArrayLike,
        *,
        session: ArrayLike | None = None,
        image_id: ArrayLike | None = None,
    ) -> Predicted:
        check_is_fitted(self, "trained_")
        betas = validate_data(self, X, dtype=np.float32, reset=False)
        return self.trained_.predict(
            betas,
            session=_sessions(session, trials=len(betas), default=UNSEEN),
            image_id=_images(image_id, trials=len(betas)),
            average=image_id is not None,
        )

    def _shaped(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        # As scikit-learn wants several targets to be.
        return (values[:, 0] if self._flat else values).astype(np.float64)


def _sessions(values: ArrayLike | None, *, trials: int, default: int) -> NDArray[np.int64]:
    if values is None:
        return np.full(trials, default, np.int64)
    found = np.asarray(values)
    if found.shape != (trials,) or found.dtype.kind not in "iu":
        raise ValueError(
            f"session should be {trials} whole numbers, one for each trial, found {found.dtype} "
            f"{found.shape}"
        )
    return found.astype(np.int64)


def _images(values: ArrayLike | None, *, trials: int) -> NDArray[np.int64]:
    """Return names of any kind as numbers from 0, in their order."""
    if values is None:
        return np.arange(trials)
    found = np.asarray(values)
    if found.shape != (trials,):
        raise ValueError(f"image_id should have {trials} entries like X, found {found.shape}")
    return np.unique(found, return_inverse=True)[1].astype(np.int64)
