"""Exported models: `torch.export`, ONNX in onnxruntime, and the example that separates a file without PyTorch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch
from packaging.version import Version

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.__main__ import main
from hunterFormsBS.blocks.spectrum import SpectralTransform
from hunterFormsBS.checkpoint import save_checkpoint
from hunterFormsBS.checkpoint.onnxFile import export_program, relative_error
from hunterFormsBS.separation import separate
from hunterFormsBS.theTypes import ParametersSTFT

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# The exporter's own use of what it has deprecated.
deprecation = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec:FutureWarning")
recent_torch = pytest.mark.skipif(
    Version(torch.__version__).release < (2, 13), reason="export is tested with PyTorch 2.13; the exporters of 2.5 fail"
)

SMALL: dict[str, Any] = {
    "dim": 8,
    "depth": 1,
    "heads": 2,
    "dim_head": 8,
    "time_transformer_depth": 1,
    "freq_transformer_depth": 1,
    "mlp_expansion_factor": 1,
    "stft_n_fft": 64,
    "stft_win_length": 64,
    "stft_hop_length": 16,
    "dim_freqs_in": 33,
}
BANDS = {"bs": {"freqs_per_bands": (4, 8, 21)}, "mel": {"sample_rate": 8000, "num_bands": 3}}
LAYOUTS = {
    f"{layout}_{stems}": {**BANDS[layout], "num_stems": stems, "stereo": stems == 4}
    for layout in BANDS
    for stems in (1, 4)
}
STEMS = ["drums", "bass", "other", "vocals"]
# Between them everything that changes what is traced.
OPTIONS = {
    "bs": {
        **BANDS["bs"],
        "use_pope": True,
        "num_residual_streams": 2,
        "mc_hyper_conn_sinkhorn_iters": 2,
        "use_torch_checkpoint": True,
        "flash_attn": False,
    },
    "mel": {
        **BANDS["mel"],
        "depth": 2,
        "linear_transformer_depth": 1,
        "use_value_residual_learning": True,
        "skip_connection": True,
    },
    "range": {"freqs_per_bands": (4, 10), "freq_range": (3, 17), "zero_dc": False},
}


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runtime() -> ModuleType:
    return example("separate_onnx")


def build(arguments: dict[str, Any]) -> BandSplitRotator:
    torch.manual_seed(0)
    return BandSplitRotator(**{**SMALL, **arguments}).eval()


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.export
@deprecation
@recent_torch
@pytest.mark.parametrize(
    "arguments",
    [pytest.param(OPTIONS[name], id=name, marks=[pytest.mark.slow] * (name != "range")) for name in OPTIONS],
)
def test_exported_program_is_real_and_agrees_for_any_number_of_items_and_frames(arguments: dict[str, Any]) -> None:
    model = build(arguments)
    program = export_program(model)
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert [value for value in values if isinstance(value, torch.Tensor) and value.is_complex()] == []
    run = program.module()
    with torch.no_grad():
        for batch, frames in ((1, 1), (1, 2), (3, 40)):
            spectrum = noise(batch, model.audio_channels, 33, frames, 2)
            expected = model.mask_spectrum(spectrum)
            torch.testing.assert_close(run(spectrum), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.slow
@pytest.mark.export
@deprecation
@recent_torch
@pytest.mark.parametrize("layout", LAYOUTS)
def test_onnx_file_of_a_checkpoint_agrees_with_the_model_and_separates_songs_without_torch(
    tmp_path: Path, layout: str
) -> None:
    """One test of three promises, because exporting takes seconds."""
    model = build(LAYOUTS[layout])
    names = STEMS[: model.num_stems]
    configuration = {
        "audio": {"chunk_size": 2000, "sample_rate": 8000},
        "training": {"instruments": STEMS, "target_instrument": None if model.num_stems == 4 else STEMS[0]},
    }
    save_checkpoint(tmp_path / "model.ckpt", model, configuration=configuration)
    file = tmp_path / "model.onnx"
    assert main(["convert", str(tmp_path / "model.ckpt"), "--output", str(file)]) == 0

    for batch, frames in ((1, 1), (1, 2), (3, 40)):
        assert relative_error(file, model, batch=batch, frames=frames) < 1e-4
    check_metadata(file, model, names)
    mixture = noise(model.audio_channels, 7777) / 10
    expected = separate(model, mixture, chunk_size=2000)
    received = separated_without_torch(file, mixture)
    assert received.keys() == set(names)
    for name, stem in zip(names, expected, strict=True):
        assert float((received[name] - stem).abs().max() / expected.abs().max()) < 1e-4


def check_metadata(file: Path, model: BandSplitRotator, names: list[str]) -> None:
    """Check that the file says what separation needs, and that it says nothing of this machine."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    settings = json.loads(session.get_modelmeta().custom_metadata_map["hunterFormsBS"])
    assert settings.pop("stft_window") == torch.hann_window(64).tolist()
    assert settings == {
        "sample_rate": 8000,
        "chunk_size": 2000,
        "stem_names": names,
        "audio_channels": model.audio_channels,
        "stft_n_fft": 64,
        "stft_hop_length": 16,
        "stft_normalized": False,
    }
    assert str(EXAMPLES.parent).encode() not in file.read_bytes()
    # Shapes within the graph make onnxruntime hold much more memory.
    graph = onnx.load(file).graph
    assert not {value.name for value in graph.value_info} & {name for node in graph.node for name in node.output}


def separated_without_torch(file: Path, mixture: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return what the example writes for a song, run where neither torch nor this package can be imported."""
    folder = file.parent
    soundfile.write(folder / "song.wav", mixture.T.numpy(), 8000, subtype="FLOAT")
    program = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['hunterFormsBS'] = None; "
        f"sys.argv = ['separate', {str(file)!r}, 'song.wav', '--output', 'stems', '--threads', '1']; "
        f"runpy.run_path({str(EXAMPLES / 'separate_onnx.py')!r}, run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, cwd=folder)
    stems = {
        path.stem: soundfile.read(path, dtype="float32", always_2d=True) for path in (folder / "stems").glob("*.wav")
    }
    assert {sample_rate for _, sample_rate in stems.values()} == {8000}
    return {name: torch.from_numpy(samples.T) for name, (samples, _) in stems.items()}


@pytest.mark.parametrize(("length", "num_overlap"), [(1, 2), (100, 2), (101, 2), (1000, 1), (999, 2), (1234, 3)])
def test_numpy_separation_returns_what_an_identity_model_got(
    runtime: ModuleType, length: int, num_overlap: int
) -> None:
    transform = runtime.SpectralTransform(
        stft_n_fft=32, stft_hop_length=8, stft_normalized=False, stft_window=torch.hann_window(32).tolist()
    )
    mixture = noise(2, length).numpy()
    stems = runtime.separate(
        lambda spectrum: spectrum[:, None], transform, mixture, chunk_size=100, num_overlap=num_overlap
    )
    np.testing.assert_allclose(stems, mixture[None], atol=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("win_length", "length"), [(64, 1000), (48, 1003), (64, 20)])
def test_numpy_transform_is_that_of_the_model(
    runtime: ModuleType, normalized: bool, win_length: int, length: int
) -> None:
    expected = SpectralTransform(
        ParametersSTFT(
            stft_n_fft=64,
            stft_hop_length=16,
            stft_win_length=win_length,
            stft_normalized=normalized,
            stft_window_fn=torch.hamming_window,
        )
    )
    window = torch.hamming_window(win_length).tolist()
    transform = runtime.SpectralTransform(
        stft_n_fft=64, stft_hop_length=16, stft_normalized=normalized, stft_window=window
    )
    audio = noise(2, length)
    spectrum = transform.forward(audio.numpy())
    torch.testing.assert_close(torch.from_numpy(spectrum), expected.forward(audio), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.from_numpy(transform.inverse(spectrum, length)), audio, rtol=0, atol=1e-5)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT"])
@pytest.mark.parametrize("container", ["WAV", "WAVEX"])
@pytest.mark.parametrize("channels", [1, 2])
def test_wav_reader_reads_what_libsndfile_writes(
    runtime: ModuleType, tmp_path: Path, subtype: str, container: str, channels: int
) -> None:
    soundfile.write(tmp_path / "song.wav", noise(channels, 333).T.numpy() / 5, 44100, subtype=subtype, format=container)
    samples, sample_rate = runtime.read_wav(tmp_path / "song.wav")
    expected, _ = soundfile.read(tmp_path / "song.wav", dtype="float32", always_2d=True)
    assert sample_rate == 44100
    np.testing.assert_array_equal(samples, expected.T)


def test_libsndfile_reads_what_the_wav_writer_writes(runtime: ModuleType, tmp_path: Path) -> None:
    audio = noise(2, 333).numpy() * 3
    runtime.write_wav(tmp_path / "stem.wav", audio, 48000)
    received, sample_rate = soundfile.read(tmp_path / "stem.wav", dtype="float32")
    assert sample_rate == 48000
    np.testing.assert_array_equal(received.T, audio)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("text", b"hello", "not a WAV file"), ("head", b"RIFF\x04\0\0\0WAVE", "holds no audio")],
)
def test_wav_reader_refuses_other_files(
    runtime: ModuleType, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        runtime.read_wav(tmp_path / name)
