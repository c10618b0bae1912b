"""The proxies themselves: how each is started, and what it is told at its start."""

from collections.abc import Iterable

from harness import Json
from harness.manifests.lookup import NAMESPACE
from harness.rendering.accesslog import ACCESS_LOG_FORMAT
from harness.rendering.clusters import protocol_options, static_cluster
from harness.rendering.extensions import EXTENSION, LUA, extension_file
from harness.rendering.routes import FAULT
from harness.rendering.values import Address, type_url, typed, typed_extension

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


def sidecar(
    name: str,
    workload: str,
    xds: str,
    log: str,
    app: Address,
    *,
    inbound: Address = ANY_PORT,
    outbound: Address = ANY_PORT,
    admin: Address | None = None,
    status: Address | None = None,
    readiness: str = "/",
) -> Json:
    """Return the bootstrap of the sidecar of a workload's pod ``name``.

    :param xds: the folder of the files that Envoy watches: ``clusters.json``, ``sidecar.json``, and one of
        the workload's own for its extension.
    :param log: the access log's path.
    :param app: where the pod's application listens.
    :param inbound: where other proxies send requests for the application.
    :param outbound: where the application sends its own: an HTTP forward proxy.
    :param admin: where the admin interface listens; None: at the socket ``admin`` in Envoy's folder.
    :param status: where to serve ``/stats`` and ``/clusters``, and the application's path ``readiness``, to
        the harness if it cannot reach ``admin``.
    """
    inbound_cluster = f"inbound|{app.port}||"
    # Since Istio 1.24 a sidecar tries again what was reset before its application saw it.
    again = {"retry_policy": {"retry_on": "reset-before-request", "num_retries": 2}}
    to_app = {"name": "default", "match": {"prefix": "/"}, "route": {**_to(inbound_cluster), **again}}
    rules = {"route_config": _static_routes(inbound_cluster, [to_app])}
    listeners = [
        _listener("inbound", inbound, log, rules, [_discovered(f"{xds}/{extension_file(workload)}")]),
        _listener("outbound", outbound, log, {"rds": _rds(xds, "sidecar")}),
    ]
    clusters = [static_cluster(inbound_cluster, [app]) | _AS_ASKED]
    probe = {
        "match": {"path": READINESS, **GET},
        "route": {**_to(inbound_cluster), "prefix_rewrite": readiness},
    }
    return _bootstrap(f"sidecar~{name}", xds, listeners, clusters, admin, status, [probe])


def gateway(
    name: str,
    xds: str,
    log: str,
    inbound: Address,
    admin: Address | None = None,
    status: Address | None = None,
) -> Json:
    """Return the bootstrap of the ingress gateway; it replaces a caller's ``x-request-id``."""
    rds = {"rds": _rds(xds, "gateway"), "use_remote_address": True}
    return _bootstrap(f"router~{name}", xds, [_listener("ingress", inbound, log, rds)], [], admin, status, [])


# As Istio's agent serves an application's probe to the kubelet.
READINESS = "/app-health/app/readyz"

GET = {"headers": [{"name": ":method", "string_match": {"exact": "GET"}}]}


def _bootstrap(
    node: str,
    xds: str,
    listeners: list[Json],
    clusters: list[Json],
    admin: Address | None,
    status: Address | None,
    probes: list[Json],
) -> Json:
    if admin and status:
        stats, known = ({"match": {"path": p, **GET}, "route": _to("admin")} for p in ("/stats", "/clusters"))
        routes = {"route_config": _static_routes("status", [stats, known, *probes])}
        listeners = [*listeners, _listener("status", status, None, routes)]
        clusters = [*clusters, static_cluster("admin", [admin])]
    return {
        "node": {"id": node, "cluster": NAMESPACE},
        "admin": {"address": admin.render() if admin else SOCKET},
        "static_resources": {"listeners": listeners, "clusters": clusters},
        "dynamic_resources": {"cds_config": _file(f"{xds}/clusters.json")},
    }


def _to(cluster: str) -> Json:
    return {"cluster": cluster, "timeout": "0s"}


def _static_routes(name: str, routes: list[Json]) -> Json:
    return {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]}


def _rds(xds: str, name: str) -> Json:
    return {"route_config_name": name, "config_source": _file(f"{xds}/{name}.json")}


def _file(path: str) -> Json:
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}


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
