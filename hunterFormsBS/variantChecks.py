"""What a model refuses of the options for other heads and layers, with the value received and the remedy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from hunterFormsBS.printable import short_repr

MOST_CHANNELS = 65536
"""Of a stage of the HyperACE branch."""

OF_HYPERACE = {
    "segm_backbone_channels": (64, 256, 384, 512, 768),
    "segm_base_depth": 2,
    "segm_hyperace_k": None,
    "segm_hyperace_l": None,
    "segm_num_heads": 8,
    "segm_num_hyperedges": None,
    "segm_version": 2,
}
"""Arguments that say how the HyperACE branch is, and their defaults."""

OF_CONFORMERS = {"conv_expansion_factor": 2, "conv_kernel_size": 31}
OF_FNO = {"mask_fno_depth": 3}
OF_MLPS = {"mask_estimator_depth": None, "mlp_expansion_factor": 4}
OF_MASK_TRANSFORMERS = {"mask_transformer_dim_head": 64, "mask_transformer_heads": 8}


def check_variants(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that are out of range, contradict one another, or belong to what is not there.

    Raises
    ------
    TypeError, ValueError
        With the argument, its value and what to pass instead.
    """
    _check_axes(arguments)
    _check_heads(arguments)
    if arguments["siamese"]:
        _refuse_beside(
            arguments,
            "siamese=True, whose two streams have none of that",
            linear_transformer_depth=0,
            time_conformer_depth=0,
            freq_conformer_depth=0,
            num_residual_streams=1,
            num_residual_fracs=1,
            use_value_residual_learning=False,
            residual_in_first_group_only=False,
            skip_connection=False,
            use_shared_bias=False,
            use_rotary_pos=True,
            norm_output=False,
            n_wsa_sinks=0,
        )
    if bool(arguments["n_wsa_sinks"]) != (arguments["wsa_window_len"] is not None):
        raise ValueError(
            f"n_wsa_sinks={arguments['n_wsa_sinks']} with wsa_window_len={arguments['wsa_window_len']}: windows and "
            "sinks go together. Pass both, or neither."
        )
    if arguments["n_wsa_sinks"]:
        _refuse_beside(arguments, "windowed attention, which transformers along time have", time_conformer_depth=0)
    if not arguments["use_rotary_pos"]:
        _refuse_beside(
            arguments,
            "use_rotary_pos=False",
            use_pope=False,
            time_conformer_depth=0,
            freq_conformer_depth=0,
            num_residual_streams=1,
            num_residual_fracs=1,
        )
        if arguments["dim"] % 2:
            raise ValueError(
                f"dim={arguments['dim']} is odd, and sinusoidal positions have a sine and a cosine each: make it even, "
                "or leave use_rotary_pos=False out."
            )
    if arguments["residual_in_first_group_only"] and arguments["depth"] == 1:
        raise ValueError(
            "residual_in_first_group_only=True with depth=1: there are no later layer groups. Pass a depth of at "
            "least 2, or leave it out."
        )


def _check_axes(arguments: Mapping[str, Any]) -> None:
    conformers = False
    for axis in ("time", "freq"):
        conformer, transformer = arguments[f"{axis}_conformer_depth"], arguments[f"{axis}_transformer_depth"]
        conformers |= bool(conformer)
        if bool(conformer) == bool(transformer):
            raise ValueError(
                f"{axis}_conformer_depth={conformer} with {axis}_transformer_depth={transformer}: on each axis there "
                "is either a Conformer or a transformer. Pass 0 for one of them and at least 1 for the other."
            )
    if not conformers:
        _refuse_idle(arguments, OF_CONFORMERS, "time_conformer_depth or freq_conformer_depth of at least 1")
        return
    if arguments["conv_kernel_size"] % 2 == 0:
        raise ValueError(
            f"conv_kernel_size={arguments['conv_kernel_size']} is even, and a convolution has as many positions "
            "before as after: pass an odd number."
        )
    _refuse_beside(
        arguments,
        "a Conformer, which has none of that",
        num_residual_streams=1,
        num_residual_fracs=1,
        use_value_residual_learning=False,
        residual_in_first_group_only=False,
    )


def _check_heads(arguments: Mapping[str, Any]) -> None:
    if arguments["mask_fno_modes"]:
        what = "mask_fno_modes, which make a head without any of that"
        _refuse_beside(arguments, what, mask_transformer_depth=0, use_hyperACE=False)
        _refuse_idle(arguments, OF_MLPS, "mask_fno_modes=0")
    else:
        _refuse_idle(arguments, OF_FNO, "mask_fno_modes of at least 1")
    if arguments["mask_transformer_depth"]:
        if arguments["use_hyperACE"]:
            raise ValueError(
                f"mask_transformer_depth={arguments['mask_transformer_depth']} with use_hyperACE=True: a mask head has "
                "either transformers or the convolutional branch. Leave one of the two out."
            )
        if arguments["mask_transformer_dim_head"] % 2:
            raise ValueError(
                f"mask_transformer_dim_head={arguments['mask_transformer_dim_head']} is odd, and rotary embeddings "
                "turn pairs of features: make it even."
            )
    else:
        _refuse_idle(arguments, OF_MASK_TRANSFORMERS, "mask_transformer_depth of at least 1")
    if not arguments["use_hyperACE"]:
        _refuse_idle(arguments, OF_HYPERACE, "use_hyperACE=True")
        return
    version = arguments["segm_version"]
    if isinstance(version, bool) or version not in (1, 2):
        raise ValueError(f"segm_version={short_repr(version)} is neither 1 nor 2: pass one of them.")
    channels: object = arguments["segm_backbone_channels"]
    written = short_repr(channels)
    sizes = cast("Sequence[object]", channels)
    if isinstance(channels, str) or not isinstance(channels, Sequence) or len(sizes) != 5:
        raise ValueError(f"segm_backbone_channels={written}: pass the numbers of channels of five stages.")
    heads = arguments["segm_num_heads"]
    fits = all(isinstance(size, int) and 16 <= size <= MOST_CHANNELS for size in sizes)
    if not fits or cast("Sequence[int]", sizes)[3] // 2 % heads:
        raise ValueError(
            f"segm_backbone_channels={written} with segm_num_heads={heads}: each stage needs an integer "
            f"from 16 to {MOST_CHANNELS}, and half of the fourth's must be a multiple of the heads."
        )


def _refuse_beside(arguments: Mapping[str, Any], what: str, **usual: object) -> None:
    for name, value in usual.items():
        if (arguments[name] or value) != value:
            raise ValueError(f"{name}={short_repr(arguments[name])} with {what}: leave one of the two out.")


def _refuse_idle(arguments: Mapping[str, Any], defaults: Mapping[str, Any], needed: str) -> None:
    for name, default in defaults.items():
        value: object = arguments[name]
        written = short_repr(value)
        if (tuple(cast("list[object]", value)) if isinstance(value, list) else value) != default:
            raise ValueError(f"{name}={written} has no effect without {needed}: pass that too, or leave it out.")
