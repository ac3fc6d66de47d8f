"""The pages of the site and the README: their code runs, their links lead somewhere, their names are right."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path
from types import ModuleType

import pytest
import soundfile
import torch
import yaml
from packaging.version import Version

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.catalogue import entries, presets
from hunterFormsBS.checkpoint import save_checkpoint
from hunterFormsBS.checkpoint.programs import AUDIBLE, ROFORMERS, SWITCHES
from hunterFormsBS.checkpoint.variants import VARIANTS
from hunterFormsBS.kernels.seam import KERNELS, Where
from tests import optionsOfPrograms

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("README.md"), *(ROOT / "docs").rglob("*.md")])
LANGUAGES = {"bash", "output", "python", "text", "yaml", "{include} ../CHANGELOG.md", "{toctree}"}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


documentation = load(ROOT / "docs" / "codeBlocks.py")


def pages(some: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", some, ids=[page.relative_to(ROOT).as_posix() for page in some])


every_page = pages(PAGES)
ELSEWHERE = ("training.md", "finetuning.md", "performance.md")


def blocks(page: Path, language: str) -> list[str]:
    return [block.code for block in documentation.code_blocks(page) if block.language == language]


@pytest.fixture
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a folder that holds what the pages take for granted: a song, a checkpoint of MSST, its configuration."""
    arguments = {"dim": 8, "depth": 1, "stereo": True, "num_stems": 2, "heads": 1, "freqs_per_bands": [25, 1000]}
    torch.manual_seed(0)
    model = BandSplitRotator(**arguments)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "model.ckpt")
    configuration = {
        "audio": {"chunk_size": 44100, "sample_rate": 44100},
        "model": {**arguments, "mask_estimator_depth": 2, "stft_hop_length": 512, "stft_win_length": 2048},
        "training": {"instruments": ["vocals", "other"]},
    }
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(configuration))
    save_checkpoint(tmp_path / "complete.ckpt", model, configuration=configuration)
    for name in ("song.wav", "song.flac"):
        soundfile.write(tmp_path / name, torch.randn(30000, 2).numpy() / 10, 44100)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return tmp_path


@pages([page for page in PAGES if blocks(page, "python")])
def test_python_blocks_run_and_print_what_the_page_says(page: Path, users_folder: Path) -> None:
    if page.name == "export.md" and Version(torch.__version__).release < (2, 13):
        pytest.skip("export is tested with PyTorch 2.13; the exporters of 2.5 fail")
    documentation.run_python(page)


# Those of training.md and finetuning.md run in test_train.py and test_fineTuning.py; those of performance.md take
# minutes, and test_benchmarks.py runs their programs at a small size.
@pytest.mark.slow
@pages([page for page in PAGES if blocks(page, "bash") and page.name not in ELSEWHERE])
def test_commands_run_and_write_what_they_are_told_to(
    page: Path, users_folder: Path, run_commands: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    if page.name == "export.md" and Version(torch.__version__).release < (2, 13):
        pytest.skip("export is tested with PyTorch 2.13; the exporters of 2.5 fail")
    (users_folder / "examples").symlink_to(ROOT / "examples")
    # .ci/run runs two of these as they are, and tests/listening/test_listen.py what the third starts.
    elsewhere = {"python3 start.py\n", "python3 start.py test\n", "python3 start.py listen\n"}
    commands = [code for code in blocks(page, "bash") if code not in elsewhere]
    done = run_commands(["set -e", *commands], users_folder)
    assert done.returncode == 0, done.stderr[-3000:]
    for folder in re.findall(r"--output (\S+)", "".join(commands)):
        if Path(folder).suffix:  # of one file
            assert (users_folder / folder).is_file()
            continue
        written = {path.stem for path in (users_folder / folder).rglob("*.*")}
        assert written >= {"vocals", "other"}


@every_page
def test_every_block_names_its_language(page: Path) -> None:
    assert {block.language for block in documentation.code_blocks(page)} <= LANGUAGES
    assert f"\n{page.read_text()}".count("\n```") % 2 == 0


@every_page
def test_yaml_blocks_are_yaml(page: Path) -> None:
    assert [code for code in blocks(page, "yaml") if yaml.safe_load(code) is None] == []


def test_every_extra_is_explained_where_installing_is() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = re.search(
        r"^\| Extra \| For \|\n(?:\|.*\n)+", (ROOT / "docs" / "quickstart.md").read_text("utf-8"), re.MULTILINE
    )
    assert table
    rows = [line.split("|")[1] for line in table[0].splitlines()[2:]]
    assert sorted(re.findall(r"`(\w+)`", "".join(rows))) == sorted(known)


@every_page
def test_commands_name_files_and_extras_that_exist(page: Path) -> None:
    commands = "\n".join(blocks(page, "bash"))
    files = re.findall(r"\b(?:examples|benchmarks)/[\w/]+\.\w+", commands)
    assert [file for file in files if not (ROOT / file).is_file()] == []
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [
        extra for extras in re.findall(r"(?:hunterFormsBS|\.)\[([\w,]+)\]", commands) for extra in extras.split(",")
    ]
    assert [extra for extra in named if extra not in known] == []


@every_page
def test_relative_links_lead_to_files(page: Path) -> None:
    prose = documentation.FENCE.sub("", page.read_text())
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", prose)
    # The site's pictures are drawn when it is built.
    assert [link for link in links if not link.startswith("_pictures/") and not (page.parent / link).exists()] == []


def strings_of_the_package() -> str:
    """Return the text of all strings of the package, with an ellipsis for each expression of an f-string."""
    lines = []
    for path in (ROOT / "hunterFormsBS").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
                lines.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines).casefold()


def test_messages_that_troubleshooting_explains_are_messages_of_the_package() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r'^### "(.+)"$', page, re.M)
    assert len(messages) > 8
    said = strings_of_the_package()
    assert [message for message in messages if message.casefold() not in said] == []


def test_reference_holds_every_module_but_those_behind_others() -> None:
    reference = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.rst"))
    documented = set(re.findall(r"automodule:: hunterFormsBS\.([\w.]+)", reference))
    modules = {
        ".".join(path.relative_to(ROOT / "hunterFormsBS").with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "hunterFormsBS").rglob("*.py")
    }
    # What these do for users is documented with `checkpoint`, `separation` and the command line's --help.
    behind = {
        "__init__",
        "__main__",
        "blocks",
        "checks",
        "choices",
        "devices",
        "estimates",
        "failures",
        "installation",
        "limits",
        "kernels",
        "lazyNames",
        "listening",
        "overlapAdd",
        "printable",
        "program",
        "separationValues",
        "signature",
        "songs",
        "containers",
        "formerNames",
        "operations",
        "training",
    }
    behind |= {
        module
        for module in modules
        if module.startswith(("checkpoint.", "listening.", "program.", "recipes.", "songs."))
    }
    behind |= {f"training.{name}" for name in ("pictures", "schedules", "sharding", "stempegSong", "unread")}
    assert documented == modules - behind


def test_the_tree_of_the_architecture_is_the_package() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("```text\nhunterFormsBS/\n", 1)[1].split("```", 1)[0]
    named, folder = [], ""
    for line in tree.splitlines():
        name = line.split()[0]
        if line.startswith(" " * 4) and line[4] != " ":
            folder = name if name.endswith("/") else ""
        for file in re.findall(r"[\w/]+\.py\b", line):
            named.append(f"{folder}{file}")
    package = ROOT / "hunterFormsBS"
    modules = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(modules)


def served() -> Iterator[tuple[str, str]]:
    """Yield each kernel, in the order of preference, and the method or function that it is put in front of."""
    for path in sorted((ROOT / "hunterFormsBS").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        owners = [("", tree), *((f"{node.name}.", node) for node in tree.body if isinstance(node, ast.ClassDef))]
        for prefix, owner in owners:
            for function in owner.body:
                for decorator in getattr(function, "decorator_list", ()):
                    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "served_by":
                        yield from ((ast.unparse(kernel), f"{prefix}{function.name}") for kernel in decorator.args)


@pytest.mark.parametrize("page", ["model", "checkpoints", "separation", "pictures", "layouts"])
def test_every_argument_of_what_users_call_is_explained_where_it_stands(page: str) -> None:
    text = (ROOT / "docs" / "reference" / f"{page}.rst").read_text(encoding="utf-8")
    names = load(ROOT / "docs" / "summaries.py").names_of(text)
    assert names != []
    elsewhere = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        docstring = inspect.getdoc(getattr(importlib.import_module(module), attribute)) or ""
        elsewhere += [f"{name}: {line}" for line in re.findall(r"^.+\n {4}(See `.+)$", docstring, re.M)]
    assert elsewhere == []


def test_architecture_lists_every_kernel_as_it_is() -> None:
    words = {Where.CPU: "CPU", Where.DEVICE: "device", Where.GRAPH: "graph"}
    expected = []
    for name, method in served():
        places = ", ".join(words[place] for place in Where if place in KERNELS[name].where)
        places = "everywhere" if KERNELS[name].where == Where.EVERYWHERE else places
        expected.append((f"`{name}`", f"`{method}`", places, "yes" if KERNELS[name].ordinary else "no"))
    (section,) = re.findall(r"^## Kernels\n(.*?)^#", (ROOT / "docs" / "architecture.md").read_text(), re.M | re.S)
    rows = [tuple(cell.strip() for cell in line.split("|")[1:5]) for line in section.splitlines() if "|" in line]
    # The order of a method's kernels is that of preference; that of methods is free.
    assert sorted(rows[2:], key=itemgetter(1)) == sorted(expected, key=itemgetter(1))
    assert {f"`{name}`" for name in KERNELS} == {name for name, *_ in expected}


def test_choosing_names_checkpoints_with_scores_that_they_have() -> None:
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| Purpose \| Candidates \|\n(.*?)\n\n", page, re.M | re.S)
    named = re.findall(r"`((?:bs|mel)_roformer-[^`]+)`(?: (?:\(stated SDR )?(\d+\.\d+))?", table)
    assert len(named) > 20
    for name, score in named:
        values = {
            f"{one['sdr']:.2f}" for stems in entries()[name].scores.values() for one in stems.values() if "sdr" in one
        }
        assert not score or score in values
    assert {name for name in presets() if f"`{name}`" in table} == set(presets())


def test_tables_that_pages_hold_are_those_of_the_package() -> None:
    summaries = load(ROOT / "docs" / "summaries.py")
    pages = sorted({page for page, _ in summaries.TABLES.values()})
    texts = {page: (ROOT / "docs" / page).read_text(encoding="utf-8") for page in pages}
    stale = [page for page, text in texts.items() if summaries.with_tables(page, text) != text]
    assert stale == [], "run: python docs/summaries.py"


def test_pages_have_nothing_that_only_sphinx_shows() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    shown = re.compile(r"\{\w+:\w+\}`|^```\{(?!toctree)", re.MULTILINE)
    assert [page.name for page in pages if shown.search(page.read_text(encoding="utf-8"))] == []


def test_full_names_lead_to_the_reference_on_the_site() -> None:
    linked = load(ROOT / "docs" / "summaries.py").linked
    name, method = "hunterFormsBS.checkpoint.from_checkpoint", "hunterFormsBS.bandSplitRotator.BandSplitRotator.forward"
    assert linked(f"`{name}` and `{method}`") == f"{{py:obj}}`{name}` and {{py:obj}}`{method}`"
    for kept in ("`hunterFormsBS.songs.names`", "`hunterFormsBS`", f"```python\n`{name}`\n```"):
        assert linked(kept) == kept


PROGRAMS_PAGES = {
    "from-msst": ["MSST", "a fork of MSST"],
    "from-uvr": ["UVR", "audio-separator"],
    "from-pymss": ["pymss"],
    "from-splifft": ["splifft"],
}


def test_pages_name_every_variant_program_and_checkpoint() -> None:
    summaries = load(ROOT / "docs" / "summaries.py")
    names = ("variants", "catalogue", "scores", "stated_scores", "presets")
    tables = {name: getattr(summaries, name)() for name in names}
    for variant in VARIANTS:
        (row,) = [line for line in tables["variants"].splitlines() if line.startswith(f"| {variant.name} |")]
        assert f"`{variant.example}`" in row
        assert (f"`{variant.options}`" if variant.options else variant.advice) in row
    rows = [line.split("`")[1] for line in tables["catalogue"].splitlines() if line.startswith("| `")]
    assert rows == list(entries())
    page = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    assert [word for word in (*AUDIBLE, *SWITCHES, *ROFORMERS) if f"`{word}`" not in page] == []
    for program in (name for names in PROGRAMS_PAGES.values() for name in names):
        assert page.count(f"\n| {program} |") == 2


@pytest.mark.parametrize("page", PROGRAMS_PAGES)
def test_pages_for_users_of_other_programs_explain_what_is_read_otherwise_there(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert [
        line for line in ("dim_t", "use_amp", "zero_dc", "chunk_size", "inference", "audio") if line not in text
    ] == []


def test_every_program_has_a_page() -> None:
    page = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    table = page[page.index("| Program | Files |") : page.index("What four lines do there")]
    programs = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:] if line]
    assert sorted(name for names in PROGRAMS_PAGES.values() for name in names) == sorted(programs)


def test_pages_are_held_against_the_help_of_other_programs() -> None:
    of_argparse = (
        "  -n NAME, --name NAME  A NAME, unlike --gone.\n  --kind {a,b}          Of model.\n  --quiet    Print less.\n"
    )
    of_rich = "│ *  --output     -o      <dir>        Where.  │\n│                 see --name                       │\n"
    assert [*optionsOfPrograms.options_of_help(of_argparse + of_rich)] == [
        ["-n", "--name"],
        ["--kind"],
        ["--quiet"],
        ["--output", "-o"],
    ]
    page = "Text with `--kind`.\n\n| there | here |\n| --- | --- |\n| `-n NAME`, `--gone` | `--checkpoint` |\n"
    program = optionsOfPrograms.Program("page.md", (), "--quiet")
    assert optionsOfPrograms.differences(program, [of_argparse, of_rich], page) == [
        "is gone: --gone",
        "has no row: --kind",
        "has no row: --output/-o",
    ]
    for program in optionsOfPrograms.PROGRAMS.values():
        assert optionsOfPrograms.options_of_page((ROOT / "docs" / program.page).read_text(encoding="utf-8"))


def test_a_block_that_prints_something_else_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```python\nprint(x)\n```\n\n```output\n2\n```\n")
    with pytest.raises(ValueError, match=r"page.md:10 is not what the block above prints, which is:\n1"):
        documentation.run_python(page)


def test_errors_in_a_block_have_the_lines_of_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Text.\n\n```python\nx = 1\nx / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as error:
        documentation.run_python(page)
    assert error.traceback[-1].lineno == 4  # counted from 0
