"""The benchmarks run, compare like with like, and compute what they print; how fast anything is, is not tested."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # The benchmarks are run from the checkout, and are not installed.

from benchmarks import (  # noqa: E402
    compare,
    curves,
    gpu,
    heads,
    launches,
    loading,
    measure,
    models,
    plot,
    report,
    songs,
    step,
    sweep,
)
from hunterFormsBS.kernels import seam  # noqa: E402

TINY = ["--tiny", "--rounds", "2", "--threads", "1"]
LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux records peak memory")


@pytest.fixture(autouse=True)
def _threads_as_before() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take peak memory from nowhere: fresh processes take seconds each."""
    for module in (compare, sweep):
        monkeypatch.setattr(module, "peak_memory", lambda _job: 3 * 2**20)


def tables(main: Callable[[list[str]], None], pathFilename: Path, *arguments: str) -> dict[str, Any]:
    main([*TINY, "--json", str(pathFilename), *arguments])
    content: dict[str, Any] = json.loads(pathFilename.read_text(encoding="utf-8"))
    assert set(content["machine"]) >= {"processor", "system", "versions"}
    return content["tables"]


# ---- equal models


@pytest.mark.parametrize("layout", models.LAYOUTS)
def test_models_of_all_installed_packages_agree_in_output_and_in_loss(layout: models.Layout) -> None:
    packages = models.installed(models.PACKAGES)
    setting = replace(models.TINY, layout=layout, stems=2)
    audio, target = models.noise(0.2), models.stems_of_noise(0.2, 2)
    with models.peers_quiet():
        matched = models.matched(packages, setting)
        outputs = {package: models.inference(model, audio)() for package, model in matched.items()}
        losses = {p: models.training(m, audio, target)() for p, m in matched.items() if p != "pymss-core"}
    assert len(outputs) >= 2
    assert outputs[models.OURS].shape == (1, 2, 2, 8820)
    assert models.disagreement(outputs) < 1e-5
    assert models.disagreement(losses) < 1e-5
    assert all(p.grad is not None for p in matched[models.OURS].parameters() if p.requires_grad)


def test_the_default_setting_has_the_bands_of_the_published_checkpoints() -> None:
    small = models.Setting(dim=8, depth=1, heads=1, dim_head=2)
    for layout, bands in (("bs", 62), ("mel", 60)):
        model = models.build(models.OURS, replace(small, layout=layout))
        assert len(model.get_submodule("band_split.to_features")._modules) == bands


def test_disagreement_is_relative_to_the_peak_of_the_reference() -> None:
    outputs: dict[models.Package, Tensor] = {
        "hunterFormsBS": torch.tensor([[1.0, -4.2]]),
        "BS-RoFormer": torch.tensor([1.0, -4.0]),
    }
    assert models.disagreement(outputs) == pytest.approx(0.05)


def test_a_package_that_is_not_installed_is_asked_for_with_the_extra_that_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models, "installed", lambda _packages: [models.OURS])
    with pytest.raises(ImportError, match=r"pymss-core.*-m pip install"):
        models.require(["hunterFormsBS", "pymss-core"])


# ---- measuring


def test_rounds_call_every_function_once_in_alternating_order() -> None:
    calls: list[str] = []
    times = measure.paired_times({name: lambda n=name: calls.append(n) for name in "abc"}, 3)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_taken_within_rounds() -> None:
    assert measure.ratios({"a": [1.0, 4.0, 3.0], "b": [2.0, 2.0, 3.0]}, "a", "b") == (1.0, 0.5, 2.0)


def test_kernel_share_counts_matrix_products_and_nothing_else() -> None:
    x = torch.ones(700, 700)
    assert measure.kernel_share(lambda: x @ x @ x) > 0.5
    assert measure.kernel_share(lambda: x.sin().exp()) == 0.0


def test_si_sdr_is_the_energy_of_the_signal_over_that_of_what_is_added_to_it_at_any_scale() -> None:
    t = torch.linspace(0, 1, 1001)[:-1] * 2 * torch.pi
    signal, rest = torch.sin(3 * t), 0.1 * torch.cos(5 * t)
    assert measure.si_sdr(7 * (signal + rest), signal) == pytest.approx(20, abs=1e-3)


@LINUX
def test_peak_memory_counts_what_the_work_takes_above_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = torch.ones(2**24)
    monkeypatch.setattr(measure, "prepare", lambda _job: lambda: float((there + 1).sum()))
    taken = measure.watch_memory(measure.Job(models.TINY, 1.0, threads=1))
    assert taken / 2**20 == pytest.approx(64, abs=8)


@pytest.mark.process
@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("work", ["inference", "training", "separate"])
def test_peak_memory_is_measured_in_a_fresh_process(work: str) -> None:
    job = measure.Job(models.TINY.with_extra(skip_connection=True), 1.0, work=work, threads=1, chunk_seconds=0.5)
    peak = measure.peak_memory(job)
    assert peak is not None
    assert 2**20 < peak < 2**28


@pytest.mark.process
@LINUX
@pytest.mark.slow
def test_a_failing_memory_measurement_says_why() -> None:
    with pytest.raises(RuntimeError, match="no_such_argument"):
        measure.peak_memory(measure.Job(models.TINY.with_extra(no_such_argument=1), 1.0))


def test_operators_are_counted_without_views() -> None:
    x = torch.ones(2, 3)
    assert launches.operators(lambda: (x + 1).view(-1)[None] * 2) == 2


@pytest.mark.parametrize("layout", models.LAYOUTS)
def test_operators_are_those_of_a_gpu_whatever_a_cpu_splits_up(layout: models.Layout) -> None:
    setting = replace(models.TINY, layout=layout)
    counts = {}
    for name, changed, seconds in (
        ("one head", replace(setting, heads=1), 0.2),
        ("three heads", replace(setting, heads=3), 0.2),
        ("two stems", replace(setting, heads=1, stems=2), 0.2),
        ("ten times as long", replace(setting, heads=1), 2.0),
    ):
        model = models.build(models.OURS, changed)
        with torch.no_grad():
            counts[name] = launches.operators(models.inference(model, models.noise(seconds)))
    assert len(set(counts.values())) == 1, counts


def test_counting_operators_leaves_the_kernels_of_a_cpu_as_they_were() -> None:
    model, audio = models.build(models.OURS, models.TINY), models.noise(0.2)
    expected = models.inference(model, audio)()
    launches.operators(models.inference(model, audio))
    assert torch.equal(models.inference(model, audio)(), expected)
    assert seam.where_of([audio]) is seam.Where.CPU


def test_markdown_tables_have_a_rule_and_dashes_for_what_was_not_measured() -> None:
    text = report.as_table([{"a": 1.23456, "bb": None}, {"a": "x", "bb": 10}], markdown=True)
    assert text == "| a    | bb |\n|------|----|\n| 1.23 | –  |\n| x    | 10 |"


# ---- the commands


@pytest.mark.slow
@pytest.mark.usefixtures("no_processes")
def test_compare_has_a_row_for_every_package_layout_and_kind_of_work(tmp_path: Path) -> None:
    packages = models.installed(models.PACKAGES)
    content = tables(compare.main, tmp_path / "it.json", "--stems", "2", "--packages", *packages)
    assert list(content) == [
        "Inference, 0.2 s: time",
        "Inference, 0.2 s: peak memory",
        "Training, 0.2 s: time",
        "Training, 0.2 s: peak memory",
    ]
    trained = [package for package in packages if package != "pymss-core"]
    for title, expected in (("Inference, 0.2 s: time", packages), ("Training, 0.2 s: time", trained)):
        rows = content[title]["rows"]
        assert [(row["layout"], row["package"]) for row in rows] == [(x, y) for x in ("bs", "mel") for y in expected]
        for numbers in content[title]["numbers"]:
            assert numbers["apart"] < 1e-4
            assert {len(seconds) for seconds in numbers["seconds"].values()} == {2}
    memory = content["Training, 0.2 s: peak memory"]["rows"]
    assert [row["package"] for row in memory[:3]] == [*trained, "hunterFormsBS, use_torch_checkpoint"]
    assert {row["peak MiB"] for row in memory} == {"3"}
    assert memory[0]["÷ BS-RoFormer"] == "1.00"


def test_compare_refuses_to_time_models_that_do_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "disagreement", lambda _outputs: 1e-3)
    arguments = ["--packages", "hunterFormsBS", "BS-RoFormer", "--layouts", "bs", "--stems", "1", "--measure", "time"]
    with pytest.raises(RuntimeError, match="cannot be compared"):
        compare.main([*TINY, *arguments])


@pytest.mark.usefixtures("no_processes")
@pytest.mark.parametrize(
    ("name", "title", "rows"),
    [
        ("length", "Length of the song", 2),
        ("stems", "Stems", 4),
        ("batch", "Batch", 3),
        ("dtype", "Precision", len(sweep.DTYPES)),
        ("features", "Optional parts", len(sweep.FEATURES)),
    ],
)
@pytest.mark.parametrize("layout", models.LAYOUTS)
def test_every_sweep_has_its_rows(name: str, title: str, rows: int, layout: str, tmp_path: Path) -> None:
    content = tables(sweep.main, tmp_path / "it.json", name, "--layout", layout)
    assert list(content) == [title]
    assert len(content[title]["rows"]) == rows


def test_the_dtype_sweep_compares_with_float32(tmp_path: Path) -> None:
    content = tables(sweep.main, tmp_path / "it.json", "dtype", "--dtypes", "bfloat16 weights")
    single, half = content["Precision"]["rows"]
    assert single["dtype"] == "float32"
    assert 20 < float(half["SI-SDR dB"]) < 70


@pytest.mark.compile
@pytest.mark.slow
def test_the_compile_sweep_makes_one_graph_for_all_lengths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "TINY", replace(models.TINY, depth=1))
    arguments = ("compile", "--backend", "eager", "--compilations", "dynamic")
    content = tables(sweep.main, tmp_path / "it.json", *arguments)
    (row,) = content["torch.compile, backend eager"]["rows"]
    assert (row["graphs"], row["more for other lengths"]) == (1, 0)
    assert float(row["apart"]) < 1e-4


def test_sweep_names_the_sweeps_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sweep.main(["lenght"])
    assert "there are: length, stems" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_gpu_says_that_there_is_no_device() -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        gpu.main([])


@pytest.mark.slow
@pytest.mark.parametrize("layout", models.LAYOUTS)
def test_gpu_times_every_variant_against_the_reference(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compilation is tested below.
    fast = [v for v in gpu.INFERENCE if v.run == "eager" and v.precision != "tf32"]
    monkeypatch.setattr(gpu, "INFERENCE", fast)
    monkeypatch.setattr(gpu, "TRAINING", gpu.TRAINING[:4])
    packages = models.installed(models.PACKAGES)
    content = tables(gpu.main, tmp_path / "it.json", "--device", "cpu", "--layouts", layout, "--packages", *packages)
    inference, training, launched = (content[title]["rows"] for title in content)
    names = [row["variant"] for row in inference]
    assert names[0] == "BS-RoFormer, float32"
    assert names == [str(variant) for variant in fast if variant.package in packages]
    exact = [row for row in inference if row["variant"].endswith(", float32")]
    assert len(exact) == len(packages)
    assert all(float(row["SI-SDR dB"]) > 90 for row in exact)
    half = [row for row in inference if "bfloat16" in row["variant"]]
    assert all(20 < float(row["SI-SDR dB"]) < 70 for row in half)
    assert inference[-1]["s of audio per s"] == "sageattention is not installed"
    assert len(training) == 4
    assert [row["package"] for row in launched] == packages
    assert all(row["operators, stems 1"] > 0 for row in launched)


def test_gpu_reports_lack_of_memory_and_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(_self: object, _variant: gpu.Variant) -> dict[str, object]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(gpu.Bench, "_measure", fail)
    arguments = ("--device", "cpu", "--layouts", "bs", "--packages", "hunterFormsBS", "--work", "training")
    content = tables(gpu.main, tmp_path / "it.json", *arguments)
    rows = next(iter(content.values()))["rows"]
    assert len(rows) > 1
    assert {row["s of audio per s"] for row in rows} == {"out of memory"}


def test_a_compiled_variant_runs_its_compiled_mask_estimation(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.build(models.OURS, models.TINY)
    audio = models.noise(0.2)
    expected = models.inference(model, audio)()
    spectra: list[Tensor] = []

    def compile_mask_estimation(_model: object, _kind: str, *, backend: str) -> Callable[[Tensor], Tensor]:
        assert backend == "a backend"
        estimate = model.mask_spectrum  # type: ignore[union-attr]
        return lambda spectrum: spectra.append(spectrum) or 2 * estimate(spectrum)  # type: ignore[func-returns-value, operator]

    monkeypatch.setattr(gpu, "compile_mask_estimation", compile_mask_estimation)
    gpu._accelerate(model, gpu.Variant(run="compiled"), audio, "a backend")  # type: ignore[arg-type]
    torch.testing.assert_close(models.inference(model, audio)(), 2 * expected)
    assert [spectrum.shape for spectrum in spectra] == [(1, 2, 1025, 21, 2)]


@pytest.mark.slow
def test_heads_are_compared_with_the_plain_one_and_with_their_formulas(tmp_path: Path) -> None:
    content = tables(heads.main, tmp_path / "it.json", "--heads", "Large-Inst v2", "HyperACE v2")
    names = ["MLPs", "Large-Inst v2", "HyperACE v2"]
    time, kernels, memory = (content[title]["rows"] for title in content)
    assert [[row["head"] for row in rows] for rows in (time, kernels, memory)] == [names] * 3
    assert int(time[2]["parameters of heads"].replace(",", "")) > int(time[0]["parameters of heads"].replace(",", ""))
    assert all(float(row["apart"]) < 0.05 for row in kernels)


# ---- training


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let threads be: two of them wait for each other on a machine that has other things to do."""
    monkeypatch.setattr(curves.torch, "set_num_threads", lambda _number: None)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("layout", models.LAYOUTS)
def test_a_training_stays_with_that_of_upstream_but_for_rounding(layout: models.Layout) -> None:
    setting = replace(models.TINY, layout=layout, stems=2)
    attempts = [
        curves.Attempt(models.REFERENCE, 1),
        curves.Attempt(models.REFERENCE, 1, changed=True),
        curves.Attempt(models.OURS, 2),
    ]
    theirs, changed, ours = curves.train(setting, 8, 0.2, 3e-3, attempts)
    assert (theirs.name, ours.name) == ("BS-RoFormer, 1 thread", "hunterFormsBS, 2 threads")
    assert theirs.losses[-1] < 0.97 * theirs.losses[0]
    # Some units in the last place of float32.
    assert max(ours.differences(theirs)) < 5e-6
    assert max(changed.differences(theirs)) < 5e-6
    # Other steps would be seen.
    (other,) = curves.train(setting, 8, 0.2, 3.03e-3, [curves.Attempt(models.OURS, 1)])
    assert max(other.differences(theirs)) > 5e-5


def test_distances_of_weights_are_relative_to_their_norm() -> None:
    first = curves.Curve("a", (1.0, 2.0), (torch.tensor([3.0, 4.0]), torch.tensor([6.0, 8.0])))
    other = curves.Curve("b", (1.0, 2.2), (torch.tensor([3.0, 4.5]), torch.tensor([6.0, 9.0])))
    assert other.distances(first) == pytest.approx((0.1, 0.1))
    assert other.differences(first) == pytest.approx([0, 0.1])
    (row,) = curves.rows([first, other])
    assert (row["run"], row["largest"], row["times"]) == ("b", "1.0e-01", "1")


def test_last_bits_are_changed_and_nothing_more() -> None:
    model = torch.nn.Linear(50, 50)
    before = model.weight.detach().clone()
    curves.change_last_bits(model)
    assert (model.weight != before).all()
    assert bool((model.weight > before).any())
    assert bool((model.weight < before).any())
    torch.testing.assert_close(model.weight.detach(), before, rtol=2e-7, atol=0)


def test_segments_are_the_same_every_time_and_stems_differ() -> None:
    first, again = (list(curves.segments(2, 0.1, 3)) for _ in range(2))
    assert [segment.shape for segment in first] == [(1, 2, 2, 4410)] * 3
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    assert not torch.allclose(first[0], first[1])
    assert all(float(stem.abs().max()) > 0.01 for segment in first for stem in segment[0])


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_curves_have_a_row_each_and_a_picture(tmp_path: Path) -> None:
    content = tables(
        curves.main, tmp_path / "it.json", "--layouts", "bs", "--steps", "3", "--picture", str(tmp_path / "it.png")
    )
    rows = content["bs: 3 steps of Adam, 0.2 s of 2 stems"]["rows"]
    assert [row["run"] for row in rows] == [
        "BS-RoFormer, 1 thread",
        "BS-RoFormer, 1 thread, last bits changed",
        "hunterFormsBS, 1 thread",
    ]
    assert rows[0]["largest"] == "0.0e+00"
    picture = tmp_path / "it-bs.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 4_000


@pytest.mark.slow
def test_segments_a_second_are_measured_for_every_format_and_number_of_workers(tmp_path: Path) -> None:
    content = tables(loading.main, tmp_path / "it.json", "--workers", "1")
    (table,) = content.values()
    assert [row["read from"] for row in table["rows"]] == list(loading.FORMATS)
    assert all(len(rates) == 2 for by_workers in table["numbers"].values() for rates in by_workers.values())


def test_a_rate_counts_what_is_read_between_two_looks_at_the_clock(tmp_path: Path) -> None:
    ((_, segments), *_) = loading.sources(tmp_path, 1, 2.0, 0.1)
    ticks = iter((10.0, 12.0))
    assert loading.rate(segments, 1, 6, clock=lambda: next(ticks)) == 3.0


@pytest.mark.slow
def test_the_parts_of_a_step_are_those_of_the_example_and_nothing_is_counted_twice(tmp_path: Path) -> None:
    content = tables(step.main, tmp_path / "it.json")
    (table,) = content.values()
    assert [row["part"] for row in table["rows"]] == [*step.MODEL, *step.OTHERS, "all but the model", "step"]
    seconds = table["numbers"]
    assert all(len(values) == 2 and min(values) > 0 for values in seconds.values())
    assert sum(float(row["share"].split()[0]) for row in table["rows"][:-2]) == pytest.approx(100, abs=10)


def test_time_within_another_part_is_not_counted_there(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(step.time, "perf_counter", lambda: now[0])

    def work(seconds: float) -> None:
        now[0] += seconds

    clock = step.Clock(torch.device("cpu"))
    inner = clock.timed("inner", work)
    outer = clock.timed("outer", lambda: (work(1), inner(2), inner(4), work(8)))
    clock.timed("outermost", lambda: (outer(), work(16)))()
    assert clock.seconds == {"inner": 6, "outer": 9, "outermost": 16}


def test_plot_draws_the_sweep_of_lengths(tmp_path: Path) -> None:
    numbers = {"seconds": {"10": [1.0, 1.1], "20": [2.0, 2.2]}, "peaks": {"10": 2**20, "20": 2**21}}
    file, picture = tmp_path / "it.json", tmp_path / "it.png"
    file.write_text(json.dumps({"tables": {"Length of the song": {"numbers": numbers}}}), encoding="utf-8")
    plot.main([str(file), "--output", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 10_000


def test_plot_says_which_sweep_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "it.json"
    file.write_text('{"tables": {}}', encoding="utf-8")
    with pytest.raises(SystemExit, match=r"benchmarks\.sweep length"):
        plot.main([str(file)])


@pytest.mark.slow
@pytest.mark.process
def test_songs_measures_the_whole_program_and_the_model_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "it.json", tmp_path / "it.png"
    runs: list[dict[str, float]] = []

    def run(*arguments: Any, **keywords: Any) -> dict[str, float]:
        runs.append(measured(*arguments, **keywords))
        return runs[-1]

    measured = songs._run
    monkeypatch.setattr(songs, "_run", run)
    songs.main(["overhead", "--tiny", "--rounds", "1", "--json", str(file)])
    assert [0 < run["own"] < run["whole"] for run in runs] == [True, True]
    assert all(100 < run["peak"] < 4000 for run in runs)  # MiB
    (table,) = json.loads(file.read_text())["tables"].values()
    assert [row["ratio"] for row in table["rows"]] == [run["whole"] / run["own"] for run in runs]

    monkeypatch.setattr(songs, "_run", lambda *_arguments: {"peak": 500.0})
    songs.main(["memory", "--tiny", "--picture", str(picture)])
    assert "0.2      500       500" in capsys.readouterr().out
    assert picture.stat().st_size > 10_000


def test_songs_says_which_parts_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        songs.main(["speed"])
    assert "memory, overhead, overlap, chunks" in capsys.readouterr().err
