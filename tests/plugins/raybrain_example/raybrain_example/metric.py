"""``evaluate.metrics=[brightness]``: whether a reconstruction is as bright as the image seen."""

from raybrain.evaluation import Metric


def brightness(seen, reconstructed):
    """Return 1 - the difference in mean brightness (pair,) of images (pair, y, x, rgb) in 0..1."""
    return 1.0 - abs(seen.mean(axis=(1, 2, 3)) - reconstructed.mean(axis=(1, 2, 3)))


BRIGHTNESS = Metric(
    "brightness",
    "bright",
    "pixels",
    "function",
    "1 - difference in mean brightness",
    function=brightness,
)
