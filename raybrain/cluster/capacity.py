"""What a cluster can give: less where a wish may shrink, a node to wait for, or a refusal."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raybrain import config

VERDICT_SECONDS = 45.0
"""How long an autoscaler may take to say that it has no such node; it looks every 5 s."""
POLL_SECONDS = 0.5
STATUS = b"__autoscaling_status"
"""Where the first generation of Ray's autoscaler reports; the second answers requests."""
UNSCALED = "node_"
"""How node types begin that the autoscaler made up for nodes it does not manage."""


@dataclass(frozen=True)
class Need:
    """Workers that a stage cannot do without."""

    setting: str
    """Address of the section of the experiment that asks for them."""
    workers: config.Workers
    together: int = 1
    """How many must run at the same time."""
    shrinks: bool = False
    """Whether fewer CPUs do as well, as for a task that is no member of a group."""


def check(needs: Sequence[Need], *, own: bool, ahead: bool = False) -> None:
    """Raise `raybrain.config.InputError` for what the cluster can never give.

    Where a node is missing that an autoscaler can add, a line on stderr says which one is waited
    for.

    Parameters
    ----------
    needs : sequence of Need
    own : bool
        Whether Ray was started by this process, on this machine alone.
    ahead : bool
        Whether the workers are not wanted yet, so that no node should be started for them.
    """
    for need in needs:
        nodes = _nodes()
        if _slots(nodes, need) >= need.together:
            continue
        if own or not _grows():
            raise config.InputError(_refusal(need, nodes, where="machine" if own else "cluster"))
        if ahead:
            continue
        asked = describe(need.workers)
        print(f"{need.setting}: waits for {need.together} x {asked}", file=sys.stderr, flush=True)
        if _is_infeasible(need):
            raise config.InputError(_refusal(need, nodes, where="cluster, whatever it adds,"))


def cpus_of(workers: config.Workers) -> float:
    """Return the CPUs that a plain task asks for: those it wishes, or all of the largest node."""
    nodes = _nodes()
    largest = max((one.get("CPU", 0.0) for one in nodes if _has_gpus(one, workers)), default=0.0)
    if largest >= workers.cpus or not largest or _grows():
        return workers.cpus
    return largest


def missing_node(workers: config.Workers) -> str:
    """Return what a node that is waited for must have, or nothing where there is such a node."""
    held = any(_fits(node, workers) for node in _nodes())
    return "" if held else describe(workers)


def describe(workers: config.Workers) -> str:
    """Return what a worker holds, in words."""
    gpus = f" and {workers.gpus:g} GPU{'s' * (workers.gpus != 1)}" if workers.gpus else ""
    return f"{workers.cpus:g} CPU{'s' * (workers.cpus != 1)}{gpus}"


def _nodes() -> list[Mapping[str, float]]:
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _has_gpus(node: Mapping[str, float], workers: config.Workers) -> bool:
    return node.get("GPU", 0.0) >= workers.gpus


def _fits(node: Mapping[str, float], workers: config.Workers) -> bool:
    return _has_gpus(node, workers) and node.get("CPU", 0.0) >= workers.cpus


def _slots(nodes: Sequence[Mapping[str, float]], need: Need) -> int:
    """Return how many of the workers all nodes hold together."""
    workers = need.workers
    total = 0
    for node in nodes:
        cpus = node.get("CPU", 0.0)
        wanted = min(workers.cpus, cpus) if need.shrinks else workers.cpus
        fits = cpus / wanted if wanted else 0.0
        if workers.gpus:
            fits = min(fits, node.get("GPU", 0.0) / workers.gpus)
        total += int(fits + 1e-9)
    return total


def _refusal(need: Need, nodes: Sequence[Mapping[str, float]], *, where: str) -> str:
    cpus, gpus = (
        max((node.get(one, 0.0) for node in nodes), default=0.0) for one in ("CPU", "GPU")
    )
    what = "it has" if "machine" in where else f"of its {len(nodes)} nodes the largest has"
    count = f"at least {need.together} workers" if need.together > 1 else "a worker"
    remedy = f"{need.setting}.min or its cpus and gpus" if need.together > 1 else ""
    return (
        f"{need.setting} asks for {count} of {describe(need.workers)}, which this {where} never "
        f"has: {what} {cpus:g} CPUs and {gpus:g} GPUs; lower "
        f"{remedy or f'{need.setting}.cpus and gpus'}, or run it where there are more"
    )


def _grows() -> bool:
    """Return whether an autoscaler may add nodes to the cluster."""
    from ray.core.generated import autoscaler_pb2

    if _state(autoscaler_pb2).autoscaler_state_version > 0:
        return True
    try:
        report = json.loads(_client().internal_kv_get(STATUS, None) or b"{}")
        known = report.get("autoscaler_report", {}).get("active_nodes", {})
    except (ValueError, AttributeError):
        return False
    return any(not name.startswith(UNSCALED) for name in known)


def _is_infeasible(need: Need) -> bool:
    """Ask the autoscaler by requests of that size, and return whether it has no node for them."""
    import ray
    from ray.core.generated import autoscaler_pb2

    if not _state(autoscaler_pb2).autoscaler_state_version:
        return False  # its first generation does not say
    ask = ray.remote(_hold).options(
        num_cpus=need.workers.cpus, num_gpus=need.workers.gpus, max_retries=0
    )
    asked = [ask.remote(2 * VERDICT_SECONDS) for _ in range(need.together)]
    wanted = {"CPU": need.workers.cpus, "GPU": need.workers.gpus}
    try:
        deadline = time.monotonic() + VERDICT_SECONDS
        known = _requested(autoscaler_pb2, wanted)
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            known = known or _requested(autoscaler_pb2, wanted)
            state = _state(autoscaler_pb2)
            if any(_same(one, wanted) for one in state.infeasible_resource_requests):
                return True
            if known and state.last_seen_cluster_resource_state_version > known:
                return False
        return False
    finally:
        for one in asked:
            ray.cancel(one, force=True)


def _hold(seconds: float) -> None:
    time.sleep(seconds)


def _requested(messages: Any, wanted: Mapping[str, float]) -> int:
    """Return the version of the cluster's state in which the request shows, or 0."""
    reply = messages.GetClusterResourceStateReply()
    reply.ParseFromString(_client().get_cluster_resource_state())
    state = reply.cluster_resource_state
    shows = any(_same(one.request, wanted) for one in state.pending_resource_requests)
    return int(state.cluster_resource_state_version) if shows else 0


def _same(request: Any, wanted: Mapping[str, float]) -> bool:
    bundle = dict(request.resources_bundle)
    return all(abs(bundle.get(name, 0.0) - amount) < 1e-4 for name, amount in wanted.items())


def _state(messages: Any) -> Any:
    reply = messages.GetClusterStatusReply()
    reply.ParseFromString(_client().get_cluster_status())
    return reply.autoscaling_state


def _client() -> Any:
    import ray

    return ray._private.worker.global_worker.gcs_client
