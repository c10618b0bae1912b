"""Protocol selection: what Istio takes a Service's port for.

https://istio.io/latest/docs/ops/configuration/traffic-management/protocol-selection/
"""

from harness import Json

_HTTP = {"http", "http2", "http_proxy", "grpc", "grpc-web"}
HTTP2 = {"http2", "grpc", "grpc-web"}
"""The protocols of which proxies speak HTTP/2 to what is behind a port."""
_NOT_HTTP = {"tcp", "udp", "https", "tls", "mongo", "mysql", "redis"}
_KUBERNETES = {"kubernetes.io/h2c": "http2", "kubernetes.io/ws": "http", "kubernetes.io/wss": "https"}
_WELL_KNOWN = {25, 53, 3306, 27017}
"""Ports whose protocol Istio does not try to find out."""


def protocol_of(port: Json) -> tuple[str, str]:
    """Return the field by which Istio tells a port's protocol, and the protocol; "" if it finds it out.

    :param port: one of a Service's ports, in the types of JSON.
    """
    if port.get("protocol") == "UDP":
        return "protocol", "udp"
    field = "appProtocol" if port.get("appProtocol") else "name"
    name = str(port.get(field) or "").lower()
    if field == "appProtocol" and name in _KUBERNETES:
        return field, _KUBERNETES[name]
    word = "grpc-web" if name.startswith("grpc-web") else name.partition("-")[0]
    if word in _HTTP | _NOT_HTTP:
        return field, word
    return ("port", "tcp") if port.get("port") in _WELL_KNOWN else (field, "")


def is_http(port: Json) -> bool:
    """Say whether Istio routes what comes to a port by HTTP."""
    return protocol_of(port)[1] not in _NOT_HTTP
