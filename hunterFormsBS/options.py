"""The model's options: one row for each argument of the constructor, and the rules that involve several.

A row is the type of an argument and an `Option`. The checks of the constructor, the types of forwarded keywords, the
loader's warnings and the table in the documentation follow from the rows. To add an option, add a row here, or in the
module of the head that takes it, and a line to the signature and the docstring of `BandSplitRotator`; a test says what
is missing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Final, Required

import torch
import torch.nn.functional as F
from torch import Tensor

from hunterFormsBS.blocks.layout import DEFAULT_FREQS_PER_BANDS
from hunterFormsBS.heads import HEADS, OptionsOfHeads
from hunterFormsBS.optionRow import ByLayout, Needs, Option, Row, any_above_one, check_value, rows_of
from hunterFormsBS.printable import printable, short_repr
from hunterFormsBS.theTypes import FlashAttentionConfig, LearnedValueResidualMix, WindowFunction

__all__ = ["OPTIONS", "ParametersBandSplitRotator", "ParametersOfEveryLayout", "check_arguments", "resolved"]

MOST_PARAMETERS = 2**33
"""Parameters of a model, which are 34 GB in float32."""

_FLOAT32 = torch.finfo(torch.float32)
_LEAST_POWER = 1e-11
"""PyTorch's inverse transform refuses smaller sums of squared windows."""

_CONFORMERS = Needs("one of them of at least 1", ("time_conformer_depth", "freq_conformer_depth"), any)
_DEPTH = Needs("a depth of at least 2", ("depth",), any_above_one)
_FUSED = Needs("flash_attn=True", ("flash_attn",), any)
_SINKS = Needs("sinks", ("n_wsa_sinks",), any)
_STREAMS = Needs("one of them above 1", ("num_residual_streams", "num_residual_fracs"), any_above_one)
_VALUES = Needs("use_value_residual_learning=True", ("use_value_residual_learning",), any)

_CONFORMER_EXCLUDES = (
    "num_residual_streams",
    "num_residual_fracs",
    "use_value_residual_learning",
    "residual_in_first_group_only",
)


class ParametersOfEveryLayout(OptionsOfHeads, total=False):
    """Keyword arguments of `BandSplitRotator` that the transition classes pass on."""

    depth: Required[Annotated[int, Option(least=1, most=256)]]
    conv_expansion_factor: Annotated[int, Option(default=2, least=1, most=64, needs=_CONFORMERS)]
    conv_kernel_size: Annotated[int, Option(default=31, least=1, most=65535, needs=_CONFORMERS)]
    dim_freqs_in: Annotated[int, Option(default=1025, least=1)]
    dim_head: Annotated[int, Option(default=64, least=1, most=65536)]
    ff_mult: Annotated[int | None, Option(default=None, least=1, most=1024, unset=4)]
    final_norm: Annotated[bool | None, Option(default=None, unset=ByLayout(overlapping=False, side_by_side=True))]
    flash_attn: Annotated[bool | FlashAttentionConfig, Option(default=True)]
    freq_conformer_depth: Annotated[int, Option(default=0, most=64, excludes=_CONFORMER_EXCLUDES)]
    freq_range: Annotated[tuple[int, int] | None, Option(default=None, is_layout=True)]
    freq_transformer_depth: Annotated[int, Option(default=2, most=64)]
    freqs_per_bands: Annotated[Sequence[int], Option(default=DEFAULT_FREQS_PER_BANDS, is_layout=True)]
    heads: Annotated[int, Option(default=8, least=1, most=4096)]
    learned_value_residual_mix: Annotated[
        LearnedValueResidualMix | None, Option(default=None, needs=_VALUES, is_audible=True)
    ]
    linear_transformer_depth: Annotated[int, Option(default=0, most=64)]
    mask_filter_bank: Annotated[Tensor | None, Option(default=None, is_layout=True)]
    match_input_audio_length: Annotated[bool, Option(default=True)]
    mc_hyper_conn_sinkhorn_iters: Annotated[
        int | None, Option(default=None, least=1, most=1000, needs=_STREAMS, is_audible=True)
    ]
    multi_stft_hop_size: Annotated[int, Option(default=147, least=1)]
    multi_stft_normalized: Annotated[bool, Option(default=False)]
    multi_stft_resolution_loss_weight: Annotated[float, Option(default=1.0, most=_FLOAT32.max)]
    multi_stft_resolutions_window_sizes: Annotated[Sequence[int], Option(default=(4096, 2048, 1024, 512, 256), least=1)]
    multi_stft_window_fn: Annotated[WindowFunction, Option(default=torch.hann_window)]
    n_wsa_sinks: Annotated[int, Option(default=0, most=4096, excludes=("time_conformer_depth",))]
    norm_output: Annotated[
        bool | None, Option(default=None, off=(False,), unset=ByLayout(overlapping=True, side_by_side=False))
    ]
    num_residual_fracs: Annotated[int | None, Option(default=None, least=1, most=256, off=(1,), unset=1)]
    num_residual_streams: Annotated[int, Option(default=1, least=1, most=256)]
    num_stems: Annotated[int, Option(default=1, least=1, most=256)]
    residual_in_first_group_only: Annotated[
        bool, Option(default=False, needs=_DEPTH, is_audible=True, is_of_class=True)  # MSST's experimental classes
    ]
    sage_attention: Annotated[bool, Option(default=False, needs=_FUSED)]
    scale: Annotated[
        float | None,
        Option(default=None, least=_FLOAT32.tiny, most=_FLOAT32.max, is_audible=True, is_of_class=True),
    ]
    siamese: Annotated[
        bool,
        Option(
            default=False,
            excludes=(
                *("linear_transformer_depth", "time_conformer_depth", "freq_conformer_depth"),
                *("num_residual_streams", "num_residual_fracs", "residual_in_first_group_only", "skip_connection"),
                *("use_value_residual_learning", "use_shared_bias", "use_rotary_pos", "norm_output", "n_wsa_sinks"),
            ),
        ),
    ]
    skip_connection: Annotated[bool, Option(default=False, needs=_DEPTH, is_audible=True)]
    stereo: Annotated[bool, Option(default=False)]
    stft_hop_length: Annotated[int, Option(default=512, least=1, is_audible=True)]
    stft_n_fft: Annotated[int, Option(default=2048, least=1)]
    stft_normalized: Annotated[bool, Option(default=False)]
    stft_win_length: Annotated[int, Option(default=2048, least=1, is_audible=True)]
    stft_window_fn: Annotated[WindowFunction, Option(default=torch.hann_window, is_audible=True)]
    time_conformer_depth: Annotated[int, Option(default=0, most=64, excludes=_CONFORMER_EXCLUDES)]
    time_transformer_depth: Annotated[int, Option(default=2, most=64)]
    use_pope: Annotated[bool, Option(default=False)]
    use_rotary_pos: Annotated[
        bool,
        Option(
            default=True,
            excludes=(
                *("use_pope", "time_conformer_depth", "freq_conformer_depth"),
                *("num_residual_streams", "num_residual_fracs"),
            ),
        ),
    ]
    use_shared_bias: Annotated[bool, Option(default=False)]
    use_torch_checkpoint: Annotated[bool, Option(default=False)]
    use_value_residual_learning: Annotated[bool, Option(default=False, needs=_DEPTH)]
    wsa_window_len: Annotated[int | None, Option(default=None, least=1, needs=_SINKS, is_audible=True)]
    zero_dc: Annotated[
        bool | None, Option(default=None, unset=ByLayout(overlapping=False, side_by_side=True), is_audible=True)
    ]


class ParametersBandSplitRotator(ParametersOfEveryLayout, total=False):
    """All arguments of `BandSplitRotator`, by keyword."""

    dim: Required[Annotated[int, Option(least=1, most=65536)]]
    attn_dropout: Annotated[float, Option(default=0.0, below=1)]
    ff_dropout: Annotated[float, Option(default=0.0, below=1)]
    num_bands: Annotated[int | None, Option(default=None, is_layout=True)]
    sample_rate: Annotated[float | None, Option(default=None, is_layout=True)]


OPTIONS: Final[Mapping[str, Row]] = MappingProxyType(rows_of(ParametersBandSplitRotator))
"""All rows by argument name."""


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse constructor arguments of `BandSplitRotator` that are out of range or contradict one another.

    Parameters
    ----------
    arguments : Mapping[str, Any]
        All of them.

    Raises
    ------
    TypeError, ValueError
        With the argument, its value and what to pass instead.
    """
    for name, row in OPTIONS.items():
        check_value(name, arguments[name], row)
    for name, (_, option) in OPTIONS.items():
        if not option.is_off(arguments[name]):
            _check_company(name, option, arguments)
    for check in (_check_axes, _check_numbers, _check_stft, _check_size, *(kind.check for kind in HEADS)):
        check(arguments)


def resolved(arguments: Mapping[str, Any], *, overlapping: bool) -> dict[str, Any]:
    """Return the arguments with each None replaced by what its row says it stands for.

    Parameters
    ----------
    arguments : Mapping[str, Any]
        All of them.
    overlapping : bool
        Whether bands overlap.
    """

    def value(name: str, given: object) -> object:
        unset = OPTIONS[name].option.unset
        if given is not None:
            return given
        if isinstance(unset, ByLayout):
            return unset.overlapping if overlapping else unset.side_by_side
        return unset

    return {name: value(name, given) for name, given in arguments.items()}


def idle_options(arguments: Mapping[str, Any]) -> set[str]:
    """Return the arguments that have no effect with these; arguments that are left out are off."""
    complete = {name: arguments.get(name, row.option.default) for name, row in OPTIONS.items()}
    complete["depth"] = arguments.get("depth", 1)
    needs = {name: row.option.needs for name, row in OPTIONS.items()}
    return {name for name, one in needs.items() if one is not None and not one.are_met_by(complete)}


def _check_company(name: str, option: Option, arguments: Mapping[str, Any]) -> None:
    """Refuse an argument whose needs are not met, or that excludes another."""
    written = f"{name}={short_repr(arguments[name])}"
    if option.needs is not None and not option.needs.are_met_by(arguments):
        beside = ", ".join(f"{other}={short_repr(arguments[other])}" for other in option.needs.names)
        raise ValueError(
            f"{written} with {beside} has no effect: it needs {option.needs.words}. Pass that too, or leave it out."
        )
    for other in option.excludes:
        if not OPTIONS[other].option.is_off(arguments[other]):
            raise ValueError(
                f"{other}={short_repr(arguments[other])} with {written} is not possible: leave one of the two out."
            )


def _check_axes(arguments: Mapping[str, Any]) -> None:
    for axis in ("time", "freq"):
        conformer, transformer = arguments[f"{axis}_conformer_depth"], arguments[f"{axis}_transformer_depth"]
        if bool(conformer) == bool(transformer):
            raise ValueError(
                f"{axis}_conformer_depth={conformer} with {axis}_transformer_depth={transformer}: on each axis there "
                "is either a Conformer or a transformer. Pass 0 for one of them and at least 1 for the other."
            )


def _check_numbers(arguments: Mapping[str, Any]) -> None:
    if arguments["n_wsa_sinks"] and arguments["wsa_window_len"] is None:
        raise ValueError(
            f"n_wsa_sinks={arguments['n_wsa_sinks']} with wsa_window_len=None: sinks are for attention within windows. "
            "Pass both, or neither."
        )
    fracs = arguments["num_residual_fracs"] or 1
    if arguments["dim"] % fracs:
        raise ValueError(
            f"dim={arguments['dim']} is not a multiple of num_residual_fracs={fracs}, which divides the features."
        )
    if arguments["dim_head"] % 2 and not arguments["use_pope"]:
        raise ValueError(
            f"dim_head={arguments['dim_head']} is odd, and rotary embeddings turn pairs of features: make it even, or "
            "pass use_pope=True."
        )
    if arguments["dim"] % 2 and not arguments["use_rotary_pos"]:
        raise ValueError(
            f"dim={arguments['dim']} is odd, and sinusoidal positions have a sine and a cosine each: make it even, "
            "or leave use_rotary_pos=False out."
        )
    if arguments["conv_kernel_size"] % 2 == 0:
        raise ValueError(
            f"conv_kernel_size={arguments['conv_kernel_size']} is even, and a convolution has as many positions "
            "before as after: pass an odd number."
        )


def _check_stft(arguments: Mapping[str, Any]) -> None:
    n_fft, window, hop = (arguments[name] for name in ("stft_n_fft", "stft_win_length", "stft_hop_length"))
    if window > n_fft:
        raise ValueError(f"stft_win_length={window} exceeds stft_n_fft={n_fft}: a window must fit in a frame.")
    if hop > window:
        raise ValueError(
            f"stft_hop_length={hop} exceeds stft_win_length={window}: samples between windows would be lost. A "
            "quarter of the window is usual."
        )
    _check_overlap(arguments["stft_window_fn"], window, hop)
    bins = n_fft // 2 + 1
    if arguments["dim_freqs_in"] != bins:
        warnings.warn(
            f"dim_freqs_in={arguments['dim_freqs_in']} disagrees with stft_n_fft={n_fft}, which has {bins} frequency "
            f"bins. {bins} is used: pass dim_freqs_in={bins}.",
            stacklevel=5,
        )


def _check_overlap(window_function: Callable[..., Tensor], window: int, hop: int) -> None:
    """Refuse a hop that leaves samples which no window covers."""
    with torch.device("cpu"):
        samples = window_function(window).detach().double()
    if samples.device.type != "cpu" or samples.shape != (window,):
        return  # the layer that makes the transform reports the error
    # The sum of squared windows at each sample, which repeats after each hop.
    power = F.pad(samples.square(), (0, -window % hop)).reshape(-1, hop).sum(dim=0)
    if not float(power.min()) > _LEAST_POWER:
        name = getattr(window_function, "__name__", "the window")
        raise ValueError(
            f"stft_hop_length={hop} with stft_win_length={window} leaves samples that {printable(name, 60)} weights "
            f"with 0, which no inverse of the transform can restore: pass at most {max(1, window // 4)}, a quarter of "
            "the window."
        )


def _check_size(arguments: Mapping[str, Any]) -> None:
    """Refuse a model too large for any memory, by a low estimate of its parameters."""
    dim, depth, stems = (arguments[name] for name in ("dim", "depth", "num_stems"))
    kinds = ("linear_transformer", "time_transformer", "freq_transformer", "time_conformer", "freq_conformer")
    layers = depth * sum(arguments[f"{kind}_depth"] for kind in kinds)
    layer = dim * (4 * arguments["heads"] * arguments["dim_head"] + 2 * (arguments["ff_mult"] or 4) * dim)
    hidden = arguments["mask_estimator_depth"]
    head = (1 if hidden is None else hidden) * arguments["mlp_expansion_factor"] * dim * dim
    parameters = layers * layer + stems * head
    if parameters > MOST_PARAMETERS:
        raise ValueError(
            f"dim={dim}, depth={depth}, heads={arguments['heads']}, dim_head={arguments['dim_head']} and "
            f"num_stems={stems} make a model of more than {parameters:.1e} parameters, and at most "
            f"{MOST_PARAMETERS:.1e} are built: pass smaller ones."
        )
