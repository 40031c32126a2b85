"""Scores beside chance, floors and ceiling, under a named and versioned protocol.

Read `protocols` first: it declares what is computed. `scoring.score_rows` does it.
"""

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
from raybrain.evaluation.identification import correlation_distance, n_way, two_way
from raybrain.evaluation.latents import LatentScores, latent_scores
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
    "EMBEDDING_RERANKED",
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
    "CategoryScore",
    "Comparison",
    "Difference",
    "LatentScores",
    "Metric",
    "Protocol",
    "Published",
    "Retrieval",
    "Score",
    "Stratum",
    "Table",
    "category_accuracy",
    "category_means",
    "compare_tables",
    "comparison_frame",
    "comparison_text",
    "correlation_distance",
    "evaluate",
    "extract_features",
    "floor_rows",
    "latent_scores",
    "likeness_to_training",
    "load_table",
    "mean_image",
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
    "score_rows",
    "scores_by",
    "ssim",
    "thumbnails",
    "two_way",
    "weights_folder",
    "weights_of",
    "whitening",
    "with_metrics",
]
