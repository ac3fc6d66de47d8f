"""Models as ONNX files, for other runtimes than PyTorch.

ONNX lacks complex numbers and an inverse short-time Fourier transform, so the file contains what is between the two
transforms: from `spectrum`, `(b, s, f, t, c)`, to `spectra`, `(b, n, s, f, t, c)`, for any batch size and number of
frames. The settings of the transforms are in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from hunterFormsBS.bandSplitRotator import BandSplitRotator
from hunterFormsBS.installation import how_to_install
from hunterFormsBS.parametersSeparation import ParametersSeparation

__all__ = ["METADATA", "MaskSpectrum", "export_onnx", "export_program", "random_spectrum", "relative_error"]

METADATA = "hunterFormsBS"
"""The key of the file's metadata; the value is JSON."""


class MaskSpectrum(nn.Module):
    """A module whose forward pass is `model.mask_spectrum`, for exporters."""

    def __init__(self, model: BandSplitRotator) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, spectrum: Tensor) -> Tensor:
        """Return the spectra of all stems, `(b, n, s, f, t, c)`."""
        return self.model.mask_spectrum(spectrum)


def random_spectrum(model: BandSplitRotator, *, batch: int, frames: int) -> Tensor:
    """Return a random input `(b, s, f, t, c)` for the model."""
    parameter = next(model.parameters())
    num_freqs = model.mask_filter_bank.shape[1]
    size = (batch, model.audio_channels, num_freqs, frames, 2)
    return torch.randn(size, device=parameter.device)


def export_program(model: BandSplitRotator) -> torch.export.ExportedProgram:
    """Trace mask estimation with `torch.export`, with dynamic batch size and number of frames."""
    shapes = {"spectrum": {0: torch.export.Dim("batch"), 3: torch.export.Dim("frames")}}
    # An axis of size one would become a constant.
    example = random_spectrum(model, batch=2, frames=3)
    with torch.no_grad():
        return torch.export.export(MaskSpectrum(model), (example,), dynamic_shapes=shapes)


def export_onnx(
    model: BandSplitRotator,
    pathFilename: Path,
    *,
    sample_rate: int = 44100,
    chunk_size: int = ParametersSeparation.chunk_size,
    stem_names: Sequence[str] = (),
) -> None:
    """Write mask estimation, and the settings for a separation, to an ONNX file.

    It appears once it is complete.

    Parameters
    ----------
    model : BandSplitRotator
        In eval mode.
    pathFilename : Path
        Weights of 2 GB and more go to a second file in the same folder.
    sample_rate : int
        Samples per second that the model was trained on.
    chunk_size : int
        Samples to separate at a time.
    stem_names : Sequence[str], default ()
        One for each stem; empty: stem_1, stem_2 and so on.

    Raises
    ------
    ImportError
        If the packages of the extra `export` are not installed.
    """
    _imported("onnxscript")
    exporter: Any = torch.onnx  # its types are partly unknown
    program: Any = exporter.export(
        export_program(model),
        input_names=["spectrum"],
        output_names=["spectra"],
        dynamo=True,
        # The first opset with an attention operator; without it graphs are a tenth larger.
        opset_version=23,
        verbose=False,
    )
    if program is None:
        raise RuntimeError("This PyTorch exports nothing with dynamo=True: install a newer one.")
    # Python call stacks of operators, with local paths, would be half of a small file. Shapes between operators cost
    # more: with them onnxruntime plans memory ahead, and holds three times as much.
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()
        for value in node.outputs:
            value.metadata_props.clear()
            if not value.is_graph_output():
                value.shape = value.type = None
    stft = {name: value for name, value in model.configuration.items() if name.startswith("stft_")}
    window = stft["stft_window_fn"](stft["stft_win_length"])
    settings: Mapping[str, Any] = {
        "sample_rate": sample_rate,
        "chunk_size": chunk_size,
        "stem_names": list(stem_names) or [f"stem_{number}" for number in range(1, model.num_stems + 1)],
        "audio_channels": model.audio_channels,
        **{name: stft[name] for name in ("stft_n_fft", "stft_hop_length", "stft_normalized")},
        "stft_window": window.tolist(),
    }
    program.model.metadata_props[METADATA] = json.dumps(settings)
    with TemporaryDirectory(dir=pathFilename.parent, prefix=".onnx-") as folder:
        program.save(str(Path(folder) / pathFilename.name))
        for written in Path(folder).iterdir():
            written.replace(pathFilename.with_name(written.name))


def relative_error(pathFilename: Path, model: BandSplitRotator, *, batch: int = 1, frames: int = 50) -> float:
    """Return the largest difference between onnxruntime and the model, relative to the largest value."""
    spectrum = random_spectrum(model, batch=batch, frames=frames)
    onnxruntime: Any = _imported("onnxruntime")
    session = onnxruntime.InferenceSession(pathFilename, providers=["CPUExecutionProvider"])
    (received,) = session.run(["spectra"], {"spectrum": spectrum.cpu().numpy()})
    with torch.no_grad():
        expected = model.mask_spectrum(spectrum).cpu()
    return float((torch.as_tensor(received) - expected).abs().max() / expected.abs().max())


def _imported(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f"exporting needs more packages: {how_to_install('export')} ({error})") from error
