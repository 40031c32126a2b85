"""What a person looks at: the gallery, grids of images, figures for papers."""

from raybrain.report.gallery import ranking, write_gallery
from raybrain.report.pictures import image_grid

__all__ = ["image_grid", "ranking", "write_gallery"]
