"""Release a version: its number and date in every file that has them, both archives built and checked, a commit, a tag.

python .ci/release.py 0.5.0             from a clean checkout; it ends with the command that publishes
python .ci/release.py 0.5.0 --dry-run   all but the commit and the tag, in a temporary copy
python .ci/release.py 0.5.0 --check     whether the files are those of a release, as the workflow `publish` asks

It needs `build` and `twine`, which the extra `dev` has.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNDATED = "not released yet"
VERSION = r"\d+\.\d+\.\d+((a|b|rc)\d+)?"
LINES = {
    "pyproject.toml": (r'^version = ".*"$', 'version = "{version}"'),
    "README.md": (r"^  version = \{{.*\}},$", "  version = {{{version}}},"),
    "CITATION.cff": (r"^version: .*(\ndate-released: .*)?$", 'version: {version}\ndate-released: "{date}"'),
    "CHANGELOG.md": (r"^## \[{pattern}\] - .*$", "## [{version}] - {date}"),
}
"""For each file that has the version, the line with it as a regular expression, and as it is to be."""


def released(root: Path, version: str, today: str) -> dict[str, str]:
    """Return the texts of the files of `LINES` as a release has them. A date that the changelog has stays."""
    texts = {name: (root / name).read_text(encoding="utf-8") for name in LINES}
    heading = re.search(rf"^## \[{re.escape(version)}\] - (.*)$", texts["CHANGELOG.md"], re.MULTILINE)
    if heading is None:
        raise SystemExit(f"CHANGELOG.md has no section ## [{version}] - {UNDATED}: write what changed")
    date = today if heading[1] == UNDATED else heading[1]
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", date):
        raise SystemExit(f"CHANGELOG.md dates the section of {version} {date!r}: write YYYY-MM-DD, or {UNDATED}")
    for name, (line, replacement) in LINES.items():
        pattern, text = line.format(pattern=re.escape(version)), replacement.format(version=version, date=date)
        texts[name], count = re.subn(pattern, lambda _, text=text: text, texts[name], flags=re.MULTILINE)
        if count != 1:
            raise SystemExit(f"{name} must have one line that matches {pattern}, and has {count}")
    return texts


def write(folder: Path, texts: Mapping[str, str]) -> None:
    """Write texts to the files of their names."""
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")


def build(texts: Mapping[str, str], output: Path) -> None:
    """Build and check both archives in a copy with these texts: of what Git tracks, or of all files without Git."""
    tracked = (ROOT / ".git").exists()
    names = git("ls-files", "-z").split("\0") if tracked else [str(path.relative_to(ROOT)) for path in ROOT.rglob("*")]
    with tempfile.TemporaryDirectory() as folder:
        for name in filter(None, names):
            if (ROOT / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, Path(folder) / name)
        write(Path(folder), texts)
        run(sys.executable, "-m", "build", "--outdir", str(output), folder)
    archives = [str(path) for path in sorted(output.iterdir())]
    # The registry refuses metadata and pages that this does not accept.
    run(sys.executable, "-m", "twine", "check", "--strict", *archives)
    run(sys.executable, str(ROOT / ".ci" / "check_distribution.py"), "archives", *archives)


def git(*arguments: str) -> str:
    """Return what Git says of this checkout."""
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def run(*command: str) -> None:
    """Run a command, and stop with what it said if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    print(done.stdout.strip().rpartition("\n")[2])


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", help="with --dry-run it may be left out: that of pyproject.toml")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--dry-run", action="store_true", help="neither commit nor tag, and change no file")
    how.add_argument("--check", action="store_true", help="fail unless the files are those of this release")
    parser.add_argument("--output", type=Path, help="with --dry-run: keep the archives in this empty folder")
    options = parser.parse_args()
    version = options.version
    if version is None and options.dry_run:
        version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)[1]
    if not re.fullmatch(VERSION, version or ""):
        parser.error(f"name a version such as 0.5.0 or 0.5.0rc1, not {version}")
    if options.output and not options.dry_run:
        parser.error("--output goes with --dry-run")
    texts = released(ROOT, version, datetime.now(UTC).date().isoformat())
    stale = [name for name, text in texts.items() if text != (ROOT / name).read_text(encoding="utf-8")]
    if options.check:
        raise SystemExit(f"not those of release {version}: {', '.join(stale)}" if stale else 0)
    if not options.dry_run and git("status", "--porcelain"):
        raise SystemExit("git status lists changes: commit them first, or try --dry-run")
    if not options.dry_run and git("tag", "--list", f"v{version}"):
        raise SystemExit(f"there is a tag v{version} already")
    with tempfile.TemporaryDirectory() as folder:
        build(texts, options.output or Path(folder))
    if options.dry_run:
        print(f"{version} could be released; it changes {', '.join(stale) or 'no file'}")
        return
    write(ROOT, texts)
    if stale:
        git("commit", "--quiet", "--message", f"Version {version}", "--", *stale)
    git("tag", "--annotate", f"v{version}", "--message", f"Version {version}")
    print(f"tagged v{version}; to publish it: git push origin HEAD v{version}")


if __name__ == "__main__":
    main()
