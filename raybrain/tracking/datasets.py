"""Datasets as MLflow shows them: name, digest, schema and what they were used for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LONGEST_DIGEST = 36


@dataclass(frozen=True)
class Described:
    """One part of a dataset that a run was made from, or tried on."""

    name: str
    """Dataset, subject and part, as in ``nsd/subj01/train``."""
    digest: str
    """Of its contents; MLflow keeps the first 36 characters."""
    source: str
    """Folder or URL."""
    context: str
    """What it was for: train, validation or test."""
    columns: Mapping[str, tuple[str, tuple[int, ...]]]
    """Array -> type and shape, -1 for the trials."""
    counts: Mapping[str, int]
    """Such as trials and images."""

    def record(self) -> dict[str, Any]:
        """Return it as MLflow keeps it, its schema in MLflow's own form."""
        columns = [
            {"name": name, "type": _shown(kind, shape)}
            for name, (kind, shape) in self.columns.items()
        ]
        return {
            "name": self.name,
            "digest": self.digest[:LONGEST_DIGEST],
            "source_type": "local" if "://" not in self.source else self.source.partition(":")[0],
            "source": json.dumps({"uri": self.source}),
            "schema": json.dumps({"mlflow_colspec": columns}),
            "profile": json.dumps({"num_rows": self.counts.get("trials", 0), **self.counts}),
            "context": self.context,
        }


def _shown(kind: str, shape: tuple[int, ...]) -> str:
    inner = [str(size) for size in shape if size >= 0]
    return f"{kind}[{' x '.join(inner)}]" if inner else kind
