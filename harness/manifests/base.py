"""What the models of Kubernetes' and of Istio's objects have in common."""

from collections.abc import Callable, Iterable
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, create_model, model_validator
from pydantic.alias_generators import to_camel

from harness.manifests.values import NOT_HERE, HostName, Labels, Name, check


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


_ONLY_CLUSTER = "only a cluster does this: take it out, or run the step with MESH=cluster"
_Refused = Annotated[Any, check(lambda _: False, _ONLY_CLUSTER, NOT_HERE)]


def fields(*, unused: str = "", only_cluster: str = "") -> Callable[[type[AnyModel]], type[AnyModel]]:
    """Return a decorator that gives a model further fields, each with any value.

    :param unused: names, as manifests write them, of fields that are kept, and change nothing on the
        harness's own meshes.
    :param only_cluster: names of fields that are refused there.
    """
    kept = dict.fromkeys(unused.split(), (Any, None))
    refused = dict.fromkeys(only_cluster.split(), (_Refused, None))

    def add(model: type[AnyModel]) -> type[AnyModel]:
        more: dict[str, Any] = kept | refused
        return create_model(
            model.__name__, __base__=model, __doc__=model.__doc__, __module__=model.__module__, **more
        )

    return add


@fields(unused="finalizers ownerReferences")
class Metadata(Model):
    """What names an object."""

    name: Name
    namespace: str | None = None
    labels: Labels = {}
    annotations: dict[str, str] = {}


class HostMetadata(Metadata):
    """What names an object whose name is part of a host's name."""

    name: HostName


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
