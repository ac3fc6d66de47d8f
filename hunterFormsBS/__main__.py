"""The program `hunterforms`, also as `python -m hunterFormsBS`."""

from hunterFormsBS.program.dispatch import main, run

__all__ = ["main", "run"]

if __name__ == "__main__":
    run()
