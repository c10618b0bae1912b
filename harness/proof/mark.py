"""The mark of a release: the annotation by which a VirtualService says at which step one stands."""

import json
from typing import Any

from harness import Json

ANNOTATION = "dark-launch/release"


def marked(found: Json, mark: Json) -> Json:
    """Return a VirtualService that bears the mark of a release."""
    metadata = found["metadata"]
    notes = {**metadata.get("annotations", {}), ANNOTATION: json.dumps(mark, sort_keys=True)}
    return {**found, "metadata": {**metadata, "annotations": notes}}


def mark_of(found: Json) -> dict[str, Any]:
    """Return the mark of the release at whose step a VirtualService stands; nothing if at none."""
    try:
        mark = json.loads((found["metadata"].get("annotations") or {}).get(ANNOTATION, "{}"))
    except ValueError:
        return {"step": "?"}
    return mark if isinstance(mark, dict) else {"step": "?"}


def in_words(mark: Json) -> str:
    """Return a mark in words."""
    return f"a release stands at {mark.get('step')} since {mark.get('since')}"
