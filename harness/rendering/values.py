"""Values in the forms that Envoy reads."""

from dataclasses import dataclass
from typing import Any

from harness import Json
from harness.manifests.values import seconds


@dataclass(frozen=True)
class Address:
    """An IP address and a TCP port; port 0 lets the system choose."""

    ip: str
    port: int

    def __str__(self) -> str:
        return f"{self.ip}:{self.port}"

    def render(self) -> Json:
        """Return Envoy's form of the address."""
        return {"socket_address": {"address": self.ip, "port_value": self.port}}


def duration(text: str | None) -> str | None:
    """Return a Go duration as Envoy's configuration has it: in seconds; None for none."""
    return f"{seconds(text):.3f}s" if text else None


def given(**fields: Any) -> Json:
    """Return those of fields that say something: Envoy has a default for the others."""
    return {name: value for name, value in fields.items() if value}


def type_url(name: str) -> str:
    """Return the full name of a type of Envoy's."""
    return f"type.googleapis.com/envoy.{name}"


def typed(type_name: str, **fields: Any) -> Json:
    """Return a message of one of Envoy's types."""
    return {"@type": type_url(type_name), **fields}


def typed_extension(name: str, type_name: str, **fields: Any) -> Json:
    """Return one of Envoy's extensions: its name, and its configuration."""
    return {"name": name, "typed_config": typed(type_name, **fields)}
