"""The harness: meshes to run the workshop on, and the proof that a dark launch stays dark."""


class HarnessError(Exception):
    """Something the user can put right; the message is one line that says what and how."""
