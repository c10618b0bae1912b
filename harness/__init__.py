"""The harness: meshes to run the workshop on, and the proof that a dark launch stays dark."""

from typing import Any

Json = dict[str, Any]
"""An object of JSON's."""


class HarnessError(Exception):
    """Something the user can put right; the message is one line that says what and how."""
