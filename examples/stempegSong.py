"""Make a folder of songs to try training with, from the six seconds of music in the package stempeg.

    python examples/stempegSong.py songs

Needs `python -m pip install -e ".[examples]"`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from hunterFormsBS.training.stempegSong import write_songs


def main() -> None:
    """Write the songs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    write_songs(parser.parse_args().folder)


if __name__ == "__main__":
    from endings import run

    run(main)
