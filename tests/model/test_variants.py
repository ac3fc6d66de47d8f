"""Variants of the architecture: each is one model among others, for everything that a user does to a model."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import peft
import pytest
import torch
from torch import Tensor, nn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.checkpoint import from_checkpoint, infer_configuration
from hunterFormsBS.kernels.seam import reference
from hunterFormsBS.options import idle_options

Build = Callable[..., BandSplitRotator]

STAGES = {"segm_backbone_channels": (16, 17, 18, 20, 16), "segm_base_depth": 1, "segm_num_heads": 2}
VARIANTS: dict[str, dict[str, Any]] = {
    "mask transformers": {"mask_transformer_depth": 2, "mask_transformer_heads": 3, "mask_transformer_dim_head": 2},
    "HyperACE v1": {"use_hyperACE": True, "segm_version": 1, "segm_num_hyperedges": 3, **STAGES, "stereo": True},
    "HyperACE v2": {"use_hyperACE": True, "segm_hyperace_k": 1, **STAGES, "overlapping": True},
    "FNO heads": {"mask_fno_modes": 4, "mask_fno_depth": 2, "mlp_expansion_factor": 4},
    "shared biases": {"use_shared_bias": True, "linear_transformer_depth": 1},
    "Conformer": {
        "time_conformer_depth": 2,
        "time_transformer_depth": 0,
        "freq_conformer_depth": 1,
        "freq_transformer_depth": 0,
        "conv_kernel_size": 5,
    },
    "Conformer along frequency": {
        "freq_conformer_depth": 1,
        "freq_transformer_depth": 0,
        "conv_kernel_size": 3,
        "conv_expansion_factor": 1,
        "overlapping": True,
        "use_shared_bias": True,
    },
    "experimental": {"residual_in_first_group_only": True, "use_value_residual_learning": True, "depth": 3},
    "experimental with streams": {"residual_in_first_group_only": True, "num_residual_streams": 2},
    "Siamese": {"siamese": True, "time_transformer_depth": 2},
    "windowed sinks": {"n_wsa_sinks": 3, "wsa_window_len": 5, "overlapping": True},
    "sinusoids": {"use_rotary_pos": False, "linear_transformer_depth": 1, "use_value_residual_learning": True},
}
each_variant = pytest.mark.parametrize("name", VARIANTS)
QUICK_TO_TRACE = ("shared biases",)
TRACED = [pytest.param(name, marks=() if name in QUICK_TO_TRACE else pytest.mark.slow) for name in VARIANTS]
BETWEEN_GROUPS = ("residual_in_first_group_only", "use_value_residual_learning")
"""Options that concern several layer groups; for others one is traced, since each takes as long again."""


@pytest.fixture
def build(tiny_model: Build, randomise: Callable[[nn.Module], None]) -> Callable[..., BandSplitRotator]:
    """Return a function that builds a small model of a variant, two stems, with parameters away from 0 and 1."""

    def make(name: str, **options: Any) -> BandSplitRotator:
        torch.manual_seed(3)
        model = tiny_model(**{"num_stems": 2, **VARIANTS[name], **options})
        randomise(model)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d) and module.running_mean is not None:
                module.running_mean.normal_()
        return model.eval()

    return make


def build_to_trace(build: Build, name: str) -> BandSplitRotator:
    """Build a variant with no more groups and stems than take part in it."""
    several = any(option in VARIANTS[name] for option in BETWEEN_GROUPS)
    return build(name, num_stems=1, **({} if several else {"depth": 1})).double()


def audio_for(model: BandSplitRotator, samples: int = 600) -> Tensor:
    return torch.randn(2, model.audio_channels, samples)


def loss_and_gradients(model: BandSplitRotator, audio: Tensor, target: Tensor) -> tuple[Tensor, dict[str, Any]]:
    model.zero_grad()
    loss = model(audio, target)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


@each_variant
def test_gradients_reach_every_parameter_with_and_without_checkpointing(name: str, build: Build) -> None:
    model = build(name).train()
    audio, target = audio_for(model), torch.randn(2, 2, model.audio_channels, 600)
    loss, grads = loss_and_gradients(model, audio, target)
    assert [key for key, grad in grads.items() if grad is None or not grad.any() or not grad.isfinite().all()] == []
    checkpointing = build(name, use_torch_checkpoint=True).train()
    other_loss, other_grads = loss_and_gradients(checkpointing, audio, target)
    torch.testing.assert_close(other_loss, loss)
    for key, grad in grads.items():
        torch.testing.assert_close(other_grads[key], grad, msg=key)


@each_variant
def test_kernels_change_nothing(name: str, build: Build) -> None:
    model = build(name).double()
    audio, target = audio_for(model).double(), torch.randn(2, 2, model.audio_channels, 600).double()
    loss, grads = loss_and_gradients(model, audio, target)
    with reference():
        expected, expected_grads = loss_and_gradients(model, audio, target)
    torch.testing.assert_close(loss, expected)
    for key, grad in expected_grads.items():
        torch.testing.assert_close(grads[key], grad, rtol=1e-6, atol=1e-8, msg=key)


@pytest.mark.compile
@pytest.mark.parametrize("name", TRACED)
def test_mask_estimation_is_one_graph(name: str, build: Build) -> None:
    # In double precision, because instance norms of a few numbers amplify.
    model, graphs = build_to_trace(build, name), []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    torch._dynamo.reset()
    compiled = torch.compile(model.mask_spectrum, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for samples in (600, 900):
            spectrum = model.stft.forward(audio_for(model, samples).double())
            expected = model.mask_spectrum(spectrum)
            torch.testing.assert_close(compiled(spectrum), expected, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 1


class Masks(nn.Module):
    """Mask estimation as a module, which is what exports."""

    def __init__(self, model: BandSplitRotator) -> None:
        super().__init__()
        self.model = model

    def forward(self, spectrum: Tensor) -> Tensor:
        return self.model.mask_spectrum(spectrum)


@pytest.mark.export
@pytest.mark.parametrize("name", TRACED)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_mask_estimation_exports_for_any_number_of_frames(name: str, build: Build) -> None:
    model = build_to_trace(build, name)
    spectrum = model.stft.forward(audio_for(model).double())
    # A range would have to be proven for every rounding of the strided convolutions of HyperACE.
    program = torch.export.export(Masks(model), (spectrum,), dynamic_shapes=({3: torch.export.Dim.AUTO},))
    for samples in (570, 901):
        other = model.stft.forward(audio_for(model, samples).double())
        with torch.no_grad():
            expected = model.mask_spectrum(other)
            torch.testing.assert_close(program.module()(other), expected, rtol=1e-4, atol=1e-5)


@each_variant
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_and_independent(name: str, copied: Callable[[Any], Any], build: Build) -> None:
    model = build(name)
    twin, audio = copied(model), audio_for(model)
    with torch.no_grad():
        before = model(audio)
        assert torch.equal(twin(audio), before)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(model(audio), before)
        assert not torch.equal(twin(audio), before)
    assert [*twin.state_dict()] == [*model.state_dict()]
    assert len([*twin.parameters()]) == len([*model.parameters()])


@each_variant
def test_empty_model_can_be_initialised_or_loaded(name: str, build: Build) -> None:
    model = build(name)
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*empty.parameters(), *(b for b in empty.buffers() if b.is_floating_point())):
            tensor.fill_(float("nan"))
    empty.reset_parameters()
    assert all(tensor.isfinite().all() for tensor in (*empty.parameters(), *empty.buffers()))
    assert len([*empty.parameters()]) == len([*model.parameters()])
    for assign in (False, True):
        empty.load_state_dict(model.state_dict(), assign=assign)
        audio = audio_for(model)
        with torch.no_grad():
            assert torch.equal(empty(audio), model(audio))
        assert len([*empty.parameters()]) == len([*model.parameters()])


@each_variant
def test_configuration_makes_the_same_model_with_new_weights(name: str, build: Build) -> None:
    model = build(name)
    twin = BandSplitRotator(**model.configuration).eval()
    assert set(model.configuration) >= set(VARIANTS[name]) - {"overlapping"}
    twin.load_state_dict(model.state_dict())
    audio = audio_for(model)
    with torch.no_grad():
        assert torch.equal(twin(audio), model(audio))


@each_variant
def test_heads_can_be_chosen(name: str, build: Build) -> None:
    model = build(name)
    audio = audio_for(model)
    with torch.no_grad():
        torch.testing.assert_close(model(audio, active_stem_ids=[1]), model(audio)[:, 1:], rtol=1e-4, atol=1e-5)


@each_variant
def test_checkpoint_is_loaded_by_its_keys(name: str, build: Build, tmp_path: Path) -> None:
    model = build(name)
    path = tmp_path / "model.ckpt"
    torch.save(model.state_dict(), path)
    inferred = infer_configuration(model.state_dict()).arguments
    told = {key: value for key, value in model.configuration.items() if key in inferred}
    numbers = {"num_residual_fracs": 1, "mask_estimator_depth": 1, "ff_mult": 4, "learned_value_residual_mix": True}
    resolved = {key: numbers.get(key) if value is None else value for key, value in told.items()}
    compared = {
        key: value
        for key, value in resolved.items()
        if key not in idle_options(inferred) and key not in ("final_norm", "norm_output", "stereo", "num_bands")
    }
    hyper = (
        {"segm_hyperace_k": 3, "segm_hyperace_l": 2}
        if "v1" in name
        else {"segm_hyperace_l": 1, "segm_num_hyperedges": 32}
    )
    compared = {key: hyper.get(key) if value is None else value for key, value in compared.items()}
    assert {key: inferred[key] for key in compared} == compared
    overlapping = VARIANTS[name].get("overlapping", False)
    layout = {"mask_filter_bank": model.mask_filter_bank} if overlapping else {}
    not_told = ("stereo", "stft_hop_length", "stft_win_length", "residual_in_first_group_only", "segm_num_heads")
    unseen = {key: model.configuration[key] for key in (*not_told, "use_rotary_pos", "wsa_window_len")}
    rest = {"zero_dc": model.zero_dc, "skip_connection": False, "stft_normalized": False, "stft_n_fft": 64}
    loaded = from_checkpoint(path, {**layout, **unseen, **rest}, upstream="hunterFormsBS")
    audio = audio_for(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(audio), model(audio))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"time_conformer_depth": 1}, "time_conformer_depth=1 with time_transformer_depth=1"),
    ({"freq_transformer_depth": 0}, "freq_conformer_depth=0 with freq_transformer_depth=0"),
    ({**VARIANTS["Conformer"], "conv_kernel_size": 4}, "conv_kernel_size=4 is even"),
    ({"mask_fno_modes": 2, "mlp_expansion_factor": 3}, "mlp_expansion_factor=3 with mask_fno_modes=2 has no effect"),
    ({"mask_transformer_depth": 1, "mask_transformer_dim_head": 3}, "mask_transformer_dim_head=3 is odd"),
    ({"use_hyperACE": True, "segm_version": 3}, "segm_version=3 is none of 1, 2"),
    ({"use_hyperACE": True, "segm_backbone_channels": (64, 64)}, r"segm_backbone_channels=\(64, 64\) with segm_num"),
    ({"use_hyperACE": True, "segm_backbone_channels": (64,) * 5, "segm_num_heads": 5}, "segm_num_heads=5"),
    ({"use_rotary_pos": False, "dim": 9}, "dim=9 is odd"),
    ({"n_wsa_sinks": 2}, "n_wsa_sinks=2 with wsa_window_len=None"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_contradictions_are_refused_with_the_remedy(options: dict[str, Any], message: str, tiny_model: Build) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_model(**options)


def test_shared_biases_stay_one_pair_through_training_and_conversion(build: Build) -> None:
    model = build("shared biases")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(audio_for(model), torch.randn(2, 2, 1, 600)).backward()
    optimizer.step()
    for changed in (model, model.double(), copy.deepcopy(model).to("meta").to_empty(device="cpu")):
        biases = {id(bias) for key, bias in changed.named_parameters(remove_duplicate=False) if "to_qkv.bias" in key}
        assert biases == {id(changed.shared_qkv_bias)}


@pytest.mark.parametrize("options", [VARIANTS["shared biases"], {"use_pope": True}], ids=["shared biases", "PoPE"])
def test_state_dict_is_the_model_under_every_name_that_is_trained(options: dict[str, Any], tiny_model: Build) -> None:
    model = tiny_model(**options)
    kept, audio = model.state_dict(), audio_for(model)
    model(audio, torch.randn(2, 1, 1, 600)).backward()
    torch.optim.Adam(model.parameters(), lr=0.1).step()
    owners: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(parameter, []).append(name)
    names = next(names for parameter, names in owners.items() if parameter.requires_grad and len(names) > 1)
    for key, parameter in model.named_parameters(remove_duplicate=False):  # what was kept has learned as well
        assert torch.equal(kept[key], parameter), key
    twin = tiny_model(**options)
    for assign in (False, True):
        twin.load_state_dict(kept, assign=assign)
        assert torch.equal(twin(audio), model(audio))
    for name in names:  # edited in place by any of its names, and given back
        edited = model.state_dict()
        edited[name].fill_(0.5)
        model.load_state_dict(edited)
        assert all((value == 0.5).all() for value in (model.state_dict()[key] for key in names))
        with torch.no_grad():
            model.get_parameter(name).zero_()


@each_variant
def test_model_is_a_function_of_its_parameters_and_buffers(name: str, build: Build) -> None:
    model = build(name)
    tensors = {key: tensor.detach().clone() for key, tensor in (*model.named_parameters(), *model.named_buffers())}
    audio = audio_for(model)
    with torch.no_grad():
        expected = model(audio)
        for tensor in model.parameters():
            tensor.zero_()
        torch.testing.assert_close(torch.func.functional_call(model, tensors, (audio,)), expected)


class Wrapper(nn.Module):
    """Stands around a linear map, without its attributes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class WrapperWithBias(Wrapper):
    """Has a property of the name as well."""

    @property
    def bias(self) -> Tensor:
        return self.inner.bias  # type: ignore[return-value]


def wrapped(model: BandSplitRotator, kind: type[Wrapper]) -> nn.Module:
    for module in list(model.modules()):
        if getattr(module, "has_shared_bias", False):
            module.to_qkv, module.to_out[0] = kind(module.to_qkv), kind(module.to_out[0])  # type: ignore[index]
    return model


# Of softmax attention; that of linear attention is no linear map.
TARGETS = r".*layers\.\d\.[12]\.layers\.0\.0\.(to_qkv|to_out\.0)"
AROUND_LINEAR_MAPS: dict[str, Callable[[BandSplitRotator], nn.Module]] = {
    "wrapper": lambda model: wrapped(model, Wrapper),
    "wrapper with a bias": lambda model: wrapped(model, WrapperWithBias),
    "LoRA": lambda model: peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=TARGETS), model),
    "DoRA": lambda model: peft.inject_adapter_in_model(
        peft.LoraConfig(r=2, use_dora=True, target_modules=TARGETS), model
    ),
    "IA3": lambda model: peft.inject_adapter_in_model(
        peft.IA3Config(target_modules=TARGETS, feedforward_modules=[]), model
    ),
    "quantised": lambda model: torch.ao.quantization.quantize_dynamic(model, {nn.Linear}),
}


@pytest.mark.filterwarnings("ignore:torch.ao.quant:DeprecationWarning", "ignore:.*quantiz", "ignore:TypedSt")
@pytest.mark.parametrize("around", AROUND_LINEAR_MAPS)
def test_shared_biases_stay_shared_whatever_stands_around_linear_maps(around: str, build: Build) -> None:
    plain = build("shared biases")
    model, audio = AROUND_LINEAR_MAPS[around](copy.deepcopy(plain)), audio_for(plain)
    with torch.no_grad():
        keys, before = set(model.state_dict()), model(audio)
        torch.testing.assert_close(before, plain(audio), rtol=0.1, atol=0.1 if around == "quantised" else 1e-6)
        model.to("cpu")
        assert set(model.state_dict()) == keys
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
        torch.testing.assert_close(model(audio), before)
    biases = {id(p) for key, p in model.named_parameters(remove_duplicate=False) if "bias" in key and "to_qkv" in key}
    assert biases == (set() if around == "quantised" else {id(model.shared_qkv_bias)})


def test_shared_biases_are_added_in_softmax_attention_only(build: Build) -> None:
    model = build("shared biases")
    keys = [key for key in model.state_dict() if key.endswith("to_qkv.bias")]
    assert keys == [f"layers.{group}.{axis}.layers.0.0.to_qkv.bias" for group in (0, 1) for axis in (1, 2)]


def test_siamese_streams_follow_the_formula_layer_by_layer(build: Build) -> None:
    model = build("Siamese").double()
    tokens = torch.randn(1, 3, 6, 12).double()

    def rms(stream: Tensor, gamma: Any) -> Tensor:
        return stream / stream.pow(2).mean(-1, keepdim=True).sqrt() * gamma

    x = y = tokens
    number = 0
    for group in model.layers:
        for axis, transformer in zip((1, 2), group, strict=True):  # type: ignore[call-overload]
            x, y = x.transpose(1, 3 - axis), y.transpose(1, 3 - axis)
            for layer, (attention, feed_forward) in enumerate(transformer.layers):
                number += 1
                factor = 1 / number**0.5 + 1
                mixed = x * transformer.y_attn.get_parameter(str(layer)) + rms(y, transformer.ln_y_attn[layer].gamma)
                out = torch.stack([attention(one)[0] for one in mixed])
                y = y + out
                x = rms(x + out * factor, transformer.ln_x_attn[layer].gamma)
                out = feed_forward(x + rms(y, transformer.ln_y_mlp[layer].gamma))
                y = y + out
                x = rms(x + out * factor, transformer.ln_x_mlp[layer].gamma)
            x, y = x.transpose(1, 3 - axis), y.transpose(1, 3 - axis)
    torch.testing.assert_close(model.transform(tokens), x + model.final_norm(y))


def test_frames_attend_to_their_window_and_to_sinks() -> None:
    from hunterFormsBS.attend import Attend

    q, k, v = torch.randn(3, 1, 2, 9, 4, dtype=torch.float64)
    attended = Attend(wsa_window_len=5, n_wsa_sinks=1)(q, k, v)
    for query in range(9):
        seen = [key for key in range(9) if key < 1 or query < 1 or abs(query - key) <= 2]
        weights = (q[0, :, query, None] * k[0, :, seen]).sum(-1).div(2).softmax(-1)
        torch.testing.assert_close(attended[0, :, query], (weights[..., None] * v[0, :, seen]).sum(1))


def test_sinks_come_before_the_first_frame_and_go(tiny_model: Build) -> None:
    model = tiny_model(**VARIANTS["windowed sinks"]).eval()
    tokens = torch.randn(2, 7, 5, 12)
    wide = tiny_model(overlapping=True).eval()
    model.load_state_dict(wide.state_dict() | {"sink_tokens": torch.randn(3, 5, 12)})
    for module in model.modules():
        if getattr(module, "wsa_window_len", None):
            module.wsa_window_len = 100  # type: ignore[assignment]
    sinks = cast(Tensor, model.sink_tokens)[None].expand(2, -1, -1, -1)
    expected = wide.transform(torch.cat((sinks, tokens), dim=1))[:, 3:]
    torch.testing.assert_close(model.transform(tokens), expected, rtol=1e-4, atol=1e-5)


def test_sinusoids_are_those_of_the_first_transformer() -> None:
    from hunterFormsBS.blocks.positions import add_sinusoids

    table = add_sinusoids(torch.zeros(1, 30, 8, dtype=torch.float64))[0]
    for position in (0, 1, 29):
        for feature in range(8):
            angle = position / 10000 ** ((feature // 2 * 2) / 8)
            assert float(table[position, feature]) == pytest.approx(math.cos(angle) if feature % 2 else math.sin(angle))


def test_residuals_are_missing_after_the_first_group_only_where_asked(tiny_model: Build) -> None:
    model = tiny_model(residual_in_first_group_only=True, depth=3).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".to_out." in key or ".net.4." in key:
                parameter.zero_()
    tokens = torch.randn(1, 4, 6, 12)
    # Sublayers return 0: the first group passes tokens on, the second loses them.
    assert not model.transform(tokens).any()
    ordinary = tiny_model(depth=3).eval()
    ordinary.load_state_dict(model.state_dict())
    torch.testing.assert_close(ordinary.transform(tokens), ordinary.final_norm(tokens))
