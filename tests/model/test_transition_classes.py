"""BSRoformer and MelBandRoformer: defaults of their own and nothing else."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.bandSplit import mask_filter_bank_bs_roformer_default, mask_filter_bank_mel_band_default
from hunterFormsBS.bs_roformer import BSRoformer
from hunterFormsBS.mel_band_roformer import MelBandRoformer

SMALL: dict[str, Any] = {
    "depth": 1,
    "heads": 1,
    "dim_head": 2,
    "time_transformer_depth": 1,
    "freq_transformer_depth": 1,
    "ff_mult": 1,
    "mlp_expansion_factor": 1,
}

# The constructor surface: every name and default, by hand.
DEFAULTS: dict[str, Any] = {
    "attn_dropout": 0.0,
    "conv_expansion_factor": 2,
    "conv_kernel_size": 31,
    "dim_freqs_in": 1025,
    "dim_head": 64,
    "ff_dropout": 0.0,
    "ff_mult": None,
    "final_norm": None,
    "flash_attn": True,
    "freq_conformer_depth": 0,
    "freq_range": None,
    "freq_transformer_depth": 2,
    "freqs_per_bands": (2,) * 24 + (4,) * 12 + (12,) * 8 + (24,) * 8 + (48,) * 8 + (128, 129),
    "heads": 8,
    "learned_value_residual_mix": None,
    "linear_transformer_depth": 0,
    "mask_estimator_depth": None,
    "mask_filter_bank": None,
    "mask_fno_depth": 3,
    "mask_fno_modes": 0,
    "mask_transformer_depth": 0,
    "mask_transformer_dim_head": 64,
    "mask_transformer_heads": 8,
    "match_input_audio_length": True,
    "mc_hyper_conn_sinkhorn_iters": None,
    "mlp_expansion_factor": 4,
    "multi_stft_hop_size": 147,
    "multi_stft_normalized": False,
    "multi_stft_resolution_loss_weight": 1.0,
    "multi_stft_resolutions_window_sizes": (4096, 2048, 1024, 512, 256),
    "multi_stft_window_fn": torch.hann_window,
    "norm_output": None,
    "num_bands": None,
    "num_residual_fracs": None,
    "num_residual_streams": 1,
    "n_wsa_sinks": 0,
    "num_stems": 1,
    "residual_in_first_group_only": False,
    "sage_attention": False,
    "sample_rate": None,
    "scale": None,
    "segm_backbone_channels": (64, 256, 384, 512, 768),
    "segm_base_depth": 2,
    "segm_hyperace_k": None,
    "segm_hyperace_l": None,
    "segm_num_heads": 8,
    "segm_num_hyperedges": None,
    "segm_version": 2,
    "siamese": False,
    "skip_connection": False,
    "stereo": False,
    "stft_hop_length": 512,
    "stft_n_fft": 2048,
    "stft_normalized": False,
    "stft_win_length": 2048,
    "stft_window_fn": torch.hann_window,
    "time_conformer_depth": 0,
    "time_transformer_depth": 2,
    "use_hyperACE": False,
    "use_pope": False,
    "use_rotary_pos": True,
    "use_shared_bias": False,
    "use_torch_checkpoint": False,
    "use_value_residual_learning": False,
    "wsa_window_len": None,
    "zero_dc": None,
}
MEL_DEFAULTS = DEFAULTS | {"attn_dropout": 0.1, "ff_dropout": 0.1, "num_bands": 60, "sample_rate": 44100}


@pytest.mark.parametrize(
    ("kind", "defaults"), [(BandSplitRotator, DEFAULTS), (BSRoformer, DEFAULTS), (MelBandRoformer, MEL_DEFAULTS)]
)
def test_defaults_are_as_documented(kind: type[BandSplitRotator], defaults: dict[str, Any]) -> None:
    with torch.device("meta"):
        configuration = kind(2, depth=1).configuration
    assert configuration == {"dim": 2, "depth": 1} | defaults


def test_arguments_but_dim_are_keyword_only_and_named_as_documented() -> None:
    parameters = inspect.signature(BandSplitRotator).parameters
    assert {name: p.default for name, p in parameters.items() if name not in ("dim", "depth")} == DEFAULTS
    assert [name for name, p in parameters.items() if p.kind is not p.KEYWORD_ONLY] == ["dim"]
    assert [name for name, p in parameters.items() if p.default is p.empty] == ["dim", "depth"]


@pytest.mark.parametrize("kind", [BSRoformer, MelBandRoformer])
def test_transition_classes_have_no_forward_nor_stage_of_their_own(kind: type[BandSplitRotator]) -> None:
    assert issubclass(kind, BandSplitRotator)
    own = {name for name in vars(kind) if name not in ("__doc__", "__module__", "__static_attributes__")}
    assert own <= {"__init__", "__firstlineno__", "from_msst"}


@pytest.mark.parametrize("kind", [BSRoformer, MelBandRoformer])
def test_every_argument_is_in_the_signature_in_order_and_with_its_default(kind: type[BandSplitRotator]) -> None:
    shown = inspect.signature(kind).parameters
    assert list(shown) == list(inspect.signature(BandSplitRotator).parameters)
    defaults = MEL_DEFAULTS if kind is MelBandRoformer else DEFAULTS
    assert {name: p.default for name, p in shown.items() if name not in ("dim", "depth")} == defaults
    # What completion in IPython reads.
    assert list(inspect.signature(kind.__init__).parameters) == ["self", *shown]


@pytest.mark.parametrize("kind", [BandSplitRotator, BSRoformer, MelBandRoformer])
def test_signatures_print_names_in_place_of_long_values(kind: type[BandSplitRotator]) -> None:
    printed = str(inspect.signature(kind))
    assert "freqs_per_bands: collections.abc.Sequence[int] = DEFAULT_FREQS_PER_BANDS, heads: int = 8," in printed
    assert "stft_window_fn: collections.abc.Callable[..., torch.Tensor] = torch.hann_window, " in printed
    assert "zero_dc: bool | None = None" in printed
    assert " at 0x" not in printed


@pytest.mark.parametrize("kind", [BandSplitRotator, BSRoformer, MelBandRoformer])
@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ("flash_attention", "the nearest is 'flash_attn'"),
        ("Stereo", "the nearest is 'stereo'"),
        ("stft_hop_lenght", "the nearest is 'stft_hop_length'"),
        ("add_value_residual", "it is use_value_residual_learning=True here"),
        ("linear_flash_attn", "flash_attn serves both"),
        # Of version 0.3 of this package.
        ("activation", "tanh"),
        ("melscale_fbanks_mel_scale", "Slaney"),
        ("melscale_fbanks_norm", "no norm changes that"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(kind: Any, wrong: str, remedy: str) -> None:
    with pytest.raises(TypeError, match=f"^{kind.__name__} has no argument '{wrong}': .*{remedy}"):
        kind(4, depth=1, **{wrong: True})


def test_a_warning_of_a_constructor_points_to_the_caller() -> None:
    for kind in (BandSplitRotator, BSRoformer):
        with pytest.warns(UserWarning, match="dim_freqs_in=7") as caught:
            kind(4, **SMALL, dim_freqs_in=7)
        assert caught[0].filename == __file__


# Music-Source-Separation-Training's own defaults and counting, by hand.


def test_bs_roformer_from_msst_counts_mask_estimators_as_there() -> None:
    model = BSRoformer.from_msst(dim=4, **SMALL, mask_estimator_depth=2)
    assert type(model) is BSRoformer
    assert model.configuration["mask_estimator_depth"] == 1
    assert model.zero_dc
    assert model.training


def test_mel_band_roformer_from_msst_has_the_defaults_of_there() -> None:
    model = MelBandRoformer.from_msst(dim=4, **SMALL, mask_estimator_depth=2)
    assert type(model) is MelBandRoformer
    assert model.configuration["mask_estimator_depth"] == 2
    assert model.zero_dc
    assert not MelBandRoformer.from_msst(dim=4, **SMALL, zero_dc=False).zero_dc


@pytest.mark.parametrize(
    ("kind", "section", "message"),
    [
        (BSRoformer, {"num_bands": 60}, "Use MelBandRoformer.from_msst"),
        (MelBandRoformer, {"freqs_per_bands": (25, 1000)}, "use BSRoformer.from_msst"),
        (BSRoformer, {"flash_attention": True}, "'flash_attn'"),
    ],
)
def test_from_msst_refuses_the_section_of_the_other_class(kind: Any, section: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind.from_msst(dim=4, **SMALL, **section)


# Former names


@pytest.mark.parametrize(
    ("former", "names"),
    [
        ("bands", ["BandSplit", "DEFAULT_FREQS_PER_BANDS"]),
        ("loss", ["lossComputation"]),
        ("mask", ["MLP", "MaskEstimator"]),
        ("transform", ["FeedForward", "Transformer"]),
    ],
)
def test_modules_of_version_0_3_lead_to_where_their_names_are(
    former: str, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"hunterFormsBS.{former}", raising=False)
    with pytest.warns(DeprecationWarning, match="from hunterFormsBS") as caught:
        module = importlib.import_module(f"hunterFormsBS.{former}")
    home = importlib.import_module(str(caught[0].message).split()[-1].rstrip("."))
    for name in names:
        assert getattr(module, name) is getattr(home, name)


def test_the_module_of_version_0_3_that_is_gone_says_so() -> None:
    with pytest.raises(ImportError, match=r"BandSplitRotator\(use_hyperACE=True\) builds the heads"):
        importlib.import_module("hunterFormsBS.hyperACE")


@pytest.mark.parametrize("kind", [BSRoformer, MelBandRoformer])
def test_transition_classes_refuse_unknown_and_positional_arguments(kind: Any) -> None:
    with pytest.raises(TypeError, match="dimension"):
        kind(4, depth=1, dimension=3)
    with pytest.raises(TypeError, match="positional"):
        kind(4, 1)


def test_bs_roformer_is_the_model_with_its_defaults() -> None:
    model, other = BSRoformer(4, **SMALL), BandSplitRotator(4, **SMALL)
    assert torch.equal(model.mask_filter_bank, mask_filter_bank_bs_roformer_default)
    other.load_state_dict(model.state_dict())
    audio = torch.randn(1, 3000)
    assert torch.equal(model(audio), other(audio))


def test_mel_band_roformer_is_the_model_with_mel_bands_and_dropout() -> None:
    model, other = MelBandRoformer(4, **SMALL), BandSplitRotator(4, **SMALL, num_bands=60, sample_rate=44100)
    assert torch.equal(model.mask_filter_bank, mask_filter_bank_mel_band_default)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.1}
    other.load_state_dict(model.state_dict())
    audio = torch.randn(1, 3000)
    assert torch.equal(model.eval()(audio), other.eval()(audio))


@pytest.mark.parametrize(
    ("kind", "final_norm", "norm_output", "zero_dc"),
    [(BSRoformer, True, False, True), (MelBandRoformer, False, True, False)],
)
def test_norms_and_zero_dc_follow_the_layout(
    kind: type[BandSplitRotator], final_norm: bool, norm_output: bool, zero_dc: bool
) -> None:
    assert resolved(kind(4, **SMALL)) == (final_norm, norm_output, zero_dc)


@pytest.mark.parametrize("kind", [BSRoformer, MelBandRoformer])
@pytest.mark.parametrize("value", [True, False])
def test_norms_and_zero_dc_obey_when_given(kind: type[BandSplitRotator], value: bool) -> None:
    assert resolved(kind(4, **SMALL, final_norm=value, norm_output=value, zero_dc=value)) == (value, value, value)


def test_side_by_side_layouts_given_as_masks_count_as_side_by_side(tiny_model: Callable[..., Any]) -> None:
    mask = torch.zeros(2, 33, dtype=torch.bool)
    mask[0, 20:], mask[1, :20] = True, True
    assert resolved(tiny_model(mask_filter_bank=mask)) == (True, False, True)
    mask[1, 20] = True
    assert resolved(tiny_model(mask_filter_bank=mask)) == (False, True, False)


def resolved(model: BandSplitRotator) -> tuple[bool, bool, bool]:
    """Return whether there are a final norm and norms of transformers, and whether the output has a lowest bin."""
    keys = model.state_dict().keys()
    norms = [f"layers.{group}.{axis}.norm.gamma" in keys for group in range(len(model.layers)) for axis in range(2)]
    assert len(set(norms)) == 1
    for estimator in model.mask_estimators:
        for net in estimator.to_freqs:  # type: ignore[union-attr]
            nn.init.ones_(net[0][-1].bias)
    spectrum = torch.ones(1, 1, model.mask_filter_bank.shape[1], 3, 2)
    lowest = model.mask_spectrum(spectrum)[..., 0, :, :]
    return "final_norm.gamma" in keys, norms[0], bool(lowest.eq(0).all())


@pytest.mark.parametrize("kind", [BSRoformer, MelBandRoformer])
def test_keys_have_no_prefix(kind: type[BandSplitRotator]) -> None:
    with torch.device("meta"):
        keys = kind(4, **SMALL).state_dict().keys()
    tops = {"band_split", "layers", "mask_estimators"} | ({"final_norm"} if kind is BSRoformer else set())
    assert {key.split(".")[0] for key in keys} == tops


def test_mel_bands_of_another_setting_are_computed() -> None:
    model = MelBandRoformer(
        4, **SMALL, num_bands=20, sample_rate=22050, stft_n_fft=1024, stft_win_length=1024, dim_freqs_in=513
    )
    assert model.mask_filter_bank.shape == (20, 513)
    assert resolved(model) == (False, True, False)
