"""`hunterforms convert`, under its former name `python -m hunterFormsBS.checkpoint`."""

from hunterFormsBS.program.dispatch import run

if __name__ == "__main__":
    run("convert")
