"""Whether the head of a Ray cluster takes our token, and refuses who has none.

Asked in one call: Ray's own client tries a refused token for 20 s and does not say why it failed.
"""

from __future__ import annotations

import grpc
from ray.core.generated.gcs_service_pb2 import (
    GetClusterIdRequest,  # pyright: ignore[reportAttributeAccessIssue]
)
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

from pipeline.preflight.findings import Finding, good, wrong

ASK_SEC = 5.0


def admits(address: str, token: str) -> bool | None:
    """Whether the head at host:port answers to who shows this token ('' for none); None where it
    does not answer at all, or another thing is there.
    """
    shown = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(address) as channel:
        try:
            stub = NodeInfoGcsServiceStub(channel)
            stub.GetClusterId(GetClusterIdRequest(), timeout=ASK_SEC, metadata=shown)
        except grpc.RpcError as error:
            told = error.code() if isinstance(error, grpc.Call) else None
            return False if told == grpc.StatusCode.UNAUTHENTICATED else None
    return True


def check_head(address: str, token: str, *, alone: bool) -> Finding | None:
    """What is wrong with a head and the token for it, or that all is well; None where the head
    does not tell. `alone`: no other machine can reach it.
    """
    taken = admits(address, token)
    if taken is None:
        return None
    if not taken:
        said = f"the head at {address} refuses {'this token' if token else 'who has no token'}"
        return wrong(
            "token",
            said,
            needed="the token that the cluster was started with",
            remedy="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its file",
        )
    if not token:
        return None
    if admits(address, "") and not alone:
        return wrong(
            "token",
            f"the head at {address} also lets in who has no token",
            needed="a head that asks for it: else it runs anybody's code",
            remedy="start the head with RAY_AUTH_MODE=token",
        )
    return good("token", f"the head at {address} takes it")
