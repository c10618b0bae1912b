"""Run the command line: ``python -m harness COMMAND``."""

import sys

from harness.cli import cli
from harness.terminal import run

if __name__ == "__main__":
    sys.exit(run(cli, "python -m harness"))
