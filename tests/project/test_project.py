"""The project's own files: licences, citations, versions, and what importing the package costs others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import bibtexparser
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]

# The works that the package cites: file name without suffix, and identifiers that its entry must hold.
WORKS: dict[str, tuple[str, ...]] = {
    "hendrycks2016gaussian": ("1606.08415",),
    "pmlr-v70-dauphin17a": ("1612.08083", "933--941", "{70}"),
    "NIPS2017_3f5ee243": ("1706.03762",),
    "NEURIPS2019_1e8a1942": ("1910.07467",),
    "SU2024127063": ("2104.09864", "10.1016/j.neucom.2023.127063", "{568}", "{127063}"),
    "NEURIPS2021_a655fbe4": ("2106.09681",),
    "NEURIPS2022_67d57c32": ("2205.14135",),
    "rogozhnikov2022einops": ("oapKSVM2bcj",),
    "ICLR2025_b286c344": ("2410.02367",),
    "pmlr-v267-zhang25ae": ("2411.10958", "75097--75119", "{267}"),
    "zhang2025sageattention": ("Eev5rXcgng",),
    "10446843": ("2309.02612", "10.1109/ICASSP48485.2024.10446843", "481--485"),
    "ju_chiang_wang_2024_14877371": ("2409.04702", "10.5281/zenodo.14877371", "454--461"),
    "zhou-etal-2025-value": ("2410.17897", "10.18653/v1/2025.acl-long.1375"),
    "gopalakrishnan2025decoupling": ("2509.10534",),
    "zhu2024hyperconnections": ("2409.19606",),
    "zhu2025fracconnections": ("2503.14125",),
    "xie2025mhc": ("2512.24880",),
}

VENUE_FIELD = {"inproceedings": "booktitle", "article": "journal", "misc": "eprint"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def plain(text: str) -> str:
    """Reduce a title to its letters and digits, so that BibTeX and YAML spellings compare."""
    return re.sub(r"[^0-9a-z]", "", text.casefold())


def entry(name: str) -> dict[str, str]:
    library = bibtexparser.parse_string(read(f"citations/{name}.bib"))
    assert library.failed_blocks == []
    assert [one.key for one in library.entries] == [name]
    fields = {key: str(field.value) for key, field in library.entries[0].fields_dict.items()}
    return {"ENTRYTYPE": library.entries[0].entry_type, **fields}


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    return tomllib.loads(read("pyproject.toml"))["project"]


@pytest.fixture(scope="module")
def citation_file() -> dict[str, Any]:
    return yaml.safe_load(read("CITATION.cff"))


def test_citations_hold_one_file_per_work_and_no_other() -> None:
    assert sorted(path.stem for path in (ROOT / "citations").glob("*.bib")) == sorted(WORKS)


@pytest.mark.parametrize("name", WORKS)
def test_bib_entry_parses_and_is_complete(name: str) -> None:
    fields = entry(name)
    for needed in ("title", "author", "year", "url", VENUE_FIELD[fields["ENTRYTYPE"]]):
        assert fields.get(needed), f"{name}.bib lacks {needed}"
    assert re.fullmatch(r"20[0-2]\d", fields["year"])
    assert all(", " in author for author in re.split(r"\s+and\s+", fields["author"])), "authors are 'Family, Given'"


@pytest.mark.parametrize("name", WORKS)
def test_bib_entry_holds_the_identifiers_of_its_work(name: str) -> None:
    text = read(f"citations/{name}.bib")
    assert [identifier for identifier in WORKS[name] if identifier not in text] == []


def test_citation_file_has_what_the_format_requires(citation_file: dict[str, Any]) -> None:
    assert citation_file["cff-version"] == "1.2.0"
    assert citation_file["type"] == "software"
    assert citation_file["message"]
    assert citation_file["title"] == "hunterFormsBS"
    for reference in citation_file["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert reference["type"] in {"article", "conference-paper"}
        assert all({"family-names", "given-names"} <= set(author) for author in reference["authors"])


def test_citation_file_and_bib_files_name_the_same_works(citation_file: dict[str, Any]) -> None:
    works = {plain(entry(name)["title"]): entry(name) for name in WORKS}
    references = {plain(reference["title"]): reference for reference in citation_file["references"]}
    assert set(references) == set(works)
    for title, reference in references.items():
        fields = works[title]
        assert str(reference["year"]) == fields["year"]
        assert reference.get("doi") == fields.get("doi")
        assert len(reference["authors"]) == len(re.split(r"\s+and\s+", fields["author"]))


def test_authors_keywords_and_licence_agree_in_metadata_and_citation_file(
    metadata: dict[str, Any], citation_file: dict[str, Any]
) -> None:
    assert [author["name"] for author in metadata["authors"]] == [
        "Hunter Hogan",
        "Phil Wang",
        "Roman Solovyev (ZFTurbo)",
    ]
    assert [author["family-names"] for author in citation_file["authors"]] == ["Hogan", "Wang", "Solovyev"]
    assert metadata["keywords"] == citation_file["keywords"]
    assert metadata["license"] == citation_file["license"] == "CC-BY-NC-4.0"


def test_one_version_everywhere(metadata: dict[str, Any], citation_file: dict[str, Any]) -> None:
    assert version("hunterFormsBS") == metadata["version"]
    assert citation_file["version"] == metadata["version"]


def test_links_in_the_metadata_and_the_citation_file_lead_to_one_repository(
    metadata: dict[str, Any], citation_file: dict[str, Any]
) -> None:
    metadata = {**metadata, "urls": dict(metadata["urls"])}
    repository = citation_file["repository-code"]
    assert {"Homepage", "Documentation", "Changelog", "Issues", "Repository"} == set(metadata["urls"])
    owner, name = repository.split("/")[-2:]
    site = metadata["urls"].pop("Documentation")
    assert site == f"https://{owner}.github.io/{name}/"
    assert site in read("README.md")
    for link in metadata["urls"].values():
        assert link.startswith(repository)
        _, found, file = link.partition("/blob/main/")
        assert not found or (ROOT / file).is_file()


def test_nothing_installs_the_older_package_of_this_name_from_a_registry() -> None:
    # Versions 0.3.0 and 0.3.1 there have no extras, and neither checkpoints nor separation.
    files = [
        path for folder in ("hunterFormsBS", "examples", "benchmarks", "docs") for path in ROOT.glob(f"{folder}/**/*")
    ]
    texts = [path for path in [ROOT / "README.md", *files] if path.suffix in {".md", ".py", ".rst"}]
    assert [path for path in texts if re.search(r'pip install "?hunterFormsBS\b(?!<)', path.read_text("utf-8"))] == []


def test_changelog_has_an_entry_for_the_version(metadata: dict[str, Any]) -> None:
    number = re.escape(metadata["version"])
    section = re.search(rf"^## \[{number}\].*?\n(.*?)(?=^## |\Z)", read("CHANGELOG.md"), re.M | re.S)
    assert section is not None
    assert re.search(r"^- \S", section[1], re.M)


def test_licence_is_the_whole_legal_code() -> None:
    text = read("LICENSE")
    headings = re.findall(r"^Section (\d) -- ", text, re.M)
    assert text.startswith("Attribution-NonCommercial 4.0 International\n")
    assert headings == ["1", "2", "3", "4", "5", "6", "7", "8"]
    assert text.endswith("Creative Commons may be contacted at creativecommons.org.\n")


@pytest.mark.parametrize(
    ("name", "notice"),
    [
        ("LICENSE-Wang", "Copyright (c) 2023 Phil Wang"),
        ("LICENSE-Solovyev", "Copyright (c) 2024 Roman Solovyev (ZFTurbo)"),
    ],
)
def test_upstream_licences_keep_their_notices(name: str, notice: str) -> None:
    text = read(name)
    assert text.startswith(f"MIT License\n\n{notice}\n\nPermission is hereby granted, free of charge")
    assert text.rstrip().endswith("SOFTWARE.")


def test_every_licence_file_ships(metadata: dict[str, Any]) -> None:
    assert metadata["license-files"] == ["LICENSE", "LICENSE-Wang", "LICENSE-Solovyev"]


def test_readme_is_short_and_shows_how_to_cite(citation_file: dict[str, Any]) -> None:
    assert len(read("README.md").splitlines()) <= 120
    (entry,) = re.findall(r"^@software\{\w+,\n(.*?)^\}", read("README.md"), re.M | re.S)
    fields = dict(re.findall(r"^  (\w+) = \{(.*)\},?$", entry, re.M))
    assert fields.pop("author").split(" and ") == [
        f"{author['family-names']}, {author['given-names']}" for author in citation_file["authors"]
    ]
    assert fields == {name: citation_file[name] for name in ("title", "version", "url")}


def test_readme_gives_the_two_commands_and_continuous_integration_runs_one() -> None:
    lines = read("README.md").splitlines()
    assert "python3 start.py" in lines
    assert "python3 start.py test" in lines
    assert "readme_test_command='python3 start.py test'" in read(".ci/run")


def test_links_of_the_readme_work_on_a_page_of_a_registry_too(citation_file: dict[str, Any]) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", read("README.md"))
    assert [link for link in links if not link.startswith("https://")] == []
    files = [
        re.fullmatch(r"(?:/blob|)/main/(.+)", link.removeprefix(prefix))
        for prefix in (citation_file["repository-code"], "https://raw.githubusercontent.com/hunterhogan/hunterFormsBS")
        for link in links
        if link.startswith(prefix)
    ]
    assert len(files) > 5
    assert [match for match in files if match is None or not (ROOT / match[1]).is_file()] == []


def test_issue_forms_have_what_github_asks_for() -> None:
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert forms != []
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= form.keys()
        assert len({field["id"] for field in form["body"]}) == len(form["body"])
        for field in form["body"]:
            assert field["type"] in {"dropdown", "input", "textarea"}
            assert field["attributes"]["label"]
            assert all(isinstance(option, str) for option in field["attributes"].get("options", []))


def test_hooks_before_a_commit_run_the_programs_of_continuous_integration() -> None:
    (repository,) = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    programs = {hook["entry"].split()[0] for hook in repository["hooks"]}
    assert repository["repo"] == "local"
    stages = re.findall(r"^stage_(?:lint|types)\(\) \{\n(.*?)^\}", read(".ci/run"), re.M | re.S)
    assert programs == set(re.findall(r"^    (\w+)(?: [\w. -]+)? \|\| status=1", "".join(stages), re.M))


def test_package_is_typed() -> None:
    assert (ROOT / "hunterFormsBS" / "py.typed").is_file()


@pytest.mark.process
def test_import_loads_no_optional_or_slow_package() -> None:
    # tqdm is not among them: torch.hub imports it where it is installed.
    unwanted = {
        "PoPE_pytorch",
        "librosa",
        "matplotlib",
        "safetensors",
        "sageattention",
        "soundfile",
        "soxr",
        "torch._dynamo",
        "yaml",
    }
    program = (
        "import sys; from hunterFormsBS import BandSplitRotator; "
        "print(*sorted({name.partition('.')[0] for name in sys.modules}), *{'torch._dynamo'}.intersection(sys.modules))"
    )
    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert "hunterFormsBS" in loaded.stdout.split()
    assert unwanted.intersection(loaded.stdout.split()) == set()


def test_every_class_of_models_has_from_pretrained_without_importing_what_fetches() -> None:
    program = (
        "import sys; from hunterFormsBS.mel_band_roformer import MelBandRoformer; "
        "from hunterFormsBS.bs_roformer import BSRoformer; from hunterFormsBS import BandSplitRotator; "
        "print({model.from_pretrained.__name__ for model in (BandSplitRotator, BSRoformer, MelBandRoformer)}, "
        "'huggingface_hub' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "{'from_pretrained'} False"


def promises(page: str) -> Iterator[str]:
    """Yield every row of a table and every item of a list that promises something."""
    for section in re.split(r"^## ", page, flags=re.M)[1:]:
        if not section.startswith(("What is not promised", "Reporting")):
            text = section.split("\nNot promised:")[0]
            yield from re.findall(r"^\| (?!Promise ).*", text, flags=re.M)
            yield from re.findall(r"^- .*(?:\n {2}.*)*", text, flags=re.M)


def test_every_promise_of_security_names_a_test_and_every_test_that_it_names_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    assert [promise for promise in promises(page) if not re.search(r"\btest_\w+", promise)] == []
    tests = {
        path.relative_to(ROOT).as_posix(): re.findall(r"^def (test_\w+)", path.read_text(encoding="utf-8"), flags=re.M)
        for path in ROOT.glob("tests/**/test_*.py")
    }
    unknown, file = [], ""
    # `tests/test_x.py::test_name`, `::test_name` of the file before, and `test_name` or `test_na…` of any file.
    for named, path, inside, name, cut in re.findall(r"(`(tests/[\w/]+\.py)?(::)?(test_\w+)?(\u2026)?`)", page):
        file = path or file
        known = tests.get(file, []) if path or inside else [test for names in tests.values() for test in names]
        found = any(test == name or (cut and test.startswith(name)) for test in known) if name else path in tests
        unknown += [] if found else [named]
    assert unknown == []


@pytest.mark.process
@pytest.mark.slow
def test_a_run_ends_with_costly_tests_that_no_marker_excuses_and_what_is_imported_marks_others(tmp_path: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "test_costs.py").write_text(
        "import subprocess, sys, time\n"
        "import pytest, torch\n"
        "def work(seconds: float) -> None:\n"
        "    while time.process_time() < seconds: pass\n"
        "def test_dear(): work(time.process_time() + 1.5)\n"
        "def test_cheap(): pass\n"
        "@pytest.mark.compile\n"
        "def test_dear_and_marked(): work(time.process_time() + 1.5)\n"
        "@pytest.mark.slow\n"
        "def test_left_out(): pass\n"
    )
    (tmp_path / "test_elsewhere.py").write_text("def test_without_torch(): pass\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-n",
        "1",
        "test_costs.py",
        "test_elsewhere.py",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert re.findall(r"^[\d.]+: .*::(\w+)$", done.stdout, re.MULTILINE) == ["test_dear"]
    chosen = subprocess.run(
        [*command, "-n", "0", "-m", "newest", "-v", "-k", "not dear"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert re.findall(r"::(\w+) PASSED", chosen.stdout) == ["test_cheap", "test_left_out"]
