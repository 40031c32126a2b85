"""Scores beside chance, floors and ceiling, under a named and versioned protocol.

Read `protocols` first: it declares what is computed. `scoring.score_rows` does it.
"""

from raybrain.evaluation.categories import CategoryScore, category_accuracy
from raybrain.evaluation.floors import (
    category_means,
    mean_image,
    nearest_training,
    random_training,
)
from raybrain.evaluation.identification import correlation_distance, n_way, two_way
from raybrain.evaluation.latents import LatentScores, latent_scores
from raybrain.evaluation.networks import extract_features
from raybrain.evaluation.pixels import pixcorr, ssim
from raybrain.evaluation.protocols import PROTOCOLS, Metric, Protocol, protocol_named
from raybrain.evaluation.scoring import (
    ABOUT,
    CATEGORY_ORACLE,
    CEILING,
    MEAN_IMAGE,
    NEAREST_TRAINING,
    RANDOM_TRAINING,
    SHUFFLED,
    SYSTEM,
    score_rows,
)
from raybrain.evaluation.table import Difference, Score, Table

__all__ = [
    "ABOUT",
    "CATEGORY_ORACLE",
    "CEILING",
    "MEAN_IMAGE",
    "NEAREST_TRAINING",
    "PROTOCOLS",
    "RANDOM_TRAINING",
    "SHUFFLED",
    "SYSTEM",
    "CategoryScore",
    "Difference",
    "LatentScores",
    "Metric",
    "Protocol",
    "Score",
    "Table",
    "category_accuracy",
    "category_means",
    "correlation_distance",
    "extract_features",
    "latent_scores",
    "mean_image",
    "n_way",
    "nearest_training",
    "pixcorr",
    "protocol_named",
    "random_training",
    "score_rows",
    "ssim",
    "two_way",
]
