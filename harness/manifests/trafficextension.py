"""The TrafficExtension: code that runs in the proxies of workloads.

https://istio.io/latest/docs/reference/config/proxy_extensions/
"""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from harness.manifests.base import Labels, Model, NotHere, Object, Unused, one_of


class WorkloadSelector(Model):
    """The labels of the workloads that are meant; none: all of the namespace."""

    match_labels: Labels = {}


class TrafficSelector(Model):
    """Which traffic it sees: only what comes in, on the harness's own meshes."""

    mode: Annotated[str, one_of("SERVER")] = Field("CLIENT_AND_SERVER", validate_default=True)
    ports: NotHere = None


class Lua(Model):
    """A script with ``envoy_on_request``, ``envoy_on_response``, or both."""

    inline_code: Annotated[str, Field(min_length=1, max_length=65536)]


class TrafficExtensionSpec(Model):
    """What runs where."""

    selector: WorkloadSelector = WorkloadSelector()
    target_refs: NotHere = None
    match: list[TrafficSelector] = Field([{}], min_length=1, validate_default=True)
    phase: Unused = None
    """Before which of Istio's own filters it runs: the harness's proxies have none of them."""
    priority: Unused = None
    """Which of several runs first: no workload may have more than one here."""
    lua: Lua
    wasm: NotHere = None


class TrafficExtension(Object):
    """Code that runs in the proxies of workloads."""

    api_version: Literal["extensions.istio.io/v1alpha1"]
    kind: Literal["TrafficExtension"]
    spec: TrafficExtensionSpec

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Say whether a workload with these labels runs it."""
        return self.spec.selector.match_labels.items() <= labels.items()
