"""Configurations: what is read, what is refused, and how upstream's arguments are translated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hunterFormsBS.checkpoint import CheckpointError, from_configuration, read_configuration

SMALL: dict[str, Any] = {"dim": 8, "depth": 2, "heads": 2, "dim_head": 4, "stft_n_fft": 16, "stft_hop_length": 4}
SMALL_BS: dict[str, Any] = {**SMALL, "freqs_per_bands": [4, 5]}


def written(folder: Path, text: str | bytes, name: str = "model.yaml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_yaml_tuples_are_read_as_tuples(tmp_path: Path) -> None:
    text = (
        "model:\n  freqs_per_bands: !!python/tuple\n  - 2\n  - 7\n  sizes: !!python/tuple [4, [1, 2]]\n  lr: 1.0e-05\n"
    )
    model = read_configuration(written(tmp_path, text))["model"]
    assert model == {"freqs_per_bands": (2, 7), "sizes": (4, [1, 2]), "lr": 1e-5}
    assert isinstance(model["freqs_per_bands"], tuple)


def test_json_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    content = {"model": {"dim": 8, "zero_dc": None}}
    assert read_configuration(written(tmp_path, json.dumps(content), "model.json")) == content
    assert read_configuration(written(tmp_path, b"\xef\xbb\xbfmodel: {dim: 8}")) == {"model": {"dim": 8}}


@pytest.mark.parametrize(
    "tag",
    [
        '!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ["MARKER"]]',
        '!!python/object/apply:os.system ["touch MARKER"]',
        '!!python/object/new:os.system ["touch MARKER"]',
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/object:argparse.Namespace {a: 1}",
        "!!python/complex 1",
    ],
)
def test_any_other_python_tag_is_refused_and_nothing_runs(tmp_path: Path, tag: str) -> None:
    marker = tmp_path / "ran"
    path = written(tmp_path, "model:\n  dim: " + tag.replace("MARKER", str(marker)))
    with pytest.raises(
        CheckpointError, match=r"model\.yaml cannot be read: it asks for Python objects.*could run code"
    ):
        read_configuration(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "model.yaml", "holds nothing"),
        ("- 1\n- 2\n", "model.yaml", "holds list"),
        ("just words", "model.yaml", "holds str"),
        ("model: {dim: 8", "model.yaml", "cannot be read: while parsing"),
        ("model: {dim: 8, dim: 9}", "model.yaml", "the key 'dim' is stated twice"),
        ("model: !!map words", "model.yaml", "cannot be read"),
        ("model: !!python/tuple words", "model.yaml", "a tuple must be written as a list"),
        ("a: &a [*a]\nb: !thing 1", "model.yaml", "cannot be read"),
        (b"\xff\xfe\x00\x80", "model.yaml", "not text in UTF-8"),
        ('{"dim": 8, "dim": 9}', "model.json", "the key 'dim' is stated twice"),
        ('{"dim": 8', "model.json", "cannot be read"),
        ("[" * 100_000, "model.json", "cannot be read"),
        ("[1]", "model.json", "holds list"),
    ],
)
def test_unusable_files_are_named_with_the_reason(tmp_path: Path, text: str | bytes, name: str, message: str) -> None:
    path = written(tmp_path, text, name)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_configuration(path)
    assert str(path) in str(raised.value)


def test_a_missing_file_is_an_os_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        read_configuration(tmp_path / "absent.yaml")


def test_a_configuration_is_a_path_or_a_mapping_with_or_without_its_model_section(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps({"model": SMALL_BS, "training": {"lr": 1}}), "model.json")
    keys = {tuple(from_configuration(form).state_dict()) for form in (path, str(path), {"model": SMALL_BS}, SMALL_BS)}
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("dims", "dim"),
        ("stft_hop_lenght", "stft_hop_length"),
        ("numstems", "num_stems"),
        ("add_residual", "add_value_residual"),
    ],
)
def test_an_unknown_key_is_an_error_with_the_nearest_known_name(wrong: str, right: str) -> None:
    with pytest.raises(CheckpointError, match=f"'{wrong}' is not an argument.*nearest known name is '{right}'"):
        from_configuration({**SMALL_BS, wrong: 3})
    with pytest.raises(CheckpointError, match=f"'{wrong}' is not an argument"):
        from_configuration(SMALL_BS, **{wrong: 3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_bands": 4}, "freqs_per_bands.*num_bands.*keep those of one"),
        ({"add_value_residual": True, "use_value_residual_learning": True}, "keep those of one|keep one of them"),
        ({"mask_estimator_depth": 0}, "mask_estimator_depth=0 cannot be"),
        ({"mask_estimator_depth": True}, "mask_estimator_depth=True cannot be"),
        ({"stft_window_fn": "os.system"}, "'os.system' names no window function.*hann_window"),
        ({"dim": None}, "lacks dim"),
        ({"model": 3}, "must be a mapping, but is 3"),
    ],
)
def test_contradictory_or_impossible_arguments_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_configuration({**SMALL_BS, **changes})


def test_mask_estimator_depth_is_counted_as_the_upstream_counts_it() -> None:
    mel = {**SMALL, "stft_n_fft": 256, "num_bands": 6, "sample_rate": 8000, "mask_estimator_depth": 2}
    bs = {**SMALL_BS, "mask_estimator_depth": 2}
    assert from_configuration(bs).configuration["mask_estimator_depth"] == 1
    assert from_configuration(mel).configuration["mask_estimator_depth"] == 2
    assert from_configuration(bs, upstream="lucidrains").configuration["mask_estimator_depth"] == 1
    assert from_configuration(bs, upstream="hunterFormsBS").configuration["mask_estimator_depth"] == 2
    assert from_configuration(bs, mask_estimator_depth=3).configuration["mask_estimator_depth"] == 3


def test_unstated_arguments_are_as_the_upstream_has_them() -> None:
    mel = {**SMALL, "stft_n_fft": 256, "num_bands": 6, "sample_rate": 8000}
    names = (
        "zero_dc",
        "attn_dropout",
        "ff_dropout",
        "linear_transformer_depth",
        "num_residual_streams",
        "mc_hyper_conn_sinkhorn_iters",
        "use_value_residual_learning",
        "learned_value_residual_mix",
    )

    def values(*arguments: Any, **keywords: Any) -> list[object]:
        configuration = from_configuration(*arguments, **keywords).configuration
        return [configuration[name] for name in names]

    assert values(SMALL_BS) == [True, 0.0, 0.0, 0, 1, None, False, None]
    assert values(mel) == [True, 0.1, 0.1, 0, 1, None, False, None]
    assert values(SMALL_BS, upstream="lucidrains") == [False, 0.0, 0.0, 0, 4, 2, True, True]
    assert values(mel, upstream="lucidrains") == [False, 0.1, 0.1, 1, 4, 2, True, "swapped"]
    assert values(SMALL_BS, upstream="hunterFormsBS") == [None, 0.0, 0.0, 0, 1, None, False, None]


def test_arguments_without_effect_are_accepted_as_upstream_accepts_them() -> None:
    single = {**SMALL_BS, "depth": 1, "num_residual_streams": 1, "skip_connection": True}
    configuration = from_configuration(single, upstream="lucidrains").configuration
    assert configuration["use_value_residual_learning"] is False
    assert configuration["skip_connection"] is False


def test_overrides_replace_the_layout_of_the_configuration() -> None:
    mel = {**SMALL, "stft_n_fft": 256, "num_bands": 6, "sample_rate": 8000}
    assert from_configuration(mel, freqs_per_bands=(100, 29)).mask_filter_bank.shape == (2, 129)
    mask = torch.ones(3, 129, dtype=torch.bool)
    assert torch.equal(from_configuration(mel, mask_filter_bank=mask).mask_filter_bank, mask)
    assert torch.equal(from_configuration(mel, mask_filter_bank=mask.int().tolist()).mask_filter_bank, mask)


def test_one_flag_for_two_kinds_of_attention_is_said_where_upstream_has_two() -> None:
    mel = {**SMALL, "stft_n_fft": 256, "num_bands": 6, "sample_rate": 8000}
    from_configuration({**mel, "linear_flash_attn": True})
    from_configuration({**mel, "linear_flash_attn": False, "flash_attn": False})
    with pytest.warns(UserWarning, match="linear_flash_attn=False differs from flash_attn=True"):
        from_configuration({**mel, "linear_flash_attn": False})


def test_window_functions_are_found_by_name() -> None:
    named = from_configuration({**SMALL_BS, "stft_window_fn": "torch.hamming_window"})
    given = from_configuration(SMALL_BS, stft_window_fn=torch.hamming_window)
    plain = from_configuration(SMALL_BS)
    given.load_state_dict(named.state_dict())
    plain.load_state_dict(named.state_dict())
    audio = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(named(audio), given(audio))
        assert not torch.allclose(named(audio), plain(audio), rtol=1e-3)


@pytest.mark.parametrize("upstream", ["MSST", "", "zfturbo", None])
def test_an_unknown_upstream_is_refused(upstream: Any) -> None:
    with pytest.raises(
        ValueError, match="upstream must be one of 'msst', 'msst_experimental', 'lucidrains', 'hunterFormsBS', but is"
    ):
        from_configuration(SMALL_BS, upstream=upstream)


@pytest.mark.parametrize("where", [{"model_type": "bs_roformer_experimental"}, {}])
def test_the_type_of_model_in_a_configuration_decides_the_class(where: dict[str, str]) -> None:
    section = {"dim": 8, "depth": 2, "heads": 2, "dim_head": 4, "mask_estimator_depth": 2}
    stated = {"model": section, "training": where, **({} if where else {"model_type": "bs_roformer_experimental"})}
    assert from_configuration(stated).configuration["residual_in_first_group_only"]
    assert not from_configuration({"model": section}).configuration["residual_in_first_group_only"]
