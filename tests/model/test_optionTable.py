"""The table of options: nothing that the constructor takes is missing in it, and what a row says is so."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypedDict, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from hunterFormsBS import BandSplitRotator, theTypes
from hunterFormsBS.checkpoint import infer_configuration
from hunterFormsBS.heads import HEADS, OptionsOfHeads
from hunterFormsBS.optionRow import REQUIRED, ByLayout, Option, check_value, rows_of
from hunterFormsBS.options import OPTIONS, idle_options
from tests.models import TINY

Build = Callable[..., BandSplitRotator]

SIGNATURE = inspect.signature(BandSplitRotator.__init__).parameters
RECORDS = [
    theTypes.ParametersAttention,
    theTypes.ParametersComputeLoss,
    theTypes.ParametersConvolution,
    theTypes.ParametersLayerGroups,
    theTypes.ParametersResidual,
    theTypes.ParametersSTFT,
    theTypes.ParametersTransformer,
]
OF_THE_MODEL = {
    "dim",
    "final_norm",
    "dim_freqs_in",
    "match_input_audio_length",
    "num_stems",
    "skip_connection",
    "stereo",
}
OF_THE_MODEL |= {"use_shared_bias", "zero_dc"}
"""The model uses these itself, and hands them on in no record."""


def test_every_argument_of_the_constructor_has_a_row_and_the_other_way_round() -> None:
    names = [name for name in SIGNATURE if name != "self"]
    assert set(names) - set(OPTIONS) == set(), (
        "write a row in hunterFormsBS/options.py, or beside the head that takes it"
    )
    assert set(OPTIONS) - set(names) == set(), "write a line in the signature of BandSplitRotator"


@pytest.mark.parametrize("name", OPTIONS)
def test_signature_and_row_agree_on_default_and_type(name: str) -> None:
    default, annotation = SIGNATURE[name].default, SIGNATURE[name].annotation
    expected = inspect.Parameter.empty if OPTIONS[name].option.default is REQUIRED else OPTIONS[name].option.default
    assert default is expected or default == expected
    union = get_args(annotation)
    assert set(union if {type(None), bool} & set(union) else (annotation,)) == set(OPTIONS[name].kinds)


@pytest.mark.parametrize("name", OPTIONS)
def test_docstring_describes_the_argument(name: str) -> None:
    parameters = inspect.getdoc(BandSplitRotator).partition("Parameters\n---")[2].partition("Attributes\n---")[0]
    described = {one for line in parameters.splitlines() if re.match(r"\w", line) for one in re.findall(r"\w+", line)}
    assert name in described, "write a line in the docstring of BandSplitRotator"


FIRST = "dim depth num_stems stereo dim_head heads freqs_per_bands num_bands sample_rate mask_estimator_depth"


def test_the_docstring_begins_with_what_most_models_need_and_says_where_the_rest_is() -> None:
    screen = "\n".join(inspect.getdoc(BandSplitRotator).splitlines()[:40])
    start, found, _ = screen.partition("Other Parameters\n---")
    assert found
    described = re.findall(r"^(\w+(?:, \w+)*) : ", start, re.MULTILINE)
    assert ", ".join(described).split(", ") == FIRST.split()
    assert "/options.html" in start


def test_each_argument_reaches_one_record_or_one_head_or_the_model_itself() -> None:
    takers: dict[str, list[str]] = {name: [] for name in OPTIONS}
    for record in RECORDS:
        for name in set(record.__annotations__) & set(OPTIONS):
            takers[name].append(record.__name__)
    for name in OptionsOfHeads.__annotations__:
        takers[name].append("a head")
    for name in OF_THE_MODEL | {name for name, row in OPTIONS.items() if row.option.is_layout}:
        takers[name].append("the model")
    shared = {"stft_n_fft": 2, "use_torch_checkpoint": 1}  # frames of the loss have at least this length
    assert {name: who for name, who in takers.items() if len(who) != shared.get(name, 1)} == {}


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_record_has_the_defaults_of_the_rows(record: Any) -> None:
    for name, default in record._field_defaults.items():
        if name not in OPTIONS:
            continue
        option = OPTIONS[name].option
        expected = option.default if option.default is not None else option.unset
        if not isinstance(expected, ByLayout):
            assert default == expected, name


def wrong_values(kinds: tuple[Any, ...], option: Option) -> list[Any]:
    """Return values that a row refuses by itself."""
    if any(get_origin(kind) is Literal for kind in kinds):
        return ["another", 17]
    if bool in kinds:
        return ["true", 1, 0]
    if int in kinds:
        return [option.least - 1, option.most + 1, "3", 2.5, True]
    if float in kinds:
        return [option.least - 1, option.most * 2 if option.below is None else option.below, "0.1", True, float("nan")]
    if any(get_origin(kind) is not None and get_args(kind) == (int,) for kind in kinds):
        return [(), 3, "3", (option.least - 1,), (option.most + 1,), (2.5,)]
    return [3, "hann", None]


@pytest.mark.parametrize("name", [name for name, row in OPTIONS.items() if not row.option.is_layout])
def test_values_beyond_the_bounds_or_of_another_type_are_refused_by_name(name: str) -> None:
    kinds, option = OPTIONS[name]
    for value in wrong_values(kinds, option):
        with pytest.raises((TypeError, ValueError), match=rf"^{name}"):
            BandSplitRotator(**{**TINY, name: value})
    if type(None) not in kinds:
        with pytest.raises((TypeError, ValueError), match=rf"^{name}=None"):
            check_value(name, None, OPTIONS[name])


def on(name: str) -> Any:
    """Return a value with which an option is not off."""
    kinds, option = OPTIONS[name]
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    numbers = [max(option.least, 1), max(option.least, 2), (16,) * 5] if bool not in kinds else []
    for value in (True, False, *choices, *numbers):
        try:
            check_value(name, value, OPTIONS[name])
        except (TypeError, ValueError):
            continue
        if not option.is_off(value):
            return value
    raise AssertionError(f"no value turns {name} on")


@pytest.mark.parametrize("name", [name for name, row in OPTIONS.items() if row.option.needs])
def test_an_option_without_what_it_needs_is_refused_with_both_values(name: str) -> None:
    needs = OPTIONS[name].option.needs
    assert needs is not None
    off = {"depth": 1, "flash_attn": False} | ({"mask_fno_modes": 2} if needs.names == ("mask_fno_modes",) else {})
    lacking = {**off, "mask_fno_modes": 0} if name == "mask_fno_depth" else off
    arguments = {**TINY, **{key: value for key, value in lacking.items() if key in needs.names}, name: on(name)}
    with pytest.raises(ValueError, match=rf"^{name}=.* with {needs.names[0]}=.* has no effect") as caught:
        BandSplitRotator(**arguments)
    assert needs.words in str(caught.value)
    assert name in idle_options(arguments)


EXCLUSIONS = [(name, other) for name, row in OPTIONS.items() for other in row.option.excludes]


@pytest.mark.parametrize(("name", "other"), EXCLUSIONS)
def test_options_that_exclude_each_other_are_refused_with_both(name: str, other: str) -> None:
    met = {"depth": 2, "mlp_expansion_factor": 4} | ({"wsa_window_len": 3} if "n_wsa_sinks" in (name, other) else {})
    transformers = {
        f"{axis}_transformer_depth": 0 for axis in ("time", "freq") if f"{axis}_conformer_depth" in (name, other)
    }
    with pytest.raises(ValueError, match=rf"{other}=.* with {name}=") as caught:
        BandSplitRotator(**{**TINY, **met, **transformers, name: on(name), other: on(other)})
    assert "leave one of the two out" in str(caught.value)


def test_each_head_is_asked_for_by_one_option_and_found_by_its_keys(tiny_model: Build) -> None:
    for kind in HEADS[:-1]:
        if not kind.variants:  # its keys are those of the head without a switch, so that the loader has to warn
            assert OPTIONS[kind.switch].option.is_audible, f"set is_audible in the row of {kind.switch}"
            continue
        channels = {"segm_backbone_channels": (16,) * 5} if kind.switch == "use_hyperACE" else {}
        model = tiny_model(**{kind.switch: on(kind.switch)}, **channels, mlp_expansion_factor=4)
        inferred = infer_configuration(model.state_dict()).arguments
        assert inferred[kind.switch] == model.configuration[kind.switch]
        fits = [head for head in HEADS if any(find(variant.pattern, model) for variant in head.variants)]
        assert fits == [kind]
    assert HEADS[-1].switch == ""


def find(pattern: str, model: BandSplitRotator) -> bool:
    return any(re.search(pattern, key) for key in model.state_dict())


def output_of(model: BandSplitRotator, weights: Mapping[str, Tensor] | None = None) -> Tensor:
    if weights is not None:
        model.load_state_dict(weights)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return model.eval()(torch.randn(1, model.audio_channels, 200, generator=generator))


# What changes none of the shapes, and nothing that is heard: speed, memory, training, the length of the output.
UNHEARD = {"attn_dropout", "ff_dropout", "flash_attn", "sage_attention", "use_torch_checkpoint"}
UNHEARD |= {name for name in OPTIONS if name.startswith("multi_stft_")} | {"match_input_audio_length", "dim_freqs_in"}
# These say which bins form bands, which is decided from the widths of the bands, and the keys tell the others.
TOLD_OTHERWISE = {name for name, row in OPTIONS.items() if row.option.is_layout} | {"stft_n_fft", "use_rotary_pos"}


@pytest.mark.parametrize("name", sorted(set(OPTIONS) - UNHEARD - TOLD_OTHERWISE))
def test_what_shapes_do_not_tell_and_a_listener_hears_is_marked_audible(name: str, tiny_model: Build) -> None:
    option = OPTIONS[name].option
    needed: dict[str, Any] = {
        "learned_value_residual_mix": {"use_value_residual_learning": True},
        "mc_hyper_conn_sinkhorn_iters": {"num_residual_streams": 2},
        "wsa_window_len": {"n_wsa_sinks": 1, "wsa_window_len": 30},
        "segm_num_heads": {"use_hyperACE": True, "segm_backbone_channels": (16,) * 5, "segm_num_heads": 8},
    }.get(name, {})
    values: dict[str, Any] = {
        "mc_hyper_conn_sinkhorn_iters": 3,
        "wsa_window_len": 2,
        "segm_num_heads": 4,
        "stft_hop_length": 8,
        "stft_win_length": 48,
        "stft_window_fn": torch.hamming_window,
        "learned_value_residual_mix": "swapped_everywhere",
        "scale": 0.01,
        "n_wsa_sinks": 1,
        "zero_dc": False,
    }
    if name == "mc_hyper_conn_sinkhorn_iters":
        needed = {**needed, name: 1}
    model = tiny_model(**needed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).sin().view_as(parameter))
    weights = model.state_dict()
    value = values[name] if name in values else on(name)
    extra = {"wsa_window_len": 3} if name == "n_wsa_sinks" else {}
    extra |= {f"{name.partition('_')[0]}_transformer_depth": 0} if name.endswith("conformer_depth") else {}
    try:
        changed = tiny_model(**{**needed, **extra, name: value})
        heard = not torch.allclose(output_of(changed, weights), output_of(model), rtol=1e-5, atol=1e-6)
    except (RuntimeError, ValueError, TypeError):
        heard = False  # The shapes differ, or the value is not for this model: nothing loads by mistake.
    assert heard == option.is_audible, f"say is_audible={heard} in the row"


def test_an_option_of_the_users_own_table_is_refused_without_a_row() -> None:
    class Lacking(TypedDict, total=False):
        mask_smooth_frames: int

    class Complete(TypedDict, total=False):
        mask_smooth_frames: Annotated[int, Option(default=0, most=99)]

    with pytest.raises(TypeError, match=r"Lacking\.mask_smooth_frames has no row: write Annotated"):
        rows_of(Lacking)
    assert rows_of(Complete)["mask_smooth_frames"].option.most == 99
    assert get_type_hints(Complete) == {"mask_smooth_frames": int}
