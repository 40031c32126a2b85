"""What a person looks at: the gallery, grids of images, figures for papers."""

from raybrain.report.figures import FigureFiles, noise_ceiling_figure, score_figure
from raybrain.report.gallery import ranking, write_gallery
from raybrain.report.pictures import image_grid, side_by_side

__all__ = [
    "FigureFiles",
    "image_grid",
    "noise_ceiling_figure",
    "ranking",
    "score_figure",
    "side_by_side",
    "write_gallery",
]
