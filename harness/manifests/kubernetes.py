"""The Kubernetes objects that the harness understands, as frozen models."""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from harness.manifests.base import HostMetadata, Model, Object, fields
from harness.manifests.podspec import Container, PodTemplate
from harness.manifests.protocol import is_http, protocol_of
from harness.manifests.values import NOT_HERE, Labels, Port, check, one_of


@fields(unused="automountServiceAccountToken imagePullSecrets secrets")
class ServiceAccount(Object):
    """The identity of a workload."""

    api_version: Literal["v1"]


def _is_base64(data: dict[str, str]) -> dict[str, str]:
    for key, value in data.items():
        try:
            base64.b64decode(value, validate=True).decode()
        except ValueError:
            raise ValueError(f"'{key}' is no text in base64: write it in stringData as it is") from None
    return data


@fields(unused="immutable type")
class Secret(Object):
    """What only those know who may read it: here, the settings of a workload."""

    api_version: Literal["v1"]
    data: Annotated[dict[str, str], AfterValidator(_is_base64)] = {}
    string_data: dict[str, str] = {}

    @property
    def values(self) -> dict[str, str]:
        """What it holds, by key."""
        return {k: base64.b64decode(v).decode() for k, v in self.data.items()} | self.string_data


def _is_port(port: int | str) -> int | str:
    is_name = isinstance(port, str) and len(port) < 16 and not port.isdigit()
    good = re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", str(port)) if is_name else port in range(1, 65536)
    if not good:
        raise ValueError(f"'{port}' is neither a port from 1 to 65535 nor the name of one")
    return port


@fields(unused="nodePort")
class ServicePort(Model):
    """A port that callers use, and the container's port behind it."""

    name: Annotated[str, Field(pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)?$")] = ""
    port: Port
    target_port: Annotated[int | str | None, AfterValidator(_is_port)] = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    app_protocol: str | None = None

    @property
    def target(self) -> int | str:
        """The container's port."""
        return self.target_port or self.port

    @property
    def is_http(self) -> bool:
        """Whether Istio routes what comes to it by HTTP."""
        return is_http(self.model_dump(by_alias=True))

    @property
    def protocol_name(self) -> str:
        """What Istio takes it for; "" if it finds it out by what callers send."""
        return protocol_of(self.model_dump(by_alias=True))[1]


def _tells_ports_apart(ports: list[ServicePort]) -> list[ServicePort]:
    names = {port.name for port in ports}
    if len(names) < len(ports) or (len(ports) > 1 and "" in names):
        raise ValueError("several ports need a name each")
    if len({(port.port, port.protocol) for port in ports}) < len(ports):
        raise ValueError("a port stands twice")
    return ports


@fields(
    unused="allocateLoadBalancerNodePorts clusterIPs externalTrafficPolicy healthCheckNodePort "
    "internalTrafficPolicy ipFamilies ipFamilyPolicy loadBalancerClass loadBalancerIP "
    "loadBalancerSourceRanges sessionAffinity sessionAffinityConfig trafficDistribution",
    only_cluster="externalIPs externalName publishNotReadyAddresses",
)
class ServiceSpec(Model):
    """Which pods stand behind a Service."""

    selector: Annotated[Labels, Field(min_length=1)]
    ports: Annotated[list[ServicePort], Field(min_length=1), AfterValidator(_tells_ports_apart)]
    type: Annotated[str, one_of("ClusterIP", "NodePort", "LoadBalancer")] = "ClusterIP"
    cluster_ip: Annotated[
        str,
        Field(alias="clusterIP"),
        check(
            lambda address: address != "None", "only a cluster has headless Services: take it out", NOT_HERE
        ),
    ] = ""


class Service(Object):
    """A host name that callers know."""

    api_version: Literal["v1"]
    metadata: HostMetadata
    spec: ServiceSpec

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Say whether pods with such labels stand behind it."""
        return self.spec.selector.items() <= labels.items()


@fields(only_cluster="matchExpressions")
class LabelSelector(Model):
    """Which pods belong to a workload."""

    match_labels: Labels


@fields(unused="minReadySeconds progressDeadlineSeconds revisionHistoryLimit strategy", only_cluster="paused")
class DeploymentSpec(Model):
    """How many pods, and which."""

    replicas: Annotated[int, Field(ge=0)] = 1
    selector: LabelSelector
    template: PodTemplate


class Deployment(Object):
    """A workload."""

    api_version: Literal["apps/v1"]
    spec: DeploymentSpec

    @property
    def labels(self) -> Labels:
        """The labels of its pods."""
        return self.spec.template.metadata.labels

    @property
    def container(self) -> Container:
        """Its one container."""
        return self.spec.template.spec.containers[0]

    def problems(self) -> Iterator[str]:
        if not self.spec.selector.match_labels.items() <= self.labels.items():
            yield "spec.selector.matchLabels does not select the labels of spec.template"
