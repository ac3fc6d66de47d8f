"""How many small mistakes in the package the quick tests notice.

    python tests/mutants.py cover              run the quick tests once, and note which lines each of them executes
    python tests/mutants.py run --number 200   make so many mistakes, one at a time, and list those that no test notices

A mistake is a comparison, an operator or a constant changed, a condition negated, or a function that returns `None`.
Each is made in a copy of the project, where the tests that execute its line run until one fails. Mistakes are drawn
with a seed, from all lines of the package, those that no test executes among them.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from coverage import CoverageData

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "hunterFormsBS"
COPIED = (".ci", "benchmarks", "citations", "docs", "examples", "pyproject.toml", "start.py", "tests", PACKAGE)

OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


class Mutant(NamedTuple):
    """A mistake: what stands in a file from one byte to another, and what is written there instead."""

    file: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        """Return where it is, and what is changed, in one line."""
        before, after = (" ".join(text.split()) for text in (self.before, self.after))
        return f"{self.file}:{self.line}: {before[:60]} -> {after[:60]}"


def changed(node: ast.AST) -> ast.AST | None:
    """Return a syntax tree with a mistake at its root, or nothing if none is made there."""
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=right):
            return ast.Compare(left, [OPERATORS[type(operator)]()], right)  # type: ignore[list-item]
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            return ast.BinOp(left, OPERATORS[type(operator)](), right)  # type: ignore[arg-type]
        case ast.BoolOp(op=operator, values=values):
            return ast.BoolOp(OPERATORS[type(operator)](), values)  # type: ignore[arg-type]
        case ast.Constant(value=bool(value)):
            return ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            return ast.Constant(value + 1)
        case ast.Return(value=ast.expr() as value) if not isinstance(value, ast.Constant):
            return ast.Return(ast.Constant(None))
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
    return None


def nodes_of(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield what is executed: no annotations, and conditions of `if` and `while` as what they are when negated."""
    for name, value in ast.iter_fields(tree):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in {"annotation", "returns"}:
                yield child
                yield from nodes_of(child)


def mutants_of(path: Path, root: Path) -> Iterator[Mutant]:
    """Yield every mistake that is made in a file."""
    source = path.read_bytes()
    starts = [0, *(match.end() for match in re.finditer(b"\n", source))]
    for node in nodes_of(ast.parse(source)):
        targets = [(node, changed(node))]
        if isinstance(node, (ast.If, ast.While)):
            targets = [(node.test, ast.UnaryOp(ast.Not(), node.test))]
        for old, new in targets:
            if new is not None and isinstance(old, (ast.expr, ast.stmt)) and old.end_lineno and old.end_col_offset:
                start, end = starts[old.lineno - 1] + old.col_offset, starts[old.end_lineno - 1] + old.end_col_offset
                text = ast.unparse(ast.fix_missing_locations(new))
                written = text if isinstance(old, ast.stmt) else f"({text})"
                yield Mutant(
                    path.relative_to(root).as_posix(), old.lineno, start, end, source[start:end].decode(), written
                )


def tests_for(mutant: Mutant, data: CoverageData, most: int) -> list[str]:
    """Return tests that execute the line, one of each function first, or the file, if that is done by importing it."""
    file = next((name for name in data.measured_files() if name.endswith(f"/{mutant.file}")), "")
    by_line = data.contexts_by_lineno(file)
    contexts = by_line.get(mutant.line, [])
    if contexts and not any(contexts):
        contexts = [context for others in by_line.values() for context in others]
    by_function: dict[str, list[str]] = {}
    for test in sorted({context.partition("|")[0] for context in contexts if context}):
        by_function.setdefault(test.partition("[")[0], []).append(test)
    rounds = zip_longest(*by_function.values())
    return [test for one_of_each in rounds for test in one_of_each if test is not None][:most]


def fate_of(mutant: Mutant, tests: Sequence[str], folder: Path, seconds: float) -> str:
    """Make the mistake in a copy of the project, and return what its tests say."""
    if not tests:
        return "not executed"
    path = folder / mutant.file
    source = path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.after.encode() + source[mutant.end :])
    try:
        return "survived" if passed(tests, folder, seconds) else "killed"
    except subprocess.TimeoutExpired:
        return "endless"
    finally:
        path.write_bytes(source)


def passed(tests: Sequence[str], folder: Path, seconds: float) -> bool:
    """Run tests in a copy of the project until one fails, and return whether none does."""
    (folder / "chosen.txt").write_text("\n".join(tests))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "", "@chosen.txt"]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=seconds, check=False)
    return done.returncode == 0


def run(arguments: argparse.Namespace) -> None:
    """Draw mistakes, make them, and print what becomes of each."""
    data = CoverageData(str(arguments.data))
    data.read()
    paths = sorted((ROOT / PACKAGE).rglob(arguments.files))
    every = [mutant for path in paths for mutant in mutants_of(path, ROOT)]
    drawn = random.Random(arguments.seed).sample(every, min(arguments.number, len(every)))
    chosen = {mutant: tests_for(mutant, data, arguments.tests) for mutant in drawn}
    fates: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(arguments.jobs) as threads:
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(arguments.jobs):
            folder = Path(temporary) / str(number)
            folder.mkdir()
            for name in COPIED:
                (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, folder / name)
            folders.put(folder)

        firsts = sorted({tests[0] for tests in chosen.values() if tests})
        if firsts and not passed(firsts, folder, arguments.seconds):
            raise SystemExit(f"without any mistake one of these fails already:\n{chr(10).join(firsts)}")

        def judged(mutant: Mutant) -> tuple[Mutant, str]:
            folder = folders.get()
            try:
                return mutant, fate_of(mutant, chosen[mutant], folder, arguments.seconds)
            finally:
                folders.put(folder)

        for mutant, fate in threads.map(judged, drawn):
            fates[fate] += 1
            print(f"{fate:12} {mutant}", flush=True)
    print(f"of {len(drawn)} of {len(every)} mistakes: {dict(fates)}")


def cover(arguments: argparse.Namespace) -> None:
    """Run the quick tests, and write which lines each of them executes."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", str(arguments.jobs), "--dist", "worksteal"]
    command += [f"--cov={PACKAGE}", "--cov-context=test", "--cov-report=", "-p", "no:cacheprovider", *arguments.more]
    environment = {**os.environ, "COVERAGE_FILE": str(arguments.data), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=False)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / ".coverage.mutants", help="where lines and tests are noted")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    parts = parser.add_subparsers(required=True)
    covering = parts.add_parser("cover")
    covering.add_argument("more", nargs="*", help="further arguments of pytest, for one the names of test files")
    covering.set_defaults(do=cover)
    running = parts.add_parser("run")
    running.add_argument("--number", type=int, default=20, help="how many mistakes")
    running.add_argument("--seed", type=int, default=0)
    running.add_argument("--files", default="*.py", metavar="PATTERN", help="those in which mistakes are made")
    running.add_argument("--tests", type=int, default=300, help="the most tests for each")
    running.add_argument("--seconds", type=float, default=300, help="the most time for each")
    running.set_defaults(do=run)
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
