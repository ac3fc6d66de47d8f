"""The whole model under PyTorch's own tools: averaging, copies, offloading, `to_empty`, `torch.func`, tracing."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from math import pi
from pathlib import Path
from typing import Any

import accelerate
import bs_roformer
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.attend import Attention, FeedForward
from hunterFormsBS.blocks.positions import PolarEmbedding
from hunterFormsBS.containers import folded_repr
from hunterFormsBS.kernels.seam import KERNELS, reference

Build = Callable[..., BandSplitRotator]
SAMPLES = 500
MEL: dict[str, Any] = {
    "num_bands": 60,
    "sample_rate": 44100,
    "use_value_residual_learning": True,
    "learned_value_residual_mix": "swapped",
}
"""What BS-RoFormer's Mel models have by default."""
KINDS: dict[str, dict[str, Any]] = {
    "side by side": {},
    "overlapping": {"overlapping": True, "num_stems": 2, "stereo": True},
    "polar": {"use_pope": True},
    "linear, values, streams": {
        "linear_transformer_depth": 1,
        "use_value_residual_learning": True,
        "num_residual_streams": 2,
    },
}
each_kind = pytest.mark.parametrize("kind", KINDS)
FOR_COMPILING = {"depth": 1, "freqs_per_bands": (10, 23)}
"""As few layers as there are kinds of them: tracing takes as long for each."""


def audio_for(model: BandSplitRotator, batch: int = 2, **options: Any) -> Tensor:
    return torch.randn(batch, model.audio_channels, SAMPLES, **options)


def loss_and_gradients(model: BandSplitRotator, x: Tensor, y: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    loss = model(x, y)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), grads


def target_for(model: BandSplitRotator, x: Tensor) -> Tensor:
    return torch.randn(x.shape[0], model.num_stems, *x.shape[1:], dtype=x.dtype)


# Averages and copies


@pytest.mark.parametrize(
    "average",
    [
        {},
        {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        {"avg_fn": get_ema_avg_fn(0.9)},
        {"avg_fn": lambda mean, new, _n: 0.99 * mean + 0.01 * new},
    ],
    ids=["mean", "exponential, many at once", "exponential", "by a function"],
)
@each_kind
def test_average_over_buffers_too_computes_what_the_averaged_parameters_say(
    kind: str, average: dict[str, Any], tiny_model: Build, as_on_a_gpu: Any
) -> None:
    model = tiny_model(**KINDS[kind]).eval()
    averaged = AveragedModel(model, use_buffers=True, **average)
    for _update in range(5):
        averaged.update_parameters(model)
    x = audio_for(model)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(averaged(x), expected, rtol=1e-4, atol=1e-5)
        with as_on_a_gpu():
            torch.testing.assert_close(averaged(x), expected, rtol=1e-4, atol=1e-5)


def by_pickle(model: BandSplitRotator) -> BandSplitRotator:
    return pickle.loads(pickle.dumps(model))  # type: ignore[no-any-return]


def by_saving(model: BandSplitRotator) -> BandSplitRotator:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)  # type: ignore[no-any-return]


@pytest.mark.compile
@pytest.mark.parametrize("method", ["mask_spectrum", "transform", "forward"])
@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, by_pickle, by_saving, lambda m: AveragedModel(m).module])
def test_copy_of_a_compiled_model_runs_its_own_weights(
    copied: Callable[[BandSplitRotator], BandSplitRotator], method: str, tiny_model: Build
) -> None:
    model = tiny_model(**FOR_COMPILING).eval()
    setattr(model, method, torch.compile(getattr(model, method), backend="eager"))
    x = audio_for(model)
    other = copied(model)
    assert method not in vars(other)
    if copied is copy.copy:  # shares its parameters
        return
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.5)
        expected = tiny_model(**FOR_COMPILING).eval()
        expected.load_state_dict(other.state_dict())
        torch.testing.assert_close(other(x), expected(x))
        assert not torch.allclose(other(x), model(x))


# Weights that come late


@each_kind
def test_model_made_empty_computes_once_weights_are_copied_in(kind: str, tiny_model: Build) -> None:
    model = tiny_model(**KINDS[kind]).eval()
    with torch.device("meta"):
        empty = tiny_model(**KINDS[kind]).eval()
    empty.to_empty(device="cpu")
    with torch.no_grad():
        for one, other in zip(empty.parameters(), model.parameters(), strict=True):
            one.copy_(other)
        for one, other in zip(empty.buffers(), model.buffers(), strict=True):
            one.copy_(other)
    x = audio_for(model)
    with torch.no_grad():
        torch.testing.assert_close(empty(x), model(x))
    assert torch.equal(empty.mask_filter_bank, model.mask_filter_bank)


@each_kind
def test_every_parameter_of_an_empty_model_can_be_initialised(kind: str, tiny_model: Build) -> None:
    model = tiny_model(**KINDS[kind])
    empty = copy.deepcopy(model).to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*empty.parameters(), *empty.buffers()):
            tensor.fill_(float("nan"))
    for module in empty.modules():
        if module is not empty and hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for name, parameter in empty.named_parameters():
        assert parameter.isfinite().all(), name
        owner = name.rpartition(".")[0]
        if not isinstance(model.get_submodule(owner), nn.Linear):  # which draws its weights
            torch.testing.assert_close(parameter, model.get_parameter(name), msg=name)
    assert all(buffer.isfinite().all() for buffer in empty.buffers())
    empty.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in empty.parameters())


@each_kind
@pytest.mark.parametrize("where", ["memory", "disk"])
def test_accelerate_offloads_every_layer(kind: str, where: str, tiny_model: Build, tmp_path: Path) -> None:
    model = tiny_model(**KINDS[kind]).eval()
    x = audio_for(model)
    with torch.no_grad():
        expected = model(x)
        offloaded = copy.deepcopy(model)
        if where == "memory":
            accelerate.cpu_offload(offloaded, torch.device("cpu"))
        else:
            accelerate.disk_offload(offloaded, str(tmp_path), torch.device("cpu"))
        for _time in range(2):
            torch.testing.assert_close(offloaded(x), expected)


@each_kind
def test_layers_stored_narrow_and_widened_for_their_call_compute_wide(kind: str, tiny_model: Build) -> None:
    model = tiny_model(**KINDS[kind]).eval()
    layers = [module for module in model.modules() if isinstance(module, (Attention, FeedForward))]
    with torch.no_grad():
        for layer in layers:
            for parameter in layer.parameters():
                parameter.copy_(parameter.bfloat16())
        x = audio_for(model)
        expected = model(x)

    def cast(layer: nn.Module, dtype: torch.dtype) -> None:
        for module in layer.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)

    for layer in layers:
        cast(layer, torch.bfloat16)
        layer.register_forward_pre_hook(lambda layer, _args: cast(layer, torch.float32))
        layer.register_forward_hook(lambda layer, _args, _out: cast(layer, torch.bfloat16))
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected)


# Derivatives


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # in PyTorch's transform of frames
@each_kind
def test_gradients_of_each_sample_go_through_torch_func(kind: str, tiny_model: Build, randomise: Any) -> None:
    model = tiny_model(**KINDS[kind]).eval()
    randomise(model)
    x = audio_for(model, batch=3)
    y = target_for(model, x)
    expected = [loss_and_gradients(model, x[i : i + 1], y[i : i + 1])[1] for i in range(3)]
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x[None], y[None]))  # type: ignore[no-any-return]

    by_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, y)
    for name, grads in by_sample.items():
        together = torch.stack([one[name] for one in expected])
        assert (grads - together).abs().max() <= 1e-4 * together.abs().max() + 1e-6, name


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is (deprecated|not supported)")  # PyTorch's own use of it
@each_kind
def test_tangents_pass_through_the_model(kind: str, tiny_model: Build) -> None:
    model = tiny_model(**KINDS[kind]).eval().double()
    x, direction, step = *(audio_for(model, dtype=torch.float64) for _ in range(2)), 1e-6
    with torch.no_grad():
        expected = (model(x + step * direction) - model(x - step * direction)) / (2 * step)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, direction))).tangent
    assert (tangent - expected).abs().max() <= 1e-4 * expected.abs().max()


def gradients_of_penalty(model: BandSplitRotator, x: Tensor, y: Tensor, *, autocast: bool) -> dict[str, Tensor]:
    model.zero_grad()
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(leaf, y)
    (grad,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (1e3 * grad).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


PENALISED = {
    **KINDS,
    "windows": {"n_wsa_sinks": 3, "wsa_window_len": 5},
    "checkpointing": {"use_torch_checkpoint": True},
}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("frames", [30, pytest.param(300, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", PENALISED)
def test_gradient_penalty_is_that_of_the_formula_in_double_precision(
    kind: str, frames: int, autocast: bool, tiny_model: Build, randomise: Any
) -> None:
    model = tiny_model(**PENALISED[kind], depth=1 if "values" not in kind else 2).eval()
    randomise(model)
    x = torch.randn(1, model.audio_channels, 16 * frames)
    y = target_for(model, x)
    ours = gradients_of_penalty(model, x, y, autocast=autocast)
    with reference():
        by_formula = gradients_of_penalty(model, x, y, autocast=autocast)
        exact = gradients_of_penalty(model.double(), x.double(), y.double(), autocast=False)
    scale = max(float(grad.abs().max()) for grad in exact.values())
    assert ours.keys() == exact.keys()
    # bfloat16 has three digits, and the formula is not exact either.
    error = max(float((by_formula[name] - exact[name]).abs().max()) for name in exact)
    for name, grad in ours.items():
        assert float((grad - exact[name]).abs().max()) <= max(1e-5 * scale, 3 * error), name


def test_bias_of_polar_embedding_learns_from_its_first_step_and_stays_within_its_bounds() -> None:
    embedding = PolarEmbedding(4, 2)
    q = k = torch.randn(1, 2, 5, 4)

    def push(sign: int) -> Tensor:
        embedding.zero_grad()
        _, turned = embedding(q, k)
        (sign * turned * torch.linspace(0, 1, turned.numel()).view_as(turned)).sum().backward()
        assert embedding.bias.grad is not None
        return embedding.bias.grad.clone()

    assert (push(1) != 0).all()
    with torch.no_grad():
        embedding.bias.fill_(-2 * pi)
    assert (push(1) != 0).all()
    with torch.no_grad():
        embedding.bias.fill_(0.1)
    assert (push(1) == 0).all()
    assert torch.equal(embedding.limited_bias(), torch.zeros(2, 4))


# Hooks and tracing


@each_kind
def test_every_layer_hooked_is_called_with_the_whole_batch_and_once(kind: str, tiny_model: Build) -> None:
    model = tiny_model(**KINDS[kind]).eval()
    model_shapes: dict[bool, dict[str, list[torch.Size]]] = {}
    x = audio_for(model, batch=40)
    for off in (True, False):
        shapes: dict[str, list[torch.Size]] = {}
        hooked = copy.deepcopy(model)
        for name, module in hooked.named_modules():
            calls = shapes[name] = []
            module.register_forward_hook(lambda _m, args, _out, calls=calls: calls.append(args[0].shape))
        with torch.no_grad():
            if off:
                with reference():
                    expected = hooked(x)
            else:
                torch.testing.assert_close(hooked(x), expected, rtol=1e-4, atol=1e-5)
        model_shapes[off] = shapes
    assert model_shapes[True] == model_shapes[False]


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
@each_kind
def test_traced_mask_estimation_takes_longer_songs(kind: str, tiny_model: Build) -> None:
    model = tiny_model(**KINDS[kind]).eval()
    with torch.no_grad():
        short, long = (model.stft.forward(torch.randn(1, model.audio_channels, length)) for length in (300, 900))

        class Masks(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = model

            def forward(self, spectrum: Tensor) -> Tensor:
                return self.model.mask_spectrum(spectrum)

        traced = torch.jit.trace(Masks(), short, check_trace=False)
        torch.testing.assert_close(traced(long), model.mask_spectrum(long), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
def test_traced_model_takes_longer_songs(tiny_model: Build) -> None:
    model = tiny_model(match_input_audio_length=False).eval()
    with torch.no_grad():
        traced = torch.jit.trace(model, torch.randn(1, 1, 320), check_trace=False)
        x = torch.randn(1, 1, 960)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-4, atol=1e-5)


# Order of parameters, and what the model says of itself


def described(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Return what each parameter is, in order, and the shape of those whose bands do not decide it."""
    rows = []
    for name, parameter in model.named_parameters():
        common = name.replace("learned_value_residual_mix.0", "to_value_residual_mix").replace("branch.", "")
        shape = tuple(parameter.shape) if name.startswith("layers.") else ()
        rows.append((".".join([name.split(".")[0], *common.split(".")[-2:]]), shape))
    return rows


@pytest.mark.parametrize(
    ("upstream", "theirs", "ours"),
    [
        (bs_roformer.BSRoformer, {"num_residual_streams": 1}, {"use_value_residual_learning": True}),
        (
            bs_roformer.BSRoformer,
            {"num_residual_streams": 2},
            {"num_residual_streams": 2, "mc_hyper_conn_sinkhorn_iters": 2, "use_value_residual_learning": True},
        ),
        (
            bs_roformer.BSRoformer,
            {"num_residual_streams": 1, "use_pope": True, "num_stems": 2, "stereo": True},
            {"use_pope": True, "num_stems": 2, "stereo": True, "use_value_residual_learning": True},
        ),
        *(
            (
                bs_roformer.MelBandRoformer,
                {"num_residual_streams": 1, "linear_transformer_depth": depth, "add_value_residual": True},
                {"linear_transformer_depth": depth, **MEL},
            )
            for depth in (0, 1)
        ),
    ],
)
def test_parameters_are_in_the_order_of_upstream(upstream: Any, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    sizes = {"dim": 8, "depth": 2, "time_transformer_depth": 1, "freq_transformer_depth": 1, "heads": 2, "dim_head": 4}
    assert described(BandSplitRotator(**sizes, **ours)) == described(upstream(**sizes, **theirs))


def test_configuration_is_a_copy(tiny_model: Build) -> None:
    model = tiny_model(overlapping=True)
    before = model.configuration
    model.configuration["dim"] = 1
    model.configuration["mask_filter_bank"].zero_()
    before["num_stems"] = 7
    assert model.configuration["dim"] == 12
    assert model.configuration["mask_filter_bank"].any()
    assert model.configuration["num_stems"] == 1
    assert type(model)(**model.configuration).mask_filter_bank.equal(model.mask_filter_bank)


@each_kind
def test_state_dict_has_trained_parameters_themselves_and_memory_of_its_own_for_every_other_key(
    kind: str, tiny_model: Build
) -> None:
    model = tiny_model(**KINDS[kind])
    state = model.state_dict(prefix="model.")
    named = dict(model.named_parameters(remove_duplicate=False))
    trained = {name: parameter for name, parameter in named.items() if parameter.requires_grad}
    assert all(state[f"model.{name}"].data_ptr() == parameter.data_ptr() for name, parameter in trained.items())
    others = [tensor.data_ptr() for key, tensor in state.items() if key.removeprefix("model.") not in trained]
    assert len({*others}) == len(others)
    kept = model.state_dict(keep_vars=True)
    assert kept.keys() == {name.removeprefix("model.") for name in state}
    assert all(kept[name] is parameter for name, parameter in model.named_parameters(remove_duplicate=False))


def test_model_describes_itself(tiny_model: Build) -> None:
    model = tiny_model(num_stems=3, stereo=True)
    size = sum(parameter.numel() for parameter in model.parameters())
    expected = f"bands=6, freqs=33, num_stems=3, audio_channels=2, stft_hop_length=16, parameters={size:,}"
    assert model.extra_repr() == expected
    assert expected in repr(model)


def test_no_kernel_runs_in_reference_mode(tiny_model: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object, **_kwargs: object) -> None:
        raise AssertionError

    for kernel in KERNELS.values():
        monkeypatch.setattr(kernel, "run", refuse)
    model = tiny_model(overlapping=True)
    with reference():
        model(audio_for(model), torch.randn(2, 1, 1, SAMPLES)).backward()
    with pytest.raises(AssertionError):
        model(audio_for(model))


@pytest.mark.parametrize("arguments", [{}, {"num_stems": 4, "stereo": True}, {"sample_rate": 44100, "num_bands": 60}])
def test_a_model_is_shown_on_one_screen(arguments: dict[str, Any]) -> None:
    with torch.device("meta"):
        model = BandSplitRotator(48, depth=12, **arguments)
    lines = repr(model).splitlines()
    assert len(lines) < 60
    assert sum(line.strip() == "(0-11): 12 x ModuleList(" for line in lines) == 1
    assert max(map(len, lines)) <= 120


def test_neighbours_that_differ_in_numbers_alone_are_shown_once_with_the_range() -> None:
    class Loud(nn.Linear):
        def __repr__(self) -> str:
            return "LOUD"

    tower = nn.ModuleList([nn.Linear(4, 8), nn.Linear(24, 8), nn.Linear(7, 8, bias=False), Loud(1, 1), nn.Sequential()])
    assert folded_repr(tower).splitlines() == [
        "ModuleList(",
        "  (0-1): 2 x Linear(in_features=4..24, out_features=8, bias=True)",
        "  (2): Linear(in_features=7, out_features=8, bias=False)",
        "  (3): LOUD",
        "  (4): Sequential()",
        ")",
    ]
    assert folded_repr(nn.Sequential(nn.Tanh())) == "Sequential((0): Tanh())"
