"""Read objects of any shape: what is missing, null or of another type reads as nothing."""

from typing import Any

from harness import Json


def at(found: Any, *path: str) -> Any:
    """Return what stands at a path; None where nothing does."""
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def items(found: Any, *path: str) -> list[tuple[int, Json]]:
    """Return the objects of the list at a path, each with its place."""
    there = at(found, *path)
    return [(i, e) for i, e in enumerate(there) if isinstance(e, dict)] if isinstance(there, list) else []


def text(found: Any, *path: str) -> str:
    """Return the text at a path; nothing where none is."""
    there = at(found, *path)
    return there if isinstance(there, str) else ""
