"""Read manifests: YAML in, frozen objects out."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from harness import HarnessError
from harness.manifests.base import Object
from harness.manifests.istio import DestinationRule, Gateway, VirtualService
from harness.manifests.kubernetes import Deployment, Service, ServiceAccount

KINDS: dict[str, type[Object]] = {
    model.__name__: model
    for model in (ServiceAccount, Service, Deployment, Gateway, VirtualService, DestinationRule)
}


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
    return [to_object(document, source) for document in documents]


def dump(objects: Iterable[Object]) -> str:
    """Return objects as a YAML text, from which ``parse`` makes the same again."""
    return yaml.safe_dump_all(o.model_dump(mode="json", by_alias=True, exclude_unset=True) for o in objects)


def to_object(document: Any, source: str) -> Object:
    """Return the object that a document describes; ``source`` names it in errors.

    :raises ManifestError: it is not supported.
    """
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
