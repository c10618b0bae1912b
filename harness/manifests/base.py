"""What the models of Kubernetes' and of Istio's objects have in common."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


def _duration(text: str) -> str:
    seconds(text)
    return text


def seconds(duration: str) -> float:
    """Return a Go duration such as ``1m30s`` or ``250ms`` in seconds.

    :raises ValueError: it is not one, or shorter than the millisecond that Istio allows.
    """
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if not re.fullmatch(r"(\d+(\.\d+)?(h|ms|m|s))+", duration):
        raise ValueError(f"'{duration}' is not a duration such as 2s or 250ms")
    total = sum(float(n) * units[u] for n, _, u in re.findall(r"(\d+(\.\d+)?)(h|ms|m|s)", duration))
    if not 0.001 <= total <= 315_576_000_000:
        raise ValueError(f"'{duration}' is shorter than 1ms, or longer than 10,000 years")
    return total


Duration = Annotated[str, AfterValidator(_duration)]
Percent = Annotated[float, Field(ge=0, le=100)]
UINT32 = 2**32 - 1
Count = Annotated[int, Field(ge=1, le=UINT32)]
Port = Annotated[int, Field(ge=1, le=65535)]
Labels = dict[str, str]


class Model(BaseModel):
    """A frozen object with Kubernetes' camelCase names and no field beyond those named."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, alias_generator=to_camel, populate_by_name=True
    )


class Metadata(Model):
    """What names an object."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
    labels: Labels = {}


class Object(Model):
    """What every manifest has: a kind and a name."""

    api_version: str
    kind: str
    metadata: Metadata

    @property
    def key(self) -> str:
        """Kind and name, as kubectl prints them."""
        return f"{self.kind.lower()}/{self.metadata.name}"
