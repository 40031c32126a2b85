"""Stable Diffusion both ways, without an experiment: images to targets, targets to images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raybrain import config, diffusion
from raybrain.config import TARGET_OF, InputError


class Generator:
    """A generator that draws images from targets, as ``raybrain reconstruct`` does.

    Parameters
    ----------
    settings : raybrain.config.Generator
        What to load; `from_pretrained` makes it from keywords.
    features : raybrain.config.Features, optional
        Which inner layers of the image encoder are targets too, on which grid.

    Examples
    --------
    >>> import numpy as np
    >>> from raybrain import Generator
    >>> generator = Generator.from_pretrained("pocket-diffusion")
    >>> seen = np.zeros((2, 64, 64, 3), np.uint8)
    >>> targets = generator.encode(seen, captions=["a dog", "a tree"])
    >>> drawn = generator.reconstruct(latents=targets["latents"], steps=2, samples=1)
    >>> drawn.shape
    (2, 1, 64, 64, 3)
    """

    def __init__(
        self, settings: config.Generator, *, features: config.Features | None = None
    ) -> None:
        import torch

        self.settings = settings
        self.features = features or config.Features()
        if self.features.layers:
            diffusion.target_shapes(settings, features=self.features)  # refuses what is not there
        self._worker = diffusion.DrawingWorker(
            generator=settings,
            reconstruct=config.Reconstruct(),
            seed=0,
            threads=torch.get_num_threads(),
        )

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike[str] = "pocket-diffusion",
        *,
        layers: Sequence[int] = (),
        grid: int = 4,
        **settings: Any,
    ) -> Generator:
        """Load a generator.

        Parameters
        ----------
        checkpoint : str or path
            ``pocket-diffusion``, a diffusers folder, a hub id, or one file in the original layout.
        layers : sequence of int
            Inner layers of the image encoder that are targets too, as ``features.layers`` of an
            experiment.
        grid : int
            Fields along each side that their features are averaged in.
        **settings
            Others under ``generator`` of an experiment, such as ``dtype`` and ``image_adapter``.

        Raises
        ------
        InputError
            If there is no such checkpoint, or a setting does not fit.
        """
        tree = {"checkpoint": os.fspath(checkpoint), **settings}
        looked_at = {"layers": list(layers), "grid": grid}
        return cls(
            config.validate(tree, schema=config.Generator, source="Generator"),
            features=config.validate(looked_at, schema=config.Features, source="Generator"),
        )

    @property
    def shapes(self) -> diffusion.TargetShapes:
        """Shapes of one image's targets, and the pixels of what is drawn."""
        return diffusion.target_shapes(self.settings, features=self.features)

    def encode(
        self, images: NDArray[np.uint8], *, captions: Sequence[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Return the targets of images, as ``raybrain features`` makes them.

        Parameters
        ----------
        images : ndarray of uint8, shape (image, y, x, rgb)
        captions : sequence of str, shape (image,), optional
            Without them there are no ``prompt_embeds``.

        Returns
        -------
        dict
            ``latents`` (image, channel, y, x), ``prompt_embeds`` (image, token, width) and, where
            the checkpoint has an image encoder, ``image_embeds`` (image, ...), with
            ``image_features`` (image, feature) of the layers that were asked for.
        """
        loaded = self._worker.generator
        found = {"latents": diffusion.encode_images(loaded, images=images)}
        if captions is not None:
            found["prompt_embeds"] = diffusion.encode_captions(
                loaded, captions=[(caption,) for caption in captions]
            )
        if loaded.image is not None:
            found["image_embeds"], layers = diffusion.see_images(
                loaded, images=images, features=self.features
            )
            if layers is not None:
                found["image_features"] = layers
        return found

    def reconstruct(
        self,
        *,
        latents: NDArray[np.floating] | None = None,
        prompt_embeds: NDArray[np.floating] | None = None,
        image_embeds: NDArray[np.floating] | None = None,
        image_features: NDArray[np.floating] | None = None,
        training_features: NDArray[np.floating] | None = None,
        image_ids: Sequence[str] | None = None,
        seed: int = 0,
        **how: Any,
    ) -> NDArray[np.uint8]:
        """Return images drawn from decoded targets, whichever are given.

        The noise of a sample depends on the seed, its image_id and its number alone, so what an
        experiment drew comes out again, in any order.

        Parameters
        ----------
        latents : ndarray, shape (image, channel, y, x), optional
            Scaled latents: where things are, and their colours.
        prompt_embeds : ndarray, shape (image, token, width), optional
        image_embeds : ndarray, shape (image, ...), optional
        image_features : ndarray, shape (image, feature), optional
            Of the layers that were asked for; with ``gradient={}`` what is drawn is guided by them.
        training_features : ndarray, shape (training image, feature), optional
            The true ones of training images, by whose spread they are compared; needed with
            ``image_features``.
        image_ids : sequence of str, optional
            Names of the images; positions when not given.
        seed : int
            Of the noise, as ``seed`` of an experiment.
        **how
            Settings under ``reconstruct`` of an experiment: ``samples``, ``steps``, ``strength``,
            ``guidance``, ``mode`` and others. The mode is that of what is given.

        Returns
        -------
        ndarray of uint8, shape (image, sample, y, x, rgb)

        Raises
        ------
        InputError
            If nothing is given, or something has another shape than the generator draws from.
        """
        given = {"latents": latents, "prompt_embeds": prompt_embeds, "image_embeds": image_embeds}
        rows = {name: np.asarray(values) for name, values in given.items() if values is not None}
        if not rows or not all(map(len, rows.values())):
            raise InputError(f"there is nothing to draw from; give {', '.join(given)} or several")
        layers = self._layers(image_features, training=training_features)
        counts = {name: len(values) for name, values in rows.items()}
        if layers is not None:
            counts["image_features"] = len(layers.values)
        images = next(iter(counts.values()))
        ids = [str(k) for k in range(images)] if image_ids is None else [str(i) for i in image_ids]
        counts["image_ids"] = len(ids)
        if len(set(counts.values())) > 1:
            told = ", ".join(f"{number} {name}" for name, number in counts.items())
            raise InputError(f"each image needs one of each; found {told}")
        mode = "+".join(letter for letter, target in TARGET_OF.items() if target in rows)
        settings = config.validate(
            {"mode": mode, **how}, schema=config.Reconstruct, source="reconstruct"
        )
        self._worker.seed = seed
        size = settings.images_per_unit
        drawn = [
            self._worker(
                diffusion.DrawingUnit(
                    image_ids=tuple(ids[start : start + size]),
                    samples=tuple(range(settings.samples)),
                    image_features=layers and layers.rows(slice(start, start + size)),
                    settings=settings,
                    **{
                        name: rows[name][start : start + size] if name in rows else None
                        for name in given
                    },
                )
            ).images
            for start in range(0, images, size)
        ]
        return np.concatenate(drawn)

    def _layers(
        self, decoded: NDArray[np.floating] | None, *, training: NDArray[np.floating] | None
    ) -> diffusion.LayerTargets | None:
        if decoded is None:
            return None
        if not self.features.layers:
            raise InputError(
                "image_features are of layers that the generator was not loaded with; give "
                "from_pretrained their numbers, as in layers=(4, 7, 11)"
            )
        if training is None or len(training) < 2:
            raise InputError(
                "image_features are compared by their spread over training images; give the true "
                "ones of two or more as training_features"
            )
        if np.shape(training)[1:] != np.shape(decoded)[1:]:
            raise InputError(
                f"image_features have shape {np.shape(decoded)}, but training_features "
                f"{np.shape(training)}; both should be of the same layers"
            )
        spread = diffusion.Spread.of([np.asarray(training)])
        return diffusion.LayerTargets(np.asarray(decoded), spread=spread, features=self.features)
