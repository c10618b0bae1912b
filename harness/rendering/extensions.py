"""Extensions: the code that a TrafficExtension brings into the sidecars of a workload."""

from collections.abc import Iterable

from harness import Json
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import extensions_of
from harness.rendering.values import given, typed_extension

EXTENSION = "extension"
"""The name of the HTTP filter in which it runs."""

LUA = "extensions.filters.http.lua.v3.Lua"


def extension_file(workload: str) -> str:
    """Return the name of the file in which a workload's sidecars find their code."""
    return f"extension-{workload}.json"


def extension(objects: Iterable[Object], workload: Deployment) -> Json:
    """Return the HTTP filter of a workload's sidecars; without a TrafficExtension it has no code."""
    code = [{"inline_string": found.spec.lua.inline_code} for found in extensions_of(objects, workload)]
    return typed_extension(EXTENSION, LUA, **given(default_source_code=code and code[0]))
