"""Put what istiod sends, and what the harness renders, into one form, so that they can be compared."""

import re
from pathlib import Path
from typing import Any

from harness.meshes.mesh import ISTIO, ROOT

STATE = ISTIO
"""What is applied at the start, beside the workloads."""

MANIFESTS = sorted(
    path
    for path in (*(ROOT / "istio").glob("*.yaml"), *(Path(__file__).parent / "shapes").glob("*.yaml"))
    if path not in STATE
)

_ONLY_ISTIOS = {
    "@type",
    "alt_stat_name",  # the name of statistics
    "decorator",  # the name of a span
    "domains",  # the harness's sidecar is a forward proxy, so its callers name the port as well
    "eds_cluster_config",  # Istio sends endpoints apart
    "filters",  # Istio's metadata exchange
    "load_assignment",
    "max_direct_response_body_size_bytes",
    "metadata",  # which object it comes from
    "track_remaining",  # gauges of what a fuse still lets through
    "transport_socket",  # mutual TLS: nothing is encrypted on one machine
    "transport_socket_matches",
    "type",
    "validate_clusters",
}
"""What is left out of the comparison, with the reason."""


_DEFAULTS = {"APPEND_IF_EXISTS_OR_ADD", "ROUND_ROBIN", 0, "", None}
"""Values that mean the same where they are not written."""


def plain(sidecar: list[Any], gateway: list[Any], clusters: list[Any]) -> dict[str, Any]:
    """Return virtual hosts and clusters by name, in one form."""
    return {
        "sidecar": {host["name"]: _plain(host) for host in _hosts(sidecar)},
        "gateway": {
            # istiod makes one of those that have the same routes.
            domain: [_plain(route) for route in host["routes"]]
            for host in _hosts(gateway)
            for domain in host["domains"]
        },
        "clusters": {
            c["name"]: _plain(c)
            for c in clusters
            if re.fullmatch(r"outbound\|.*\.tutorial\.svc\..*", c["name"])
        },
    }


def _hosts(configurations: list[Any]) -> list[Any]:
    hosts = [h for c in configurations for h in c.get("virtualHosts", c.get("virtual_hosts", []))]
    return [host for host in hosts if re.search(r"tutorial\.svc|example\.|^\*:", host["name"])]


def _plain(value: Any) -> Any:
    """Return a part of Envoy's configuration in snake_case, without what is left out and defaults."""
    if isinstance(value, dict):
        if "numerator" in value or "denominator" in value:
            per = {"MILLION": 1, "TEN_THOUSAND": 100, "HUNDRED": 10_000}[value.get("denominator", "HUNDRED")]
            return value.get("numerator", 0) * per
        found = {_snake(key): _plain(each) for key, each in value.items()}
        return {k: v for k, v in found.items() if k not in _ONLY_ISTIOS and not _is_default(v)}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, str) and re.fullmatch(r"\d+", value):
        return int(value)
    if isinstance(value, str) and (duration := re.fullmatch(r"(\d+(\.\d+)?)s", value)):
        return float(duration[1])
    return value


def _is_default(value: Any) -> bool:
    return value in ({}, []) or (not isinstance(value, dict | list) and value in _DEFAULTS)


def _snake(key: str) -> str:
    if "." in key:
        return key
    return re.sub(r"(?<=[a-z0-9])([A-Z])", r"_\1", key).lower().replace("consecutive5", "consecutive_5")
