"""Hold the pages for users of other programs against the options that installed releases have.

    python tests/optionsOfPrograms.py --bin ENVIRONMENT/bin --msst FOLDER

runs `--help` of each program, and fails where a page has a row for an option that is gone, lacks one for an option that
can change the audio, or was not checked because the program does not run. `Program.others` lists the options without a
row, which change no sample: an option that is in neither is new. Once the programs are installed, no network is needed.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"

_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
_METAVAR = re.compile(r"[A-Z\d_]+|<.*>|\{.*\}|\[.*|\.\.\.|\]")
_OF_HELP = re.compile(r"--help|--version|--debug|--verbose")


@dataclass(frozen=True)
class Program:
    """A program, its page, and the patterns of options that change no sample of a RoFormer's stems."""

    page: str
    commands: tuple[tuple[str, ...], ...]
    others: str


PROGRAMS = {
    "MSST": Program("from-msst.md", (("inference.py",), ("ensemble.py",)), "--output"),
    "audio-separator": Program(
        "from-uvr.md",
        (("audio-separator",),),
        # What it prints, fetches and runs on, and the options of its other architectures.
        "--env_info|--list_.*|--log_level|--download_model_only|--use_soundfile|--use_directml|--(mdx|vr|demucs)_.*",
    ),
    "pymss": Program(
        "from-pymss.md",
        (("pymss", "infer"), ("pymss", "register")),
        "--model-dir|--download|--source|--endpoint|--alias|--force|--allow-missing",
    ),
    "splifft": Program("from-splifft.md", (("splifft", "run"),), ""),
    "demucs": Program("from-demucs.md", (("demucs",),), "--list-models|-j|--repo"),
}


def options_of_help(text: str) -> Iterator[list[str]]:
    """Yield the names of each option that a help text of argparse or of rich explains."""
    for line in text.splitlines():
        words = line.strip(" │*").replace(",", " ").replace("=", " ").split()
        names: list[str] = []
        for word in words:
            if _FLAG.fullmatch(word):
                names.append(word)
            elif not names or not _METAVAR.fullmatch(word):
                break
        if names:
            yield names


def options_of_page(text: str) -> set[str]:
    """Return the options that the first column of a page's tables names."""
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| ")]
    return {option for cell in cells for code in re.findall(r"`([^`]*)`", cell) for option in _FLAG.findall(code)}


def differences(program: Program, helps: Sequence[str], page: str) -> list[str]:
    """Say which rows of a page are for options that are gone, and which options have no row."""
    explained = [names for text in helps for names in options_of_help(text)]
    rows, known = options_of_page(page), {name for names in explained for name in names}
    silent = re.compile(f"{_OF_HELP.pattern}|{program.others}")
    missing = [
        "/".join(names)
        for names in explained
        if rows.isdisjoint(names) and not any(silent.fullmatch(name) for name in names)
    ]
    return [f"is gone: {name}" for name in sorted(rows - known)] + [f"has no row: {name}" for name in missing]


def help_of(command: Sequence[str], folder: Path, msst: Path | None) -> str:
    """Run a program of an environment, or a script of MSST's in it, for its help."""
    first, *rest = command
    if first.endswith(".py"):
        if msst is None:
            raise FileNotFoundError(f"{first} is not here: pass --msst")
        whole = [str(folder / "python"), str(msst / first), *rest]
    else:
        whole = [str(folder / first), *rest]
    environment = {**os.environ, "COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [*whole, "--help"], capture_output=True, text=True, check=False, cwd=msst, env=environment, timeout=600
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(whole)} --help ends with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


def main() -> int:
    """Check the pages; return how many programs differ from theirs, or were not checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bin", type=Path, default=Path(sys.executable).parent, help="of an environment that has them")
    parser.add_argument("--msst", type=Path, help="a copy of Music-Source-Separation-Training")
    parser.add_argument("names", nargs="*", choices=[[], *PROGRAMS], help="which programs (default: all)")
    options = parser.parse_args()
    failed = 0
    for name in options.names or PROGRAMS:
        program = PROGRAMS[name]
        try:
            helps = [help_of(command, options.bin.absolute(), options.msst) for command in program.commands]
        except (OSError, RuntimeError, subprocess.TimeoutExpired) as error:
            found = [f"was not checked: {error}"]
        else:
            found = differences(program, helps, (DOCS / program.page).read_text(encoding="utf-8"))
        failed += bool(found)
        print(f"{name}: " + ("as docs/" + program.page if not found else "".join(f"\n  {line}" for line in found)))
    return failed


if __name__ == "__main__":
    sys.exit(min(main(), 1))
