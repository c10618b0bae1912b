"""The proxies themselves: how each is started, what it is told at its start, and the code that it runs."""

from collections.abc import Iterable
from dataclasses import dataclass

from harness import Json
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import NAMESPACE, extensions_of
from harness.rendering.accesslog import ACCESS_LOG_FORMAT
from harness.rendering.clusters import protocol_options, static_cluster
from harness.rendering.routes import FAULT
from harness.rendering.values import Address, given, type_url, typed, typed_extension

# How every proxy is started. Istio's, too, are told to write their access logs without delay.
FLAGS = [
    "--reject-unknown-dynamic-fields", "--disable-hot-restart",
    "--concurrency", "1", "--log-level", "warning", "--file-flush-interval-msec", "100",
]  # fmt: skip

ANY_PORT = Address("127.0.0.1", 0)

# To its application a sidecar speaks the version of HTTP that it was spoken to in.
_AS_ASKED = protocol_options(
    use_downstream_protocol_config={"http_protocol_options": {}, "http2_protocol_options": {}}
)

# A web page can call any TCP port of the machine that shows it, but no socket in a folder. The path is
# relative to the folder in which Envoy is started, since a socket's path may have 108 bytes at most.
SOCKET = {"pipe": {"path": "admin", "mode": 0o600}}


# As Istio's agent serves an application's probe to the kubelet.
READINESS = "/app-health/app/readyz"

EXTENSION = "extension"
"""The name of the HTTP filter of sidecars in which the code of a TrafficExtension runs."""

LUA = "extensions.filters.http.lua.v3.Lua"


@dataclass(frozen=True)
class Proxy:
    """A proxy, as it is told of itself at its start."""

    pod: str
    workload: str
    xds: str
    """The folder of the files that it watches: clusters.json, sidecar.json or gateway.json, and as a sidecar
    one of its workload's own for its extension."""
    log: str
    """The access log's path."""
    app: Address | None = None
    """Where the pod's application listens; None: it is the ingress gateway."""
    inbound: Address = ANY_PORT
    """Where it gets requests: for its application, or as the gateway those of callers."""
    outbound: Address = ANY_PORT
    """Where the application sends its own: an HTTP forward proxy."""
    admin: Address | None = None
    """The admin interface; None: at the socket ``admin`` in Envoy's folder."""
    status: Address | None = None
    """Where the harness asks for ``/stats``, ``/clusters`` and READINESS if it cannot reach ``admin``."""
    readiness: str = "/"
    """The application's path behind READINESS."""


def bootstrap(proxy: Proxy) -> Json:
    """Return what a proxy is told at its start."""
    listeners, clusters = _of_sidecar(proxy, proxy.app) if proxy.app else _of_gateway(proxy)
    if proxy.admin and proxy.status:
        listeners.append(_status(proxy, proxy.status))
        clusters.append(static_cluster("admin", [proxy.admin]))
    return {
        "node": {"id": f"{'sidecar' if proxy.app else 'router'}~{proxy.pod}", "cluster": NAMESPACE},
        "admin": {"address": proxy.admin.render() if proxy.admin else SOCKET},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "dynamic_resources": {"cds_config": _file(f"{proxy.xds}/clusters.json")},
    }


def _of_sidecar(proxy: Proxy, app: Address) -> tuple[list[Json], list[Json]]:
    """Return a sidecar's listeners, and the clusters that it knows from its start."""
    cluster, xds = f"inbound|{app.port}||", proxy.xds
    # Since Istio 1.24 a sidecar tries again what was reset before its application saw it.
    again = {"retry_policy": {"retry_on": "reset-before-request", "num_retries": 2}}
    to_app = {"name": "default", "match": {"prefix": "/"}, "route": _to(cluster) | again}
    rules = {"route_config": _static_routes(cluster, [to_app])}
    code = _discovered(f"{xds}/{extension_file(proxy.workload)}")
    listeners = [
        _listener("inbound", proxy.inbound, proxy.log, rules, [code]),
        _listener("outbound", proxy.outbound, proxy.log, {"rds": _rds(xds, "sidecar")}),
    ]
    return listeners, [static_cluster(cluster, [app]) | _AS_ASKED]


def _of_gateway(proxy: Proxy) -> tuple[list[Json], list[Json]]:
    # It replaces a caller's x-request-id.
    settings = {"rds": _rds(proxy.xds, "gateway"), "use_remote_address": True}
    return [_listener("ingress", proxy.inbound, proxy.log, settings)], []


def _status(proxy: Proxy, address: Address) -> Json:
    """Return the listener of what may be asked from outside: of the admin interface only what tells."""
    asked = {"/stats": _to("admin"), "/clusters": _to("admin")}
    if proxy.app:
        asked[READINESS] = _to(f"inbound|{proxy.app.port}||") | {"prefix_rewrite": proxy.readiness}
    get = {"headers": [{"name": ":method", "string_match": {"exact": "GET"}}]}
    routes = [{"match": {"path": path, **get}, "route": to} for path, to in asked.items()]
    return _listener("status", address, None, {"route_config": _static_routes("status", routes)})


def _to(cluster: str) -> Json:
    return {"cluster": cluster, "timeout": "0s"}


def _static_routes(name: str, routes: list[Json]) -> Json:
    return {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]}


def _rds(xds: str, name: str) -> Json:
    return {"route_config_name": name, "config_source": _file(f"{xds}/{name}.json")}


def _file(path: str) -> Json:
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


def extension_file(workload: str) -> str:
    """Return the name of the file in which a workload's sidecars find their code."""
    return f"extension-{workload}.json"


def extension(objects: Iterable[Object], workload: Deployment) -> Json:
    """Return the HTTP filter of a workload's sidecars; without a TrafficExtension it has no code."""
    code = [{"inline_string": found.spec.lua.inline_code} for found in extensions_of(objects, workload)]
    return typed_extension(EXTENSION, LUA, **given(default_source_code=code and code[0]))


def _discovered(path: str) -> Json:
    """Return an HTTP filter that is read from a file; until then it has no code."""
    discovery = {
        "config_source": _file(path),
        "default_config": typed(LUA),
        "apply_default_config_without_warming": True,
        "type_urls": [type_url(LUA)],
    }
    return {"name": EXTENSION, "config_discovery": discovery}


def _listener(
    name: str, address: Address, log: str | None, settings: Json, extensions: Iterable[Json] = ()
) -> Json:
    access_log = typed_extension(
        "envoy.access_loggers.file", "extensions.access_loggers.file.v3.FileAccessLog",
        path=log, log_format={"text_format_source": {"inline_string": ACCESS_LOG_FORMAT}},
    )  # fmt: skip
    manager = typed_extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix=name,
        normalize_path=True,
        stream_idle_timeout="0s",
        proxy_100_continue=True,
        upgrade_configs=[{"upgrade_type": "websocket"}],
        access_log=[access_log] if log else [],
        http_filters=[
            typed_extension("envoy.filters.http.fault", FAULT),
            *extensions,
            typed_extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
        ],
        **({} if name == "outbound" else {"server_name": "istio-envoy"}),
        **settings,
    )
    return {"name": name, "address": address.render(), "filter_chains": [{"filters": [manager]}]}
