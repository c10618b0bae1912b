"""Read manifests: YAML in, frozen objects out; and check what objects say about each other."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from harness import HarnessError
from harness.models import (
    KINDS,
    Deployment,
    Destination,
    DestinationRule,
    Gateway,
    Object,
    Service,
    ServiceAccount,
    Subset,
    VirtualService,
)

AnyObject = TypeVar("AnyObject", bound=Object)

NAMESPACE = "tutorial"
DOMAIN = f"{NAMESPACE}.svc.cluster.local"


class ManifestError(HarnessError):
    """A manifest that cannot be used; the message is one line for the user."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but a key that stands twice is an error, as it is for kubectl."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word", key_node.start_mark
                )
            key = self.construct_object(key_node)
            if key in keys:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' stands twice", key_node.start_mark
                )
            keys.add(key)
        return super().construct_mapping(node, deep)


def read(*paths: Path) -> list[Object]:
    """Return the objects of YAML files, in order.

    :raises ManifestError: a file that cannot be read, is not YAML, or holds what is not supported.
    """
    return [found for path in paths for found in parse(_text(path), str(path))]


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ManifestError(f"{path}: is not a file")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def parse(text: str, source: str) -> list[Object]:
    """Return the objects of a YAML text; ``source`` names it in errors.

    :raises ManifestError: not YAML, or an object that is not supported.
    """
    try:
        documents = [d for d in yaml.load_all(text, Loader=_Loader) if d is not None]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ManifestError(f"{source}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ManifestError(f"{source}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    if not documents:
        raise ManifestError(f"{source}: holds no object")
    return [_object(document, source) for document in documents]


def dump(objects: Iterable[Object]) -> str:
    """Return objects as a YAML text, from which ``parse`` makes the same again."""
    return yaml.safe_dump_all(o.model_dump(mode="json", by_alias=True, exclude_unset=True) for o in objects)


def _object(document: Any, source: str) -> Object:
    if not isinstance(document, dict):
        raise ManifestError(f"{source}: holds a {type(document).__name__} where an object should be")
    kind = document.get("kind")
    metadata = document.get("metadata")
    name = metadata.get("name", "?") if isinstance(metadata, dict) else "?"
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise ManifestError(f"{source}: kind '{kind}' is not supported here (only {', '.join(KINDS)})")
    try:
        return model.model_validate(document)
    except ValidationError as invalid:
        # A misspelt field is also a missing one: the spelling is what helps.
        error = min(invalid.errors(), key=lambda e: e["type"] != "extra_forbidden")
        raise ManifestError(f"{source}: {kind} {name}: {_explain(error, model)}") from None


def _explain(error: Any, model: type[BaseModel]) -> str:
    """Return one line for pydantic's ``error``: the field's path, and what is wrong with it."""
    path = ""
    for part in error["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    if error["type"] == "extra_forbidden":
        known = _fields_beside(error["loc"], model)
        close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        return f"{path}: unknown or unsupported field" + (f", did you mean '{close[0]}'?" if close else "")
    message = error["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    return f"{path}: {message}" if path else message


def _fields_beside(location: tuple[Any, ...], model: Any) -> list[str]:
    """Return the names of the fields that would be known where an unknown one stands."""
    for part in location[:-1]:
        if isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel):
            fields = {f.alias or n: f.annotation for n, f in model.model_fields.items()}
            model = _model_in(fields.get(part))
    if isinstance(model, type) and issubclass(model, BaseModel):
        return [f.alias or n for n, f in model.model_fields.items()]
    return []


def _model_in(annotation: Any) -> Any:
    """Return the model inside an annotation such as ``list[HTTPRoute] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(argument) for argument in getattr(annotation, "__args__", ()))
    return next((model for model in inner if model is not None), None)


# --- what objects say about each other ----------------------------------------------------------------


def of_kind(objects: Iterable[Object], kind: type[AnyObject]) -> Iterator[AnyObject]:
    """Yield the objects of one kind."""
    return (o for o in objects if isinstance(o, kind))


def host_names(service: str) -> list[str]:
    """Return the names by which a Service is known in the mesh."""
    return [service, *(f"{service}.{domain}" for domain in (NAMESPACE, f"{NAMESPACE}.svc", DOMAIN))]


def short_host(host: str) -> str:
    """Return the Service's name of a host such as ``recommendation.tutorial.svc.cluster.local``."""
    name = host.split(".")[0]
    return name if host in host_names(name) else host


def find_service(objects: Iterable[Object], host: str) -> Service | None:
    """Return the Service that ``host`` names, if there is one."""
    return next((s for s in of_kind(objects, Service) if s.metadata.name == short_host(host)), None)


def subsets(objects: Iterable[Object], host: str) -> dict[str, Subset]:
    """Return the subsets that DestinationRules define for ``host``, by name."""
    rules = (r for r in of_kind(objects, DestinationRule) if short_host(r.spec.host) == short_host(host))
    return {s.name: s for r in rules for s in r.spec.subsets}


def has_port(workload: Deployment, port: int | str) -> bool:
    """Say whether a workload's container has a port of this name or number."""
    return any(port in (p.name, p.container_port) for p in workload.container.ports)


def check(objects: Iterable[Object], source: str) -> None:
    """Check that what routes and rules name exists among ``objects``; ``source`` names them in errors.

    :raises ManifestError: a host, subset, port, gateway or service account that nothing defines.
    """
    objects = list(objects)

    def need(found: object, owner: Object, field: str, problem: str) -> None:
        if not found:
            raise ManifestError(f"{source}: {owner.kind} {owner.metadata.name}: {field}: {problem}")

    def check_destination(owner: Object, field: str, destination: Destination) -> None:
        service = find_service(objects, destination.host)
        need(service, owner, f"{field}.host", f"no Service '{destination.host}'")
        if destination.subset is not None:
            known = subsets(objects, destination.host)
            problem = f"no subset '{destination.subset}' of '{destination.host}' in a DestinationRule"
            need(destination.subset in known, owner, f"{field}.subset", problem)
        if service and destination.port:
            number = destination.port.number
            problem = f"Service '{destination.host}' has no port {number}"
            need(number == service.port, owner, f"{field}.port.number", problem)

    gateways = {g.metadata.name for g in of_kind(objects, Gateway)}
    accounts = {a.metadata.name for a in of_kind(objects, ServiceAccount)}
    ruled: dict[str, str] = {}
    for rule in of_kind(objects, DestinationRule):
        need(find_service(objects, rule.spec.host), rule, "spec.host", f"no Service '{rule.spec.host}'")
        other = ruled.setdefault(short_host(rule.spec.host), rule.metadata.name)
        problem = f"DestinationRule '{other}' is for '{rule.spec.host}' already"
        need(other == rule.metadata.name, rule, "spec.host", problem)
    for exposed in of_kind(objects, Service):
        target = exposed.spec.ports[0].target_port
        for workload in of_kind(objects, Deployment):
            if exposed.spec.selector.items() <= workload.labels.items():
                problem = f"no port '{target}' in Deployment '{workload.metadata.name}'"
                need(has_port(workload, target), exposed, "spec.ports[0].targetPort", problem)
    routed: dict[tuple[str, str], str] = {}
    for workload in of_kind(objects, Deployment):
        account = workload.spec.template.spec.service_account_name
        field = "spec.template.spec.serviceAccountName"
        need(account in accounts, workload, field, f"no ServiceAccount '{account}'")
        port = workload.container.readiness_probe.http_get.port
        field = "spec.template.spec.containers[0].readinessProbe.httpGet.port"
        need(has_port(workload, port), workload, field, f"no port '{port}' in the container")
    for virtual_service in of_kind(objects, VirtualService):
        spec = virtual_service.spec
        for i, gateway in enumerate(spec.gateways):
            known = gateway == "mesh" or gateway in gateways
            need(known, virtual_service, f"spec.gateways[{i}]", f"no Gateway '{gateway}'")
            for j, host in enumerate(spec.hosts):
                service = find_service(objects, host)
                field = f"spec.hosts[{j}]"
                if gateway == "mesh":
                    need(service, virtual_service, field, f"no Service '{host}'")
                other = routed.setdefault((gateway, short_host(host)), virtual_service.metadata.name)
                problem = f"VirtualService '{other}' routes '{host}' already"
                need(other == virtual_service.metadata.name, virtual_service, field, problem)
        for i, route in enumerate(spec.http):
            field = f"spec.http[{i}]"
            for j, destination in enumerate(route.route):
                check_destination(virtual_service, f"{field}.route[{j}].destination", destination.destination)
            if route.mirror:
                check_destination(virtual_service, f"{field}.mirror", route.mirror)
            for j, mirror in enumerate(route.mirrors):
                check_destination(virtual_service, f"{field}.mirrors[{j}].destination", mirror.destination)
