"""The notebooks run from their first cell to their last, on a small model and without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from hunterFormsBS import BandSplitRotator, save_checkpoint

nbformat = pytest.importorskip("nbformat", reason='notebooks need nbclient: pip install -e ".[testing]"')
nbclient = pytest.importorskip("nbclient", reason='notebooks need nbclient: pip install -e ".[testing]"')

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "docs").glob("*.ipynb"))
INSTEAD = {
    "separate": {"parameters": 'choice = ["--checkpoint", "model.ckpt"]\nsong = "song.wav"'},
    "train": {"parameters": "steps = 2"},
}
"""For each notebook the cells that a test has in place of those with a tag. Others with a tag need a network."""


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_valid_and_committed_without_results(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count] == []
    assert "hunterFormsBS[" in code[0].source
    assert code[0].metadata.tags == ["install"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs_and_stems_are_heard_and_seen(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = BandSplitRotator(8, depth=1, heads=1, stereo=True, num_stems=2, freqs_per_bands=(25, 1000))
    sections = {"audio": {"sample_rate": 44100, "chunk_size": 44100}, "training": {"instruments": ["vocals", "other"]}}
    save_checkpoint(tmp_path / "model.ckpt", model, configuration=sections)
    soundfile.write(tmp_path / "song.wav", torch.randn(60000, 2).numpy() / 10, 44100)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(path)
    for cell in notebook.cells:
        for tag in cell.metadata.get("tags", ()):
            cell.source = INSTEAD[path.stem].get(tag, "")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()

    shown = [output for cell in notebook.cells for output in cell.get("outputs", ()) if "data" in output]
    stems = {file.stem for file in (tmp_path / "separated").rglob("*.wav")}
    assert stems == ({"vocals", "other"} if path.stem == "separate" else {"vocals", "drums", "bass", "other"})
    assert len([output for output in shown if "<audio" in output.data.get("text/html", "")]) == len(stems)
    if path.stem == "separate":
        assert any("image/png" in output.data for output in shown)
        assert (tmp_path / "stems.zip").stat().st_size > 60000 * 2 * 4
