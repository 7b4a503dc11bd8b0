"""What the whole cluster has measured, in Prometheus's text: every node's export, joined.

Ray exports the metrics of a node's processes at a port of that node, a few seconds after they are taken. A scraper that
knows the nodes goes there; one that knows only the endpoint asks the endpoint.

Left out: which metrics there are. Called by `serve_apps.openai_app`.
"""

import asyncio
import re

import httpx
import ray

_KEPT = ("ray_headrace_", "ray_vllm", "ray_serve_")
_NOISE = re.compile(r'(?:Component|SessionName|Version|otel_scope_\w+)="[^"]*",?')
"""Labels that say nothing: the same in every line."""
_PATIENCE = 5.0
"""Seconds that a node may take to answer."""


async def cluster_metrics() -> str:
    """Metrics of the endpoint, of vLLM and of Serve. A node that does not answer is left out."""
    nodes = [each for each in ray.nodes() if each["Alive"] and each.get("MetricsExportPort")]
    async with httpx.AsyncClient(timeout=_PATIENCE, trust_env=False) as client:
        texts = await asyncio.gather(*(_export(client, each) for each in nodes))
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    name = ""
    for line in (line for text in texts for line in text.splitlines()):
        if line.startswith("#"):
            name = line.split()[2]
            if name not in samples or (len(heads[name]) == 1 and line.startswith("# TYPE")):
                heads.setdefault(name, []).append(line)
            samples.setdefault(name, [])
        elif name:
            samples[name].append(_NOISE.sub("", line))
    kept = (heads[name] + samples[name] for name in samples if name.startswith(_KEPT))
    return "".join(f"{line}\n" for lines in kept for line in lines)


async def _export(client: httpx.AsyncClient, node: dict[str, object]) -> str:
    try:
        found = await client.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")
        return found.text if found.status_code == 200 else ""
    except httpx.HTTPError:
        return ""
