"""What the models of Kubernetes' and of Istio's objects have in common."""

import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, create_model, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

NOT_HERE = "not_here"
"""The type of error of a field that clusters honour, and that the harness's own meshes do not."""


def _not_here(value: Any) -> Any:
    raise PydanticCustomError(
        NOT_HERE, "only a cluster does this: take it out, or run the step with MESH=cluster"
    )


def check(holds: Callable[[Any], object], problem: str, kind: str = "value_error") -> AfterValidator:
    """Return a check of a value; ``problem`` says what is wrong with the value ``{}`` that does not hold."""

    def checked(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError(kind, problem.format(value))
        return value

    return AfterValidator(checked)


def one_of(*values: str) -> AfterValidator:
    """Return a check that a text is one of those that the harness's own meshes honour."""
    remedy = f"write {' or '.join(values)}, or run the step with MESH=cluster"
    return check(values.__contains__, f"only a cluster has '{{}}': {remedy}", NOT_HERE)


def matches(pattern: str, problem: str) -> AfterValidator:
    """Return a check that the whole of a text matches a pattern; ``problem`` says what it is if not."""
    return check(re.compile(pattern).fullmatch, f"'{{}}' {problem}")


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
    if not 0.001 <= total < 2**63 / 1e9:
        raise ValueError(f"'{duration}' is shorter than 1ms, or longer than 292 years")
    if total < UINT32 and round(total * 1000, 6) % 1:
        raise ValueError(f"'{duration}' has parts of a millisecond: round it")
    return total


Duration = Annotated[str, AfterValidator(_duration)]


def _number(value: Any) -> Any:
    """Return a number that is written as text as a number: protobuf's JSON allows either."""
    if isinstance(value, str):
        try:
            return int(value) if value.isdecimal() else float(value)
        except ValueError:
            raise ValueError(f"'{value}' is not a number") from None
    return value


Percent = Annotated[float, BeforeValidator(_number), Field(ge=0, le=100)]
WholePercent = Annotated[int, BeforeValidator(_number), Field(ge=0, le=100)]
UINT32 = 2**32 - 1
Uint32 = Annotated[int, Field(ge=0, le=UINT32)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Port = Annotated[int, Field(ge=1, le=65535)]
DNS = "[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?"
"""A part of a host's name."""
_NAME = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_LABEL = "[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
Labels = dict[
    Annotated[str, Field(pattern=rf"^({DNS}(\.{DNS})*/)?{_LABEL}$")],
    Annotated[str, Field(pattern=rf"^({_LABEL})?$")],
]


def covers(wide: str, narrow: str) -> bool:
    """Say whether a host, or a wildcard such as ``*.example.com``, stands for another one too."""
    return wide == narrow or (wide.startswith("*") and narrow.endswith(wide[1:]))


class Model(BaseModel):
    """A frozen object with Kubernetes' camelCase names and no field beyond those named."""

    model_config = {"extra": "forbid", "frozen": True, "strict": True, "alias_generator": to_camel}

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, fields: Any) -> Any:
        """Take a field without a value for one that is not written, as Kubernetes does."""
        return {k: v for k, v in fields.items() if v is not None} if isinstance(fields, dict) else fields

    def problems(self) -> Iterable[str]:
        """Return what is wrong with the fields together, when each is right in itself."""
        return ()

    @model_validator(mode="after")
    def _has_no_problem(self) -> Self:
        for problem in self.problems():
            raise ValueError(problem)
        return self


AnyModel = TypeVar("AnyModel", bound=Model)


def fields(*, unused: str = "", only_cluster: str = "") -> Callable[[type[AnyModel]], type[AnyModel]]:
    """Return a decorator that gives a model further fields, each with any value.

    :param unused: names, as manifests write them, of fields that are kept, and change nothing on the
        harness's own meshes.
    :param only_cluster: names of fields that are refused there.
    """
    kept = dict.fromkeys(unused.split(), (Any, None))
    refused = dict.fromkeys(only_cluster.split(), (Annotated[Any, BeforeValidator(_not_here)], None))

    def add(model: type[AnyModel]) -> type[AnyModel]:
        more: dict[str, Any] = kept | refused
        return create_model(
            model.__name__, __base__=model, __doc__=model.__doc__, __module__=model.__module__, **more
        )

    return add


@fields(unused="finalizers ownerReferences")
class Metadata(Model):
    """What names an object."""

    name: Annotated[str, Field(max_length=253, pattern=rf"^{_NAME}(\.{_NAME})*$")]
    namespace: str | None = None
    labels: Labels = {}
    annotations: dict[str, str] = {}


class HostMetadata(Metadata):
    """What names an object whose name is part of a host's name, so without dots."""

    name: Annotated[str, Field(max_length=63, pattern=rf"^{_NAME}$")]


class Object(Model):
    """What every manifest has: a kind and a name."""

    api_version: str
    kind: str
    metadata: Metadata

    @property
    def key(self) -> str:
        """Kind and name, as kubectl prints them."""
        return f"{self.kind.lower()}/{self.metadata.name}"


class IstioObject(Object):
    """An object of Istio's; its three versions are one schema."""

    api_version: Literal[
        "networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"
    ]
