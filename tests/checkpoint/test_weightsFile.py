"""Files of weights: wrapped, prefixed, sharded, damaged and hostile ones."""

from __future__ import annotations

import errno
import json
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from hunterFormsBS.checkpoint import CheckpointError, from_checkpoint, read_state_dict

WEIGHTS = {
    "band_split.to_features.0.1.weight": torch.arange(6.0).reshape(2, 3),
    "final_norm.gamma": torch.ones(2, dtype=torch.float16),
}


class TouchesAFile:
    """Unpickling one of these makes a file, unless unpickling is refused."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.marker), "w")


def saved(folder: Path, content: object, name: str = "model.ckpt", **keywords: Any) -> Path:
    path = folder / name
    torch.save(content, path, **keywords)
    return path


def assert_weights(state_dict: dict[str, Tensor]) -> None:
    assert list(state_dict) == list(WEIGHTS)
    for key, tensor in WEIGHTS.items():
        assert state_dict[key].dtype == tensor.dtype
        assert torch.equal(state_dict[key], tensor)


@pytest.mark.parametrize(
    "content",
    [
        WEIGHTS,
        OrderedDict(WEIGHTS),
        {"state_dict": WEIGHTS},
        {"state": WEIGHTS, "epoch": 3},
        {"model_state_dict": WEIGHTS, "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(2)}}, "lr": 0.1}},
        {"model": {"state_dict": WEIGHTS}, "metrics": [1.0, None, "best"]},
        {"state": {0: {"exp_avg": torch.ones(2)}}, "model": WEIGHTS},
        {"ema": WEIGHTS, "step": torch.tensor(4)},
        {"params_ema": WEIGHTS},
        {"checkpoint": {"model_state_dict": WEIGHTS}, "epoch": 3},
        {"module": {f"module.{key}": tensor for key, tensor in WEIGHTS.items()}, "ds_version": "0.18", "lr": None},
        {**WEIGHTS, "epoch": 3, "optimizer": {"a": torch.ones(1)}},
        {"best": None, "net": {f"module.{key}": tensor for key, tensor in WEIGHTS.items()}},
    ],
)
@pytest.mark.parametrize("keywords", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_weights_are_found_in_what_trainers_put_around_them(
    tmp_path: Path, content: object, keywords: dict[str, Any]
) -> None:
    assert_weights(read_state_dict(saved(tmp_path, content, **keywords)))


@pytest.mark.parametrize(
    "prefix",
    ["module.", "model.", "_orig_mod.", "module._orig_mod.", "model.module.", "_orig_mod.module.", "generator."],
)
def test_prefixes_of_wrapped_models_are_stripped(tmp_path: Path, prefix: str) -> None:
    assert_weights(read_state_dict(saved(tmp_path, {f"{prefix}{key}": value for key, value in WEIGHTS.items()})))


def test_the_prefix_of_a_compiled_part_is_stripped_within_keys(tmp_path: Path) -> None:
    compiled = {key.replace("to_features.", "_orig_mod.to_features."): value for key, value in WEIGHTS.items()}
    assert_weights(read_state_dict(saved(tmp_path, compiled)))


def test_prefixes_are_stripped_only_where_every_key_has_them(tmp_path: Path) -> None:
    assert list(read_state_dict(saved(tmp_path, {"model.a": torch.ones(1), "module.b": torch.ones(1)}))) == [
        "model.a",
        "module.b",
    ]


def test_the_models_own_weights_come_before_moving_averages_with_a_warning(tmp_path: Path) -> None:
    averaged = {key: tensor + 1 for key, tensor in WEIGHTS.items()}
    with pytest.warns(UserWarning, match=r"several sets of weights, state_dict, ema: state_dict is read"):
        assert_weights(read_state_dict(saved(tmp_path, {"ema": averaged, "state_dict": WEIGHTS})))
    both = {f"online.{key}": tensor for key, tensor in WEIGHTS.items()}
    both |= {f"average.{key}": tensor for key, tensor in averaged.items()}
    with pytest.warns(UserWarning, match=r"several models, under 'online.', 'average.': 'online.' is read"):
        assert_weights(read_state_dict(saved(tmp_path, both)))


def test_safetensors_and_their_shards_are_read(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    assert_weights(read_state_dict(tmp_path / "model.safetensors"))
    shards = {key: f"model-{number}.safetensors" for number, key in enumerate(WEIGHTS)}
    for key, name in shards.items():
        save_file({key: WEIGHTS[key]}, tmp_path / name)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": shards}), encoding="utf-8")
    assert_weights(read_state_dict(index))


def test_the_format_is_told_by_the_content_not_by_the_name(tmp_path: Path) -> None:
    for name in ("a.pt", "a.pth", "a.th", "a.bin", "a.safetensors", "a"):
        assert_weights(read_state_dict(saved(tmp_path, WEIGHTS, name)))
    save_file(WEIGHTS, tmp_path / "b.ckpt")
    assert_weights(read_state_dict(tmp_path / "b.ckpt"))


@pytest.mark.parametrize("keywords", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_code_beside_the_weights_is_left_out_and_does_not_run(tmp_path: Path, keywords: dict[str, Any]) -> None:
    marker = tmp_path / "ran"
    path = saved(tmp_path, {"state_dict": WEIGHTS, "extra": TouchesAFile(marker)}, **keywords)
    assert_weights(read_state_dict(path))
    assert not marker.exists()
    torch.load(path, weights_only=False)["extra"].close()
    assert marker.exists(), "the file is harmless, so that leaving it out proves nothing"


@pytest.mark.parametrize("keywords", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
@pytest.mark.parametrize("read", [read_state_dict, from_checkpoint])
def test_code_in_place_of_weights_is_refused_by_key_and_name_and_does_not_run(
    tmp_path: Path, keywords: dict[str, Any], read: Any
) -> None:
    marker = tmp_path / "ran"
    path = saved(tmp_path, {"state_dict": {**WEIGHTS, "layers.0.weight": TouchesAFile(marker)}}, **keywords)
    with pytest.raises(CheckpointError, match=r"model\.ckpt is refused.*'layers\.0\.weight' is \S*open"):
        read(path)
    assert not marker.exists()


def test_a_whole_pickled_model_is_refused_with_its_class_and_the_remedy(tmp_path: Path) -> None:
    path = saved(tmp_path, torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"within torch\.nn\.modules\.linear\.Linear.*save the state dict"):
        read_state_dict(path)


def test_a_tar_archive_is_refused_because_old_versions_of_torch_run_what_it_holds(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    member = tmp_path / "pickle"
    member.write_bytes(pickle.dumps(TouchesAFile(marker)))
    for first in ("pickle", "\u0080"):
        path = tmp_path / "model.ckpt"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as archive:
            archive.add(member, first)
        with pytest.raises(CheckpointError, match="not a weights file"):
            read_state_dict(path)
    assert not marker.exists()


@pytest.mark.parametrize("keywords", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_truncated_file_is_said_to_be_damaged_wherever_it_ends(tmp_path: Path, keywords: dict[str, Any]) -> None:
    # Large enough for the search for the end of the archive to begin in the middle of the file.
    whole = saved(tmp_path, {**WEIGHTS, "more": torch.zeros(3000)}, **keywords).read_bytes()
    path = tmp_path / "half.ckpt"
    for length in (1, 5, 20, 100, *range(101, len(whole), 101), len(whole) - 4):
        path.write_bytes(whole[:length])
        # Cut off within the name of a function, it asks for a function that nobody knows.
        with pytest.raises(CheckpointError, match=r"half\.ckpt.*(damaged or incomplete|not a weights file|_reb,)"):
            read_state_dict(path)


def test_truncated_safetensors_are_said_to_be_damaged(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "whole")
    path = tmp_path / "half.safetensors"
    for length in (20, 100, (tmp_path / "whole").stat().st_size - 1):
        path.write_bytes((tmp_path / "whole").read_bytes()[:length])
        with pytest.raises(CheckpointError, match=r"half\.safetensors.*damaged or incomplete"):
            read_state_dict(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"model:\n  dim: 8\n", "not a weights file.*pass it as configuration"),
        (b'{"weight_map": 3}', "not a weights file"),
        (b"\x80\x02" + bytes(range(200)), "damaged or incomplete|refused"),
        (b"PK\x03\x04" + bytes(200), "damaged or incomplete"),
    ],
)
def test_files_of_another_kind_get_one_clear_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_state_dict(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("index", ['{"weight_map": 3}', "{}", "[]", '{"weight_map"'])
def test_a_broken_index_of_shards_gets_one_clear_error(tmp_path: Path, index: str) -> None:
    path = tmp_path / "model.safetensors.index.json"
    path.write_text(index, encoding="utf-8")
    with pytest.raises(CheckpointError, match="not an index of weights with a weight_map"):
        read_state_dict(path)


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, [torch.ones(1)], torch.ones(1)])
def test_a_file_without_weights_gets_one_clear_error(tmp_path: Path, content: object) -> None:
    with pytest.raises(CheckpointError, match=r"model\.ckpt holds no (weights|state dict)"):
        read_state_dict(saved(tmp_path, content))


def test_a_dictionary_that_holds_itself_is_no_trap(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_state_dict(saved(tmp_path, endless))


def test_a_disk_that_fails_is_not_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_arguments: object, **_keywords: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = saved(tmp_path, WEIGHTS)
    monkeypatch.setattr(zipfile, "ZipFile", failing)
    with pytest.raises(OSError, match="Input/output error"):
        read_state_dict(path)


def test_files_that_cannot_be_opened_are_os_errors_that_name_them(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.ckpt"):
        read_state_dict(tmp_path / "absent.ckpt")
    with pytest.raises(OSError, match=tmp_path.name):
        read_state_dict(tmp_path)
