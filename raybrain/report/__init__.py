"""What a person looks at: the gallery, grids of images, figures for papers."""

from raybrain.report.comparison_page import write_comparison
from raybrain.report.figures import (
    FigureFiles,
    curve_figure,
    noise_ceiling_figure,
    score_figure,
)
from raybrain.report.gallery import ranking, write_gallery
from raybrain.report.pictures import image_grid, side_by_side

__all__ = [
    "FigureFiles",
    "curve_figure",
    "image_grid",
    "noise_ceiling_figure",
    "ranking",
    "score_figure",
    "side_by_side",
    "write_comparison",
    "write_gallery",
]
