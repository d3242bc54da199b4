"""The command `jvdm` in a clone of the repository, without an install: python main.py --help."""

from jvdm.cli.main import run

if __name__ == "__main__":
    run()
