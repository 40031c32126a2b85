"""Scores beside chance, floors and ceiling, under a named and versioned protocol.

Read `protocols` first: it declares what is computed. `scoring.score_rows` does it.
"""

from raybrain.evaluation.across import (
    CORRECTION,
    EVERYONE,
    Across,
    Cell,
    Gain,
    Scored,
    across_runs,
)
from raybrain.evaluation.categories import CategoryScore, category_accuracy
from raybrain.evaluation.comparison import (
    Comparison,
    compare_tables,
    comparison_frame,
    comparison_text,
)
from raybrain.evaluation.declarations import Metric, Protocol
from raybrain.evaluation.evaluating import evaluate, floor_rows
from raybrain.evaluation.floors import (
    category_means,
    mean_image,
    nearest_training,
    random_training,
    whitening,
)
from raybrain.evaluation.grids import (
    Grid,
    beside_grid,
    coordinates,
    gain_grid,
    label_of,
    markdown_text,
    score_grid,
)
from raybrain.evaluation.identification import correlation_distance, n_way, two_way
from raybrain.evaluation.latents import (
    ERROR,
    ERROR_OF_MEAN,
    ERROR_OF_RIDGE,
    LatentScores,
    latent_scores,
)
from raybrain.evaluation.networks import extract_features
from raybrain.evaluation.pixels import pixcorr, ssim
from raybrain.evaluation.protocols import PROTOCOLS, protocol_named, with_metrics
from raybrain.evaluation.published import Published, published_for
from raybrain.evaluation.retrieval import POOL, Retrieval, nearest_first, retrieval
from raybrain.evaluation.scoring import (
    ABOUT,
    CATEGORY_ORACLE,
    CEILING,
    E_ONLY,
    EMBEDDING_RERANKED,
    MEAN_IMAGE,
    NEAREST_TRAINING,
    RANDOM_TRAINING,
    RERANKED,
    SHUFFLED,
    SYSTEM,
    Z_ONLY,
    score_rows,
)
from raybrain.evaluation.statistics import bootstrap, mean_of_few, sign_flip_p
from raybrain.evaluation.strata import (
    Stratum,
    likeness_to_training,
    nearness_text,
    quantile_labels,
    scores_by,
    thumbnails,
)
from raybrain.evaluation.table import Difference, Score, Table, load_table
from raybrain.evaluation.weights import weights_folder, weights_of

__all__ = [
    "ABOUT",
    "CATEGORY_ORACLE",
    "CEILING",
    "CORRECTION",
    "EMBEDDING_RERANKED",
    "ERROR",
    "ERROR_OF_MEAN",
    "ERROR_OF_RIDGE",
    "EVERYONE",
    "E_ONLY",
    "MEAN_IMAGE",
    "NEAREST_TRAINING",
    "POOL",
    "PROTOCOLS",
    "RANDOM_TRAINING",
    "RERANKED",
    "SHUFFLED",
    "SYSTEM",
    "Z_ONLY",
    "Across",
    "CategoryScore",
    "Cell",
    "Comparison",
    "Difference",
    "Gain",
    "Grid",
    "LatentScores",
    "Metric",
    "Protocol",
    "Published",
    "Retrieval",
    "Score",
    "Scored",
    "Stratum",
    "Table",
    "across_runs",
    "beside_grid",
    "bootstrap",
    "category_accuracy",
    "category_means",
    "compare_tables",
    "comparison_frame",
    "comparison_text",
    "coordinates",
    "correlation_distance",
    "evaluate",
    "extract_features",
    "floor_rows",
    "gain_grid",
    "label_of",
    "latent_scores",
    "likeness_to_training",
    "load_table",
    "markdown_text",
    "mean_image",
    "mean_of_few",
    "n_way",
    "nearest_first",
    "nearest_training",
    "nearness_text",
    "pixcorr",
    "protocol_named",
    "published_for",
    "quantile_labels",
    "random_training",
    "retrieval",
    "score_grid",
    "score_rows",
    "scores_by",
    "sign_flip_p",
    "ssim",
    "thumbnails",
    "two_way",
    "weights_folder",
    "weights_of",
    "whitening",
    "with_metrics",
]
