"""Joining a Ray cluster that is there: from one of its nodes, or from outside of it, through its client server (``ray://``).

Ray's own refusals take up to minutes and many lines. So the port is looked at first, and a client server is asked whether it lets us in; each
within a bounded time, and what is wrong is said in one line.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Mapping
from importlib import import_module
from typing import Final

import psutil

from keystone import logs
from keystone.errors import UsageError

AUTO: Final = "auto"  # the Ray of this node
NAMESPACE: Final = "keystone"
OUTSIDE: Final = "ray://"  # through the client server of the head
CLIENT_PORT: Final = 10_001  # which Ray gives that by itself
FORMS: Final = f"auto, HOST:PORT of the cluster's head, such as 10.0.0.1:6379, or {OUTSIDE}HOST:{CLIENT_PORT} from a machine that is none of its nodes"
LET_IN: Final = "put a copy of its nodes' ~/.ray/auth_token at the same place here, or name it by RAY_AUTH_TOKEN_PATH"
LOOK_S: Final = 5.0  # for a connection to a cluster's head, and for its client server's answer
REASON_LETTERS_MAX: Final = 400
TOO_BUSY: Final = "Starting Ray client server failed"  # in time: a process of its own for each client, which imports Ray
TRIES: Final = 3  # of what fails so


def named(address: str) -> str:
    """``auto`` is what RAY_ADDRESS says, where it says anything: as Ray has it."""
    return (os.environ.get("RAY_ADDRESS") or AUTO) if address == AUTO else address


def is_outside(address: str | None) -> bool:
    """Whether this process, once it has joined there, need not be on a node: then no directory of ours is one of theirs."""
    return address is not None and named(address).startswith(OUTSIDE)


def join(address: str, environment: Mapping[str, str]) -> None:
    """Connect to a cluster, whose actors of ours get ``environment``. Raises ``UsageError`` in one line where that cannot be."""
    import ray

    address = named(address)
    _look_at(address)
    if is_outside(address):
        _ask_client_server(address)
    elif address != AUTO and not has_raylet():
        raise UsageError(
            f"--address {address}: this machine is no node of a cluster: say {OUTSIDE}{address.rpartition(':')[0]}:{CLIENT_PORT},"
            f" or make it one (ray start --address={address})"
        )
    logs.adopt("ray")
    logging.getLogger("ray").setLevel(logging.ERROR)
    for tries_left in reversed(range(TRIES)):
        try:
            ray.init(
                address=address,
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.ERROR,
                runtime_env={"env_vars": dict(environment)},
            )
            break
        except (ConnectionError, TimeoutError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            if TOO_BUSY in str(error) and tries_left:
                ray.shutdown()
                continue
            raise UsageError(f"--address {address}: no Ray can be joined there ({reason_of(error)}): {_instead(error)}") from error
    if hasattr(ray._private.worker, "print_to_stdstream"):  # noqa: SLF001 - there is no public way
        ray._private.worker.print_to_stdstream = lambda *_, **__: None  # noqa: SLF001


def reason_of(error: Exception) -> str:
    """What Ray says, in one line: of the other side's traceback its last one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any(line.startswith("Traceback") for line in lines):
        lines = lines[-1:]
    return " ".join(lines)[:REASON_LETTERS_MAX] or type(error).__name__


def _instead(error: Exception) -> str:
    if "Version mismatch" in str(error):
        return "use the same Python and Ray as the cluster"
    if TOO_BUSY in str(error):
        return "the head is too busy to start a process for a client: try again, or give it more cores"
    return "start one (ray up cluster.yaml), or leave the option out"


def has_raylet() -> bool:
    """Whether a node's own process runs here: without one Ray looks for it for a minute, and then says that it found none."""
    return any(process.info["name"] == "raylet" for process in psutil.process_iter(["name"]))


def _look_at(address: str) -> None:
    """``UsageError`` where nothing listens: Ray itself would ask again for minutes."""
    if address == AUTO:
        return
    scheme, _, place = address.rpartition("://")
    host, colon, port = place.rpartition(":")
    if scheme not in {"", OUTSIDE.removesuffix("://")} or not colon or not port.isdecimal():
        raise UsageError(f"--address {address}: write it as {FORMS}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LOOK_S).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"--address {address}: nothing answers there ({error}): start a cluster (ray up cluster.yaml), or correct the address") from error


def _ask_client_server(address: str) -> None:
    """``UsageError`` where it does not let us in: Ray would ask again for 30 s, and then say that time is over."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own log says in many lines what we say in one
    try:
        grpc = import_module("grpc")  # by name, as what Ray generated: neither has types
        messages, stubs = (import_module(f"ray.core.generated.ray_client_pb2{kind}") for kind in ("", "_grpc"))
    except ImportError as error:
        raise UsageError(f"--address {address}: Ray's client needs grpcio, which is not installed here: pip install 'keystone[cluster]'") from error
    from ray._private.grpc_utils import init_grpc_channel  # with the token, and TLS, as the client itself makes it

    channel = init_grpc_channel(address.removeprefix(OUTSIDE))
    try:
        asked = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)
        stubs.RayletDriverStub(channel).ClusterInfo(asked, timeout=LOOK_S, metadata=[("client_id", uuid.uuid4().hex)])
    except grpc.RpcError as error:
        raise UsageError(f"--address {address}: {refusal(error.code().name, error.details() or '')}") from error
    finally:
        channel.close()


def refusal(code: str, details: str) -> str:
    """Why a client server does not let us in, by gRPC's name of it, and what to change."""
    if code == "UNAUTHENTICATED":
        if os.environ.get("RAY_AUTH_MODE", "").lower() == "token":
            return f"the token given here is not the cluster's, or none is: {LET_IN}"
        return f"the cluster lets nobody in without its token: set RAY_AUTH_MODE=token, and {LET_IN}"
    why = reason_of(Exception(details)) if details else code.lower().replace("_", " ")
    return f"no Ray client server answers there ({why}): a head that has ray[default] serves it, at port {CLIENT_PORT} unless it was started with another"
