"""Who may talk to which Ray: tokens, loopback addresses, and a probe that answers within its deadline.

Ray 2.60 takes a token from RAY_AUTH_TOKEN, else from the file RAY_AUTH_TOKEN_PATH names, else from ~/.ray/auth_token.
With a wrong one its own client repeats the same question for a minute, and with none it may abort the process, so
every connection is probed here first. A token is never logged, printed or put into an error.

Left out: connecting (`engine.cluster.connection`). Called there, by `engine.submission` and by `engine.doctor`.
"""

import ipaddress
import os
import secrets
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from engine.errors import ClusterError

API_KEY = "HEADRACE_API_KEY"
"""Environment variable with the key of what is served here, or several with commas between them."""
_MODE = "RAY_AUTH_MODE"
_REFUSED = ("UNAUTHENTICATED", "PERMISSION_DENIED")
TOKEN_REMEDY = (
    "Put the token that `ray get-auth-token` prints on its head into a file and set RAY_AUTH_TOKEN_PATH to it."
)


class Token(NamedTuple):
    """Where this process finds its token, and the token, which `repr` does not show."""

    origin: str
    value: str

    def __repr__(self) -> str:
        return f"Token({self.origin!r})"


class Alive(NamedTuple):
    """What a cluster says of itself: its Ray version and the addresses of its live nodes."""

    ray_version: str
    nodes: list[str]


def find_token() -> Token | None:
    """The token this process would show, looked up in Ray's order. Raises `ClusterError` if it cannot be read."""
    if value := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return Token("RAY_AUTH_TOKEN", value)
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named) if named else _default_path()
    try:
        value = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        value = ""
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"The token file {path} cannot be read: {error}.", TOKEN_REMEDY) from None
    if value:
        return Token(str(path), value)
    if named:
        raise ClusterError(f"RAY_AUTH_TOKEN_PATH names {path}, which holds no token.", TOKEN_REMEDY)
    return None


def ensure_token() -> Token:
    """The token of this user, made if there is none; the file is readable by its owner only.

    Ray would make the same file by itself, but readable by every user of the machine.
    """
    if token := find_token():
        return token
    path = _default_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Finished under another name (which mkstemp keeps to its owner), then linked: of two that start at once, one
        # makes the token and both find it.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(32))
            if path.exists():
                os.replace(temporary, path)
            else:
                with suppress(FileExistsError):
                    os.link(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        problem = f"Ray needs a token and {path} cannot be written: {error.strerror}."
        raise ClusterError(problem, "Set RAY_AUTH_TOKEN_PATH to a file that holds one.") from None
    token = find_token()
    assert token is not None
    return token


def use_token() -> bool:
    """Show our token from now on, unless RAY_AUTH_MODE says otherwise; False if there is none to show or it is off."""
    mode = os.environ.get(_MODE, "").lower()
    if mode and mode != "token":
        return False
    if find_token() is None:
        if mode:
            raise ClusterError("RAY_AUTH_MODE is `token` and no token is found.", TOKEN_REMEDY)
        return False
    os.environ[_MODE] = "token"
    from ray import _raylet

    # Ray reads its settings when it is first imported, and the token once: both may have been before us.
    _raylet.Config.initialize("")  # type: ignore[attr-defined]
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]
    return True


def is_loopback(host: str) -> bool:
    """Whether a host name or address never leaves this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def probe(address: str, *, deadline: float = 10.0, called: str = "") -> Alive:
    """Ask the Ray at `ip:port` for its version and nodes, within `deadline` seconds; errors name it as `called`.

    Raises `ClusterError`: not reachable, not a Ray, token refused, or of another Ray version.
    """
    import grpc  # type: ignore[import-untyped]
    import ray
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_pb2, gcs_service_pb2, gcs_service_pb2_grpc

    name = called or address
    host, _, port = address.rpartition(":")
    channel = init_grpc_channel(address)
    try:
        # A port where nobody listens says so at once, which gRPC would not: it goes on trying.
        socket.create_connection((host.strip("[]"), int(port)), timeout=deadline / 4).close()
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        grpc.channel_ready_future(channel).result(timeout=deadline / 4)
        request = gcs_service_pb2.GetAllNodeInfoRequest(state_filter=gcs_pb2.GcsNodeInfo.ALIVE)
        version = str(stub.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=deadline / 4).ray_version)
        nodes = stub.GetAllNodeInfo(request, timeout=deadline / 4).node_info_list
    except (OSError, grpc.FutureTimeoutError):
        raise ClusterError(
            f"No Ray answers at {name}.",
            "Start one (`ray start --head`), or give the address `ray status` shows, its port being 6379 by default.",
        ) from None
    except grpc.RpcError as error:
        code = error.code()
        if code.name in _REFUSED:
            token = find_token()
            shown = f"the token from {token.origin}" if token else "a connection without a token"
            raise ClusterError(f"The Ray at {name} refuses {shown}.", TOKEN_REMEDY) from None
        raise ClusterError(
            f"What answers at {name} is no Ray cluster ({code.name}).",
            "Give the cluster's own port (6379 by default), not the dashboard's.",
        ) from None
    finally:
        channel.close()
    if version != ray.__version__:
        raise ClusterError(
            f"The cluster at {name} runs Ray {version}, this machine {ray.__version__}.",
            "Use the same version on both.",
        )
    return Alive(version, [node.node_manager_address for node in nodes])


def asks_for_token(address: str, *, deadline: float = 5.0) -> bool:
    """Whether the Ray at `ip:port` turns away a caller without a token; False also if it does not answer in time."""
    import grpc
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with grpc.insecure_channel(address) as channel:
        stub = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            stub.GetAllNodeInfo(gcs_service_pb2.GetAllNodeInfoRequest(), timeout=deadline)
        except grpc.RpcError as error:
            return error.code().name in _REFUSED
    return False


def first_line(error: BaseException) -> str:
    """The first line of what an error says, for the one sentence a user is shown."""
    return (str(error).strip() or repr(error)).splitlines()[0]


def _default_path() -> Path:
    return Path.home() / ".ray" / "auth_token"
