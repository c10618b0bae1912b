"""Read manifests as kubectl takes them: YAML or JSON in, frozen objects out."""

import contextlib
import difflib
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from harness import HarnessError, Json
from harness.manifests.base import Object
from harness.manifests.istio import DestinationRule, Gateway, TrafficExtension
from harness.manifests.kubernetes import Deployment, Secret, Service, ServiceAccount
from harness.manifests.values import NOT_HERE
from harness.manifests.virtualservice import VirtualService
from harness.settings import namespace

KINDS: dict[str, type[Object]] = {kind.__name__: kind for kind in (
    ServiceAccount, Secret, Service, Deployment, Gateway, VirtualService, DestinationRule, TrafficExtension,
)}  # fmt: skip

MOST_BYTES = 3 * 2**20
"""How long a manifest may be; an object may have half of that in Kubernetes."""

MOST_VALUES = 100_000
"""How many values a YAML document may have when its aliases are written out."""

_BY_SERVER = {
    "uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink",
    "deletionTimestamp", "deletionGracePeriodSeconds",
}  # fmt: skip
LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

_TAG = "tag:yaml.org,2002"
_NUMBERS = (f"{_TAG}:int", f"{_TAG}:float")


class ManifestError(HarnessError):
    """Manifests that cannot be used; the message has a line for each problem."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, but as kubectl's: no key twice, times are texts, y is true, few aliases."""

    bool_values = yaml.SafeLoader.bool_values | {"y": True, "n": False}

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        is_time = tag == f"{_TAG}:timestamp" or (tag in _NUMBERS and ":" in value)
        return f"{_TAG}:str" if is_time else tag

    def construct_document(self, node: yaml.Node) -> Any:
        values, waiting = 0, [node]
        while waiting:  # as if its aliases were written out: one may stand for very much, or for itself
            values += 1
            if values > MOST_VALUES:
                raise yaml.YAMLError(f"it has more than {MOST_VALUES:,} values")
            match waiting.pop():
                case yaml.MappingNode(value=pairs):
                    waiting += [part for pair in pairs for part in pair]
                case yaml.SequenceNode(value=parts):
                    waiting += parts
        return super().construct_document(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[Any] = set()
        for key, _ in node.value:
            problem = "" if isinstance(key, yaml.ScalarNode) else "a key must be a word"
            if not problem and key.value in keys and key.tag != f"{_TAG}:merge":
                problem = f"'{key.value}' stands twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(f"{_TAG}:bool", re.compile("^[yYnN]$"), list("yYnN"))
_Loader.add_implicit_resolver(
    f"{_TAG}:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?$"), list("-+.0123456789")
)


def read(*paths: Path) -> list[Object]:
    """Return the objects of manifests, in order: of files, of folders, and of standard input (``-``).

    :raises ManifestError: one cannot be read, is not YAML, or holds what is not supported.
    """
    return [found for _, found in read_each(*paths)]


def read_each(*paths: Path) -> list[tuple[str, Object]]:
    """Return the objects of manifests as ``read`` does, each behind the name of its file."""
    return to_objects(each for path in paths for each in documents(path))


def documents(path: Path) -> list[tuple[str, Json]]:
    """Return the documents of a manifest, each behind the name of its file; a list's items stand alone.

    :raises ManifestError: it cannot be read, or is not YAML.
    """
    files = [path]
    if path.is_dir():
        known = (".yaml", ".yml", ".json")  # as kubectl reads folders
        files = sorted(file for file in path.iterdir() if file.suffix in known and file.is_file())
    found = [each for file in files for each in documents_in(_text(file), str(file))]
    if not found:
        raise ManifestError(f"{path}: holds no object")
    return found


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise ManifestError(f"{path}: is neither a file nor a folder")
        with contextlib.nullcontext(sys.stdin.buffer) if str(path) == "-" else path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise ManifestError(f"{path}: is longer than {MOST_BYTES // 2**20} MiB")
        return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _load(text: str) -> list[Any]:
    """Return the documents of a text: of JSON, which may have tabs and nothing in between, or of YAML."""
    found, rest, end = [], text.strip(), 0
    with contextlib.suppress(ValueError):  # YAML has braces, too
        while rest.startswith("{", end):
            document, end = json.JSONDecoder().raw_decode(rest, end)
            found.append(document)
            while rest[end : end + 1].isspace():
                end += 1
    return found if end == len(rest) else list(yaml.load_all(text, Loader=_Loader))


def documents_in(text: str, source: str) -> Iterator[tuple[str, Json]]:
    """Yield the documents of a text as ``documents`` does; ``source`` names it in errors."""
    try:
        found = [d for d in _load(text) if d is not None]
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ManifestError(f"{source}:{line}: not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ManifestError(f"{source}: not valid YAML: {' '.join(str(error).split())[:200]}") from None
    for document in found:
        is_list = isinstance(document, dict) and isinstance(document.get("items"), list)
        for item in document["items"] if is_list else [document]:
            if not isinstance(item, dict):
                raise ManifestError(f"{source}: holds a {type(item).__name__} where an object should be")
            yield source, _as_written(item)


def to_document(found: Object) -> Json:
    """Return an object in the types of JSON, with the fields that were written."""
    return found.model_dump(mode="json", by_alias=True, exclude_unset=True)


def named(document: Json, source: str) -> Json:
    """Return a document that has a kind and a name.

    :raises ManifestError: it has not.
    """
    metadata = document.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not all(isinstance(text, str) and text for text in (document.get("kind"), name)):
        raise ManifestError(f"{source}: holds an object without kind or metadata.name")
    return document


def to_objects(documents: Iterable[tuple[str, Json]]) -> list[tuple[str, Object]]:
    """Return the objects that documents describe, each behind the name of its file.

    :raises ManifestError: some are not supported; it names all problems of all of them.
    """
    found, problems = [], []
    for source, document in documents:
        try:
            found.append((source, to_object(document, source)))
        except ManifestError as error:
            problems.append(str(error))
    if problems:
        raise ManifestError("\n".join(dict.fromkeys(problems)))
    return found


def to_object(document: Json, source: str) -> Object:
    """Return the object that a document describes; ``source`` names it in errors.

    :raises ManifestError: it is not supported.
    """
    kind, metadata = document.get("kind"), document.get("metadata")
    name = metadata.get("name", "?") if isinstance(metadata, dict) else "?"
    model = KINDS.get(str(kind))
    if model is None:
        said = f"'{kind}'" if isinstance(kind, str) else "of another type than text"
        raise ManifestError(
            f"{source}: kind {said} is not supported here (only {', '.join(KINDS)}): "
            "take it out, or run the step with MESH=cluster"
        )
    try:
        found = model.model_validate(document)
    except ValidationError as invalid:
        lines = [f"{source}: {kind} {name}: {line}" for line in _explain(invalid, model)]
        raise ManifestError("\n".join(lines)) from None
    if (where := found.metadata.namespace) not in (None, namespace()):
        raise ManifestError(
            f"{source}: {kind} {name}: metadata.namespace: is '{where}', but the mesh is namespace "
            f"'{namespace()}': take it out, or run the step with NAMESPACE={where}"
        )
    return found


def _as_written(document: Json) -> Json:
    """Return a document without what a server adds to it."""
    found = {k: v for k, v in document.items() if k != "status"}
    if isinstance(metadata := found.get("metadata"), dict):
        kept = {k: v for k, v in metadata.items() if k not in _BY_SERVER}
        if isinstance(notes := kept.get("annotations"), dict):
            kept["annotations"] = {k: v for k, v in notes.items() if k != LAST_APPLIED}
        found["metadata"] = kept
    return found


def _explain(invalid: ValidationError, model: type[BaseModel]) -> Iterator[str]:
    """Yield a line for each of pydantic's errors: the field's path, and what is wrong with it."""
    errors: list[Any] = list(invalid.errors())
    misspelt = {error["loc"][:-1] for error in errors if error["type"] in ("extra_forbidden", NOT_HERE)}
    for error in errors:
        path = ""
        for part in error["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        message = error["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
        if error["type"] == "extra_forbidden":
            known = _fields_beside(error["loc"], model)
            close = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.8)
            message = "unknown or unsupported field" + (f", did you mean '{close[0]}'?" if close else "")
        # A misspelt field is also a missing one.
        if error["type"] != "missing" or error["loc"][:-1] not in misspelt:
            yield f"{path}: {message}" if path else message


def _fields_beside(location: tuple[Any, ...], model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields that would be known where an unknown one stands."""
    fields = _fields_in(model)
    for part in location[:-1]:
        if isinstance(part, str):
            fields = _fields_in(fields.get(part))
    return fields


def _fields_in(annotation: Any) -> dict[str, Any]:
    """Return the types of the fields of the model in an annotation such as ``list[HTTPRoute] | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {f.alias or name: f.annotation for name, f in annotation.model_fields.items()}
    inner = map(_fields_in, getattr(annotation, "__args__", ()))
    return next(filter(None, inner), {})
