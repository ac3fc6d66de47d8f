"""Draw cost against length from what `python -m benchmarks.sweep length --json FILE` wrote."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.measure import ROOT


def main(argv: Sequence[str] | None = None) -> None:
    """Write the picture that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("file", type=Path, help="what the sweep wrote")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "cost-against-length.png", help="PNG to write")
    options = parser.parse_args(argv)
    content = json.loads(options.file.read_text(encoding="utf-8"))
    try:
        numbers = content["tables"]["Length of the song"]["numbers"]
    except KeyError:
        raise SystemExit(f"{options.file} holds no sweep of lengths: run python -m benchmarks.sweep length") from None
    lengths = [float(length) for length in numbers["seconds"]]
    draw(
        lengths,
        [statistics.median(seconds) for seconds in numbers["seconds"].values()],
        [None if peak is None else peak / 2**20 for peak in numbers["peaks"].values()],
        options.output,
    )
    print(f"Wrote {options.output}")


def draw(
    lengths: Sequence[float], seconds: Sequence[float], mebibytes: Sequence[float | None], pathFilename: Path
) -> None:
    """Draw time, and memory where it was measured, against the length of the song.

    Parameters
    ----------
    lengths, seconds, mebibytes : sequence of float
        Length of each song, time that it took, and peak memory above the idle process.
    pathFilename : Path
        PNG to write.
    """
    from matplotlib.figure import Figure

    measured = [one for one in mebibytes if one is not None]
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2 if len(measured) == len(lengths) else 1, squeeze=False)[0]
    for axis, values, label in zip(axes, (seconds, measured), ("time, s", "peak memory above idle, MiB"), strict=False):
        # Linear means: the points lie on the line through the two ends.
        axis.plot([lengths[0], lengths[-1]], [values[0], values[-1]], color="0.75", label="straight line")
        axis.plot(lengths, values, "o", color="tab:blue", label="measured")
        axis.set(xlabel="length of the song, s", ylabel=label, xlim=(0, None), ylim=(0, 1.08 * max(values)))
        axis.legend()
    figure.savefig(pathFilename, dpi=120)


if __name__ == "__main__":
    main()
