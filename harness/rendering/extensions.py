"""Extensions: the code that a TrafficExtension brings into the sidecars of a workload."""

from collections.abc import Iterable

from harness import Json
from harness.manifests.base import Object
from harness.manifests.kubernetes import Deployment
from harness.manifests.lookup import extensions_of
from harness.rendering.values import type_url

EXTENSION = "extension"
"""The name of the HTTP filter in which it runs."""

LUA = "extensions.filters.http.lua.v3.Lua"


def extension_file(workload: str) -> str:
    """Return the name of the file in which a workload's sidecars find their code."""
    return f"extension-{workload}.json"


def extension(objects: Iterable[Object], workload: Deployment) -> Json:
    """Return the HTTP filter of a workload's sidecars; without a TrafficExtension it has no code."""
    code = [found.spec.lua.inline_code for found in extensions_of(objects, workload)]
    lua = {"default_source_code": {"inline_string": code[0]}} if code else {}
    return {"name": EXTENSION, "typed_config": {"@type": type_url(LUA), **lua}}
