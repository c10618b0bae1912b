"""The TrafficExtension: code that runs in the proxies of workloads.

https://istio.io/latest/docs/reference/config/proxy_extensions/
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from harness.manifests.base import Labels, Model, Object, fields, one_of


class WorkloadSelector(Model):
    """The labels of the workloads that are meant; none: all of the namespace."""

    match_labels: Labels = {}


@fields(only_cluster="ports")
class TrafficSelector(Model):
    """Which traffic it sees: only what comes in, on the harness's own meshes."""

    mode: Annotated[str, one_of("SERVER")] = Field("CLIENT_AND_SERVER", validate_default=True)


class Lua(Model):
    """A script with ``envoy_on_request``, ``envoy_on_response``, or both."""

    inline_code: Annotated[str, Field(min_length=1, max_length=65536)]


# Where in the chain it runs changes nothing: the harness's proxies have none of Istio's own filters, and no
# workload may have more than one of these.
@fields(unused="phase priority", only_cluster="targetRefs wasm")
class TrafficExtensionSpec(Model):
    """What runs where."""

    selector: WorkloadSelector = WorkloadSelector()
    match: list[TrafficSelector] = Field([{}], min_length=1, validate_default=True)
    lua: Lua


class TrafficExtension(Object):
    """Code that runs in the proxies of workloads."""

    api_version: Literal["extensions.istio.io/v1alpha1"]
    spec: TrafficExtensionSpec

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Say whether a workload with these labels runs it."""
        return self.spec.selector.match_labels.items() <= labels.items()
