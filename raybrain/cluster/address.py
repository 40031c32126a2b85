"""``RAY_ADDRESS`` is a cluster that answers, or it is refused within seconds."""

from __future__ import annotations

import os
import re
import socket

from raybrain.config import InputError

VARIABLE = "RAY_ADDRESS"
LOCAL = ("", "local")
ANY = "auto"
"""The cluster that runs on this machine, whatever its port."""
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 5.0
MEANT = (
    f"{VARIABLE} should be HOST:PORT as 'ray start --head' prints it (the port is usually 6379), "
    f"'auto' on a node of a running cluster, or unset to work on this machine alone"
)


def starts_its_own() -> bool:
    """Return whether this process starts a Ray of its own, which cannot grow."""
    return os.environ.get(VARIABLE, "local") in LOCAL


def check_address() -> None:
    """Raise `InputError` if no cluster of Ray answers at ``RAY_ADDRESS``.

    Ray itself would try for up to a minute, and end in a traceback.
    """
    given = os.environ[VARIABLE]
    if given == ANY:
        return
    scheme, _, rest = given.rpartition("://")
    if scheme in ("http", "https"):
        raise InputError(
            f"{VARIABLE} is {given}, the address of the jobs API, which only 'ray job' takes (as "
            f"RAY_API_SERVER_ADDRESS); {MEANT}"
        )
    if scheme:
        raise InputError(
            f"{VARIABLE} is {given}, but raybrain joins a cluster from one of its nodes; {MEANT}, "
            f"or submit a job: ray job submit --working-dir . -- python jobs/run.py EXPERIMENT.yaml"
        )
    found = re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^:/\s]+):(\d{1,5})", rest)
    if not found or not 0 < int(found[2]) < 1 << 16:
        raise InputError(f"{VARIABLE} is '{given}', which is no address; {MEANT}")
    try:
        with socket.create_connection((found[1].strip("[]"), int(found[2])), CONNECT_SECONDS):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"nobody answers at {VARIABLE}={given} ({reason}); {MEANT}") from None
    if not _speaks_as_head(given):
        raise InputError(
            f"what answers at {VARIABLE}={given} is not the head of a Ray cluster, but perhaps its "
            f"dashboard; {MEANT}"
        )


def refusal(error: Exception) -> InputError:
    """Return what to tell of a cluster that answers and still cannot be joined."""
    given = os.environ[VARIABLE]
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return InputError(
        f"the cluster at {VARIABLE}={given} cannot be joined from here ({reason}); run this on one "
        f"of its nodes with the same versions of Ray and Python, or submit a job; {MEANT}"
    )


def _speaks_as_head(address: str) -> bool:
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    channel = init_grpc_channel(address, options=[("grpc.enable_http_proxy", 0)])
    try:
        grpc.channel_ready_future(channel).result(timeout=ANSWER_SECONDS)
        head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        head.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), timeout=ANSWER_SECONDS)
    except grpc.FutureTimeoutError:
        return False
    except grpc.RpcError as error:
        if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            raise InputError(
                f"the cluster at {VARIABLE}={address} asks for a token; export RAY_AUTH_MODE=token "
                f"and put its token into ~/.ray/auth_token or RAY_AUTH_TOKEN"
            ) from None
        return False
    finally:
        channel.close()
    return True
