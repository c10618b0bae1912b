"""The Gateway: where callers outside come in.

What Istio's own validation refuses is refused here, too.
https://istio.io/latest/docs/reference/config/networking/gateway/
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from harness.manifests.base import HostMetadata, IstioObject, Labels, Model, Port, fields, one_of
from harness.manifests.texts import ServedHost


class GatewayPort(Model):
    """The port that callers use. The harness's gateway has but one, whatever its number here."""

    number: Port
    name: Annotated[str, Field(min_length=1)]
    protocol: Annotated[str, AfterValidator(str.upper), one_of("HTTP", "HTTP2", "GRPC")]


@fields(unused="name", only_cluster="bind defaultEndpoint tls")
class GatewayServer(Model):
    """One listener of the ingress gateway."""

    port: GatewayPort
    hosts: Annotated[list[ServedHost], Field(min_length=1)]


class GatewaySpec(Model):
    """What the ingress gateway serves."""

    selector: Labels = {}
    servers: Annotated[list[GatewayServer], Field(min_length=1)]

    def problems(self) -> Iterator[str]:
        if len({server.port.name for server in self.servers}) < len(self.servers):
            yield "several servers need a port.name each"


class Gateway(IstioObject):
    """Where callers outside come in."""

    metadata: HostMetadata
    spec: GatewaySpec
