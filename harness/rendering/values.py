"""Values in the forms that Envoy reads."""

from dataclasses import dataclass

from harness import Json
from harness.manifests.base import seconds


@dataclass(frozen=True)
class Address:
    """An IP address and a TCP port; port 0 lets the system choose."""

    ip: str
    port: int

    def render(self) -> Json:
        """Return Envoy's form of the address."""
        return {"socket_address": {"address": self.ip, "port_value": self.port}}


def duration(text: str) -> str:
    """Return a Go duration as Envoy's configuration has it: in seconds."""
    return f"{seconds(text):.3f}s"


def type_url(name: str) -> str:
    """Return the full name of a type of Envoy's."""
    return f"type.googleapis.com/envoy.{name}"
