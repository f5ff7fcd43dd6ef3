"""``python -m promerge_d2`` is the command ``promerge``."""

from promerge_d2.cli.command import run

if __name__ == "__main__":
    run()
