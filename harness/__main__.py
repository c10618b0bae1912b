"""Run the command line: ``python -m harness COMMAND``."""

from harness.cli import main

if __name__ == "__main__":
    main("python -m harness")
