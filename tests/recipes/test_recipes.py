"""Recipes from their text to their files: what is refused before a model is loaded, and what the program writes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hunterFormsBS.__main__ import main
from hunterFormsBS.catalogue import entries
from hunterFormsBS.checkpoint import CheckpointError, from_configuration, save_checkpoint
from hunterFormsBS.recipes import Model, Recipe, RecipeError, RecipePlan, Step, read_recipe, recipePlan, shipped
from hunterFormsBS.recipes.drawing import facts_of
from hunterFormsBS.songs import plan
from hunterFormsBS.songs.reading import probe_audio, read_audio
from hunterFormsBS.songs.separating import separate_song
from hunterFormsBS.songs.settings import find_configuration
from tests.songs.test_batch import write_model, write_song, written

pytestmark = pytest.mark.filterwarnings("default::UserWarning")

RECIPE = """
summary: voices apart, and the band
steps:
  first: {models: duo.ckpt}
  voices: {models: [pair.ckpt, other.ckpt], input: first.voice, ensemble: max_fft}
  drums: {models: {checkpoint: trio.ckpt}, input: first.rest, stems: [drums, bass], num_overlap: 1}
outputs:
  band: first.band
  lead: voices.lead
  backing: voices.back
  breath: voices.rest
  drums: drums.drums
  other: drums.rest
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with small checkpoints, a recipe and a song."""
    path = tmp_path_factory.mktemp("recipes")
    write_model(path / "duo.ckpt", ["voice", "band"])
    write_model(path / "pair.ckpt", ["lead", "back"], seed=1)
    write_model(path / "other.ckpt", ["back", "lead"], seed=2)
    write_model(path / "trio.ckpt", ["drums", "bass", "keys"], seed=3)
    write_model(path / "nameless.ckpt", ["a", "b"], named=False)
    (path / "mine.yaml").write_text(RECIPE)
    write_song(path / "songs" / "a.wav", 7001)
    return path


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {path.stem: read_audio(path)[0] for path in folder.glob("*.wav")}


def test_files_are_those_of_separate_calls_and_add_up_to_their_input(folder: Path, tmp_path: Path) -> None:
    song = folder / "songs" / "a.wav"
    assert run(song, "--recipe", folder / "mine.yaml", "--output", tmp_path / "out", "--quiet") == 0
    made = read(tmp_path / "out" / "a")
    assert run(song, "--checkpoint", folder / "duo.ckpt", "--residual", "rest", "--output", tmp_path / "1") == 0
    first = tmp_path / "1" / "a"
    voices = ["--checkpoint", folder / "pair.ckpt", "--checkpoint", folder / "other.ckpt", "--ensemble", "max_fft"]
    assert run(first / "voice.wav", *voices, "--residual", "breath", "--output", tmp_path / "2") == 0
    drums = ["--checkpoint", folder / "trio.ckpt", "--stems", "drums,bass", "--num-overlap", 1]
    assert run(first / "rest.wav", *drums, "--residual", "other", "--output", tmp_path / "3") == 0
    alone = read(first) | read(tmp_path / "2" / "voice") | read(tmp_path / "3" / "rest")
    alone["backing"] = alone["back"]
    assert sorted(made) == ["backing", "band", "breath", "drums", "lead", "other"]
    for name, samples in made.items():
        assert torch.equal(samples, alone[name]), name
    torch.testing.assert_close(sum(made.values()) + alone["bass"], read_audio(song)[0].expand(2, -1), rtol=0, atol=1e-6)


def test_one_model_at_a_time_writes_the_same_leaves_nothing_else_and_says_what_it_saves(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [folder / "songs", "--recipe", folder / "mine.yaml", "--json"]
    assert run(*same, "--output", tmp_path / "one") == 0
    capsys.readouterr()
    assert run(*same, "--output", tmp_path / "two", "--one-model-at-a-time") == 0
    said = capsys.readouterr()
    assert "MB for each minute" in said.err
    assert json.loads(said.out)["status"] == "separated"
    assert written(tmp_path / "two") == written(tmp_path / "one")
    expected = read(tmp_path / "one" / "a")
    assert all(torch.equal(samples, expected[name]) for name, samples in read(tmp_path / "two" / "a").items())


def test_a_part_and_some_of_the_outputs_are_those_of_all_under_the_names_that_are_asked_for(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [folder / "songs", "--recipe", folder / "mine.yaml", "--output", tmp_path / "out"]
    part = ["--stems", "Drums,backing", "--start", "0.5", "--duration", "0.1", "--name-template", "{model}/{stem}"]
    assert run(*same) == 0
    assert run(*same, *part) == 0
    assert written(tmp_path / "out" / "mine") == ["backing.wav", "drums.wav"]
    whole = read(tmp_path / "out" / "a")
    for name, samples in read(tmp_path / "out" / "mine").items():
        torch.testing.assert_close(samples, whole[name][:, 4000:4800], rtol=0, atol=1e-6)
    capsys.readouterr()
    assert run(*same, "--skip-existing", "--json") == 0
    assert json.loads(capsys.readouterr().out)["status"] == "skipped"


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": None}, "steps must be a mapping of names, but is None"),
        ({"steps": {}}, "`steps` must be 1 to 50 steps: received 0"),
        ({"step": {}}, "the recipe has the unknown key 'step'; is steps meant?"),
        ({"first": {"model": "x"}}, "step first has the unknown key 'model'; is models meant?"),
        ({"first": {"models": []}}, "step first: `models` must be a checkpoint or a list of them: received []"),
        ({"first": {"models": {"checkpoint": 3}}}, "a model must be a file or a name of the catalogue"),
        ({"first": {"models": "duo.ckpt", "ensemble": "mean"}}, "`ensemble` must be one of avg_wave"),
        ({"first": {"models": "duo.ckpt", "weights": [1, 2]}}, "`weights` must be one for each of 1 models"),
        ({"first": {"models": "duo.ckpt", "weights": [-1]}}, "`weights` must be a list of numbers, none below zero"),
        ({"first": {"models": "duo.ckpt", "chunk_size": "all"}}, "step first: `chunk_size` must be an integer"),
        ({"first": {"models": "duo.ckpt", "input": 3}}, "`input` must be mixture, STEP.STEM or STEP.rest"),
        ({"first": {"models": "duo.ckpt", "input": "firsd.voice"}}, "no step 'firsd'; is first meant?"),
        ({"first": {"models": "duo.ckpt", "input": "drums.bass"}}, "in a circle: first from drums from first"),
        ({"a.b": {"models": "duo.ckpt"}}, "'a.b' cannot be the name of a step"),
        ({"spare": {"models": "duo.ckpt"}}, "no output needs the step spare"),
        ({"outputs": {}}, "`outputs` must be names of files and their signals"),
        ({"outputs": {"x": "first"}}, "output x: a signal must be STEP.STEM or STEP.rest, but is 'first'"),
        ({"outputs": {"x": "first.band", "X": "drums.rest", "y": "voices.rest"}}, "x and X would be one file"),
    ],
    ids=str,
)
def test_graphs_that_cannot_be_run_are_refused_with_the_value_and_the_remedy(
    change: Mapping[str, Any], message: str
) -> None:
    content = yaml.safe_load(RECIPE)
    for key, value in change.items():
        inner = content if key in ("steps", "step", "outputs") else content["steps"]
        inner[key] = value
    with pytest.raises(RecipeError) as caught:
        Recipe.from_mapping(content)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("first.band", "first.bend"),
            "step first: signals: the model has no stem bend, but voice, band; is band meant?",
        ),
        (("[drums, bass]", "[drums, base]"), "step drums: stems: the model has no stem base"),
        (("other.ckpt", "trio.ckpt"), "step voices: the checkpoints have different stems"),
        (("{models: duo.ckpt}", "{models: nameless.ckpt}"), "step first: no configuration names the stems"),
        (("duo.ckpt", "duet.ckpt"), "duet.ckpt: No such file"),
        (("num_overlap: 1", "chunk_size: 3"), "--chunk-size 3 is less than one window"),
        (("{checkpoint: trio.ckpt}", "!!python/object:os.system trio"), "asks for Python objects"),
    ],
    ids=str,
)
def test_recipes_that_do_not_fit_their_models_are_one_line_before_any_is_loaded(
    folder: Path,
    change: tuple[str, str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "from_checkpoint", None)
    assert change[0] in RECIPE
    path = folder / "wrong.yaml"
    path.write_text(RECIPE.replace(*change))
    try:
        status = run(folder / "songs", "--recipe", path, "--output", folder / "out")
    except SystemExit as error:
        status = int(error.code or 0)
    assert status in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--checkpoint", "x.ckpt"), "--checkpoint does not go with --recipe"),
        (("--residual",), "--residual does not go with --recipe"),
        (("--ensemble", "avg_fft"), "--ensemble does not go with --recipe"),
        (("--stems", "brass"), "--stems: the recipe has no output brass"),
        (("--stems", "band,Band"), "--stems names band twice"),
    ],
    ids=str,
)
def test_options_that_do_not_go_with_a_recipe_are_status_2(
    folder: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(folder / "songs", "--recipe", folder / "mine.yaml", "--output", folder / "out", *arguments)
    assert message in capsys.readouterr().err


def test_each_checkpoint_that_cannot_be_fetched_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(repository: str, *_arguments: object) -> Path:
        raise CheckpointError(f"{repository} is not in the cache, and there is no connection")

    monkeypatch.setattr("hunterFormsBS.checkpoint.hub.download", nothing)
    song = write_song(tmp_path / "a.wav")
    assert run(song, "--recipe", "dry-lead", "--output", tmp_path / "out") == 1
    lines = capsys.readouterr().err.splitlines()
    names = [model.checkpoint for step in shipped()["dry-lead"].steps.values() for model in step.models]
    assert len(lines) == len(names)
    for line, name in zip(lines, names, strict=True):
        assert f"error: {entries()[name].repository} is not in the cache" in line


# In Python, and those that come with the package ----------------------------------------------------------------------


def test_the_same_in_python_gives_the_same_samples(folder: Path, tmp_path: Path) -> None:
    song = folder / "songs" / "a.wav"
    recipe = Recipe(
        steps={
            "first": Step(models=folder / "duo.ckpt"),
            "second": Step(models=[Model(str(folder / "pair.ckpt"))], input="first.band"),
        },
        outputs={"lead": "second.lead", "voice": "first.voice"},
    )
    graph, names = RecipePlan(recipe, num_overlap=3).load()
    made = torch.cat(list(separate_song(graph, probe_audio(song))), dim=-1)
    (tmp_path / "it.json").write_text(
        json.dumps(
            {
                "steps": {"first": {"models": "duo.ckpt"}, "second": {"models": "pair.ckpt", "input": "first.band"}},
                "outputs": dict(recipe.outputs),
            }
        )
    )
    for name in ("duo.ckpt", "pair.ckpt"):
        (tmp_path / name).symlink_to(folder / name)
    assert run(song, "--recipe", tmp_path / "it.json", "--output", tmp_path / "out", "--num-overlap", 3) == 0
    files = read(tmp_path / "out" / "a")
    assert all(torch.equal(stem, files[name]) for name, stem in zip(names, made, strict=True))


def small(name: str, folder: Path) -> Path:
    """Return a checkpoint with random weights, of the architecture, bands and stems of one of the catalogue."""
    path = folder / f"{name}.ckpt"
    if not path.exists():
        torch.manual_seed(0)
        configuration: dict[str, Any] = json.loads(json.dumps(entries()[name].configuration))
        configuration["model"] |= {"dim": 8, "depth": 1, "heads": 1, "dim_head": 8, "mlp_expansion_factor": 1}
        configuration["audio"]["chunk_size"] = 20_000
        save_checkpoint(path, from_configuration(configuration), configuration=configuration)
    return path


@pytest.mark.parametrize("name", shipped())
def test_recipes_of_the_package_run_with_small_models_of_the_same_kind(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(checkpoint: Path, configuration: Path | None) -> Any:
        return find_configuration(small(str(checkpoint), folder), configuration)

    monkeypatch.setattr(recipePlan, "find_configuration", found)
    song = write_song(tmp_path / "a.wav", 40_000, rate=44100)
    assert run(song, "--recipe", name, "--output", tmp_path / "out", "--num-overlap", 1) == 0
    made = read(tmp_path / "out" / "a")
    assert made.keys() == shipped()[name].outputs.keys()
    if "add up to the song" in shipped()[name].summary or name == "vocals":
        torch.testing.assert_close(sum(made.values()), read_audio(song)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", shipped())
def test_recipes_of_the_package_name_where_each_model_comes_from(name: str) -> None:
    recipe = shipped()[name]
    for step in recipe.steps.values():
        for model in step.models:
            entry = entries()[model.checkpoint]
            assert any(f"https://huggingface.co/{entry.repository} " in source for source in recipe.sources)
    assert recipe.summary


@pytest.mark.parametrize("name", shipped())
def test_the_costs_of_a_recipe_are_those_of_its_models_in_the_catalogue(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("recipe", "show", name, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert run("recipe", "show", name) == 0
    drawn = capsys.readouterr().out
    whole = 0
    for step, facts in shown["steps"].items():
        of_step = 0
        for model in facts["models"]:
            entry = entries()[model["checkpoint"]]
            of_step += 2 * entry.flop_per_second * (1 if entry.configuration["model"]["stereo"] else 2)
        assert facts["flop_per_second"] == of_step
        assert re.search(rf"^  {step} +{of_step / 1e9:.0f} GFLOP for a second of music, ", drawn, re.MULTILINE)
        whole += of_step
    assert shown["flop_per_second"] == whole
    assert len(shown["steps"]) == 1 or re.search(rf"^  together +{whole / 1e9:.0f} GFLOP ", drawn, re.MULTILINE)


def test_costs_follow_what_a_step_states_and_are_unknown_with_other_chunks() -> None:
    entry = entries()["mel_roformer-aufr33-karaoke"]
    stated: list[dict[str, Any]] = [{}, {"num_overlap": 1, "batch_size": 3}, {"tta": True, "shifts": 2}]
    stated += [{"chunk_size": 44100}, {"models": "mel_roformer-yolkis-drums"}]
    costs: list[tuple[int | None, int | None]] = []
    for each in stated:
        steps = {"one": {"models": entry.name, **each}}
        shown = facts_of(Recipe.from_mapping({"steps": steps, "outputs": {"a": "one.rest"}}))
        costs.append((shown["flop_per_second"], shown["memory"]))
    work, memory = entry.flop_per_second, entry.memory
    at_a_time = entry.size + 3 * (memory - entry.size)
    assert costs == [(2 * work, memory), (work, at_a_time), (12 * work, memory), (None, None), (None, None)]


def test_recipes_are_listed_and_drawn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("recipe", "list") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == sorted(shipped())
    assert run("recipe", "show", folder / "mine.yaml") == 0
    drawn = capsys.readouterr().out
    assert "   │  └─ voices: " in drawn
    assert "other.ckpt (8000 Hz, chunks of 0.2 s, overlap 2), max_fft" in drawn
    assert "         └─ rest → other" in drawn
    assert run("recipe", "show", "band", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["steps"]["band"]["stems"] == ["drums", "bass"]
    assert shown["outputs"]["other"] == "band.rest"
    assert run("recipe", "show", "lead-backing", "--mermaid") == 0
    assert "    karaoke -->|rest| backing" in capsys.readouterr().out.splitlines()
    with pytest.raises(SystemExit, match="2"):
        run("recipe", "show")
    assert run("recipe", "show", "bend") == 1
    assert "'bend' is neither a file nor a recipe of the package; is band meant?" in capsys.readouterr().err
    assert read_recipe("band") is shipped()["band"]
