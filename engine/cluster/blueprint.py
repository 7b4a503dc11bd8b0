"""Cluster configurations in Ray's `ray up` format: checked offline, and found again from inside a running cluster.

Both lean on private parts of Ray (there is no public way in 2.60), each in one function. Left out: starting clusters,
which is Ray's own `ray up` or KubeRay's. Called by the tests for `cluster.yaml` and its variants, and by
`engine.resources.capacity`.
"""

import os
from pathlib import Path
from typing import Any

import psutil

from engine.config import read_yaml
from engine.errors import ClusterError

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


def validate_cluster_yaml(path: str | Path) -> dict[str, Any]:
    """Check a cluster file against the installed Ray, without asking any cloud; its defaults come back filled in.

    Raises `ClusterError` naming the key at fault.
    """
    import jsonschema  # type: ignore[import-untyped]
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = read_yaml(path)
    try:
        prepared: dict[str, Any] = prepare_config(config)
        validate_config(prepared)
    except jsonschema.ValidationError as error:
        where = ".".join(str(step) for step in error.absolute_path) or "the top level"
        raise ClusterError(f"{path} is no cluster configuration: at {where}, {error.message}.", "Correct it.") from None
    except (KeyError, ValueError, TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise ClusterError(f"{path} is no cluster configuration: {error}.", "Compare it with cluster.yaml.") from None
    return prepared


def autoscaling_config(address: str) -> dict[str, Any] | None:
    """The configuration by which the autoscaler of the cluster at `ip:port` adds nodes; None where it is not known.

    On a head started with `--autoscaling-config` (so `ray up`) it is the file its monitor process was given; on
    KubeRay it is the RayCluster resource, which the head's service account may read. Elsewhere, so on a worker node,
    it cannot be learnt.
    """
    return _from_monitor(address) or _from_kuberay()


def _from_monitor(address: str) -> dict[str, Any] | None:
    port = address.rpartition(":")[2]
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except (psutil.Error, OSError):
            continue
        options = dict(word.split("=", 1) for word in words if word.startswith("--") and "=" in word)
        path = options.get("--autoscaling-config")
        if path and options.get("--gcs-address", "").endswith(f":{port}"):
            return read_yaml(Path(path).expanduser())
    return None


def _from_kuberay() -> dict[str, Any] | None:
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not _SERVICE_ACCOUNT.exists():
        return None
    import requests
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler._private.kuberay.node_provider import KubernetesHttpApiClient

    try:
        resource = KubernetesHttpApiClient(_SERVICE_ACCOUNT.read_text().strip()).get(f"rayclusters/{name}")
    except (requests.RequestException, OSError):
        return None
    if not resource["spec"].get("enableInTreeAutoscaling"):
        return None
    config: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(resource)
    return config
