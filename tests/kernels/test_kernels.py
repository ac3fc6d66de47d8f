"""Every kernel, through everything that someone may do around a layer: nobody can tell that it stands for a formula.

`CASES` has a layer and inputs for each kernel of the registry, which a test compares with it, so that a new kernel
cannot do without.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from torch.utils.flop_counter import FlopCounterMode

from hunterFormsBS.attend import Attention, FeedForward, Transformer
from hunterFormsBS.bandSplit import BandSplit, MaskEstimator, masks_of_stems
from hunterFormsBS.blocks.attend import scaled_dot_product, windowed_sinks
from hunterFormsBS.blocks.bins import Bins
from hunterFormsBS.blocks.loss import spectral_l1
from hunterFormsBS.blocks.positions import PolarEmbedding, RotaryEmbedding, complex_product
from hunterFormsBS.heads.hyperACE.convolutions import Conv, DSConv, TimeFreqConvolutions, shuffle
from hunterFormsBS.kernels import convolutions, internals, scaledDotProduct, seam, transformer
from hunterFormsBS.kernels.seam import KERNELS, Where, noting_kernels, reference
from hunterFormsBS.theTypes import (
    ParametersAttention,
    ParametersComputeLoss,
    ParametersResidual,
    ParametersScaledDotProduct,
    ParametersTransformer,
)

WIDTHS = (3, 8, 5, 7, 2)
ATTENTION = ParametersAttention(heads=2, dim_head=4)
SOFTMAX = ParametersScaledDotProduct(scale=0.4, dropout=0.0, flash_attn=True, sage_attention=False)
LOSS = ParametersComputeLoss(16, 5, multi_stft_resolutions_window_sizes=(32, 16, 9))


class Stems(nn.Module):
    """The mask estimators of three stems, called together."""

    def __init__(self) -> None:
        super().__init__()
        self.estimators = nn.ModuleList(MaskEstimator(6, WIDTHS, mlp_expansion_factor=2) for _stem in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return masks_of_stems(list(self.estimators), x)


class Function(nn.Module):
    """A function without layers inside."""

    def __init__(self, function: Callable[..., Tensor], *more: object) -> None:
        super().__init__()
        self.function, self.more = function, more

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors, *self.more)


class First(nn.Module):
    """A module that returns only the first of what another one returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: Tensor) -> Tensor:
        return first(self.module(*tensors))


@dataclass
class Case:
    """What a kernel serves."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    place: Where = Where.CPU
    batched: bool = True
    """The first axis of all inputs is a batch, whose items do not see one another."""
    prepare: Callable[[pytest.MonkeyPatch], object] = field(default=lambda _patch: None)

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        module = self.build().eval()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        return module

    def inputs(self, **options: Any) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        return tuple(torch.randn(shape, **options) for shape in self.shapes)


def bins(*, overlapping: bool) -> Bins:
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, 1:4] = mask[1, 4:7] = mask[2, 7:8] = True
    if overlapping:
        mask[1, 2:] = True
    return Bins(mask)


def install_sage(patch: pytest.MonkeyPatch) -> None:
    """Let softmax written out stand for SageAttention, which needs a GPU."""

    def sageattn(q: Tensor, k: Tensor, v: Tensor, *, tensor_layout: str, is_causal: bool, sm_scale: float) -> Tensor:
        assert (tensor_layout, is_causal) == ("HND", False)
        return (q @ k.mT * sm_scale).softmax(-1) @ v

    patch.setitem(__import__("sys").modules, "sageattention", SimpleNamespace(sageattn=sageattn))
    patch.setattr(scaledDotProduct, "_why_not_sage", lambda *_tensors: None)


def make_all_long(patch: pytest.MonkeyPatch) -> None:
    """Give sequences of any length to the kernel for long ones, as on a processor with few cores and AVX-512."""
    patch.setattr(scaledDotProduct, "SHORT", 0)
    patch.setattr(scaledDotProduct, "ROWS_OF_SCORES", 3)
    patch.setattr(torch, "get_num_threads", lambda: 2)
    patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")


def make_blocks_small(patch: pytest.MonkeyPatch) -> None:
    """Have a few frames normalised at a time, as if there were many."""
    patch.setattr(convolutions, "NUMBERS_PER_BLOCK", 100)


QKV = ((3, 2, 7, 4),) * 3
MASKS = ((2, 3, 4, 7, 2, 2),)
TOKENS = ((2, 4, len(WIDTHS), 6),)
CASES: dict[str, Case] = {
    "complex_operator": Case(partial(Function, complex_product), ((3, 4, 2), (3, 4, 2))),
    "sage": Case(
        partial(Function, scaled_dot_product, SOFTMAX._replace(sage_attention=True)), QKV, prepare=install_sage
    ),
    "by_heads": Case(partial(Function, scaled_dot_product, SOFTMAX), QKV),
    "by_sequences": Case(partial(Function, scaled_dot_product, SOFTMAX), QKV, prepare=make_all_long),
    "fused": Case(partial(Function, scaled_dot_product, SOFTMAX), QKV, place=Where.DEVICE),
    "fused_twice": Case(
        partial(Function, scaled_dot_product, SOFTMAX, windowed_sinks(7, 3, 1, torch.empty(0))),
        QKV,
        place=Where.DEVICE,
    ),
    "attention": Case(lambda: Attention(6, ATTENTION, positions=RotaryEmbedding(4)), ((3, 7, 6),)),
    "feed_forward": Case(partial(FeedForward, 6), ((3, 7, 6),)),
    "by_blocks": Case(
        lambda: Transformer(6, ParametersTransformer(ATTENTION), depth=2, positions=RotaryEmbedding(4)),
        ((5, 7, 6),),
        prepare=lambda patch: patch.setattr(transformer, "TOKENS_PER_BLOCK", 14),
    ),
    "split_by_groups": Case(partial(BandSplit, 6, WIDTHS), ((2, 4, sum(WIDTHS)),), place=Where.DEVICE),
    "masks_by_groups": Case(Stems, TOKENS, place=Where.DEVICE),
    "masks_by_bands": Case(Stems, TOKENS),
    "mask_by_groups": Case(partial(MaskEstimator, 6, WIDTHS, mask_estimator_depth=2), TOKENS, place=Where.DEVICE),
    "mask_by_bands": Case(partial(MaskEstimator, 6, WIDTHS, mask_estimator_depth=2), TOKENS),
    "gather_slice": Case(lambda: Function(bins(overlapping=False).gather), ((2, 4, 9, 2, 2),)),
    "gather_runs": Case(lambda: Function(bins(overlapping=True).gather), ((2, 4, 9, 2, 2),)),
    "average_slice": Case(lambda: Function(bins(overlapping=False).average), MASKS),
    "average_runs": Case(lambda: Function(bins(overlapping=True).average), ((2, 3, 4, 11, 2, 2),)),
    "spectral_l1_with_gradient": Case(partial(Function, spectral_l1, LOSS), ((3, 50),), batched=False),
    "pointwise_in_place": Case(lambda: Conv(4, 6), ((2, 4, 9, 7),), prepare=make_blocks_small),
    "separable_in_place": Case(lambda: DSConv(4, 6, stride=(2, 1)), ((2, 4, 9, 7),), prepare=make_blocks_small),
    "time_freq_in_place": Case(lambda: TimeFreqConvolutions(4, 8), ((2, 4, 9, 8),), prepare=make_blocks_small),
    "shuffle_pixels": Case(lambda: Function(lambda pixels: shuffle(pixels.permute(0, 3, 1, 2))), ((2, 5, 7, 4),)),
}
LAYERS = ("attention", "feed_forward", "by_blocks", "split_by_groups", *(name for name in CASES if name[:4] == "mask"))
"""Kernels that do not call the modules inside."""

IN_PLACE = ("pointwise_in_place", "separable_in_place", "time_freq_in_place")
"""Kernels of layers that overwrite what the modules inside made."""

WITHOUT_GRADIENT = ("by_sequences", *IN_PLACE)
"""Kernels that serve where no gradient is recorded, and leave all else to others."""

each_kernel = pytest.mark.parametrize("name", [name for name in CASES if name not in WITHOUT_GRADIENT])
each_layer = pytest.mark.parametrize("name", LAYERS)


@pytest.fixture(params=[True, False], ids=["oneDNN", "no oneDNN"], autouse=True)
def _products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Without oneDNN layers take the path of a GPU and of ARM."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It sets options of other processors as well.
        flags = torch.backends.mkldnn.flags(enabled=request.param)
        flags.__enter__()
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags.__exit__(None, None, None)


@pytest.fixture
def ran(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Prepare the case, and collect the names of the kernels that serve calls."""
    case = CASES[name]
    with noting_kernels() as served:
        case.prepare(monkeypatch)
        monkeypatch.setattr(seam, "where_of", lambda _tensors: case.place)
        yield served


def first(out: Any) -> Tensor:
    return out if isinstance(out, Tensor) else out[0]


def scalar(module: nn.Module, *inputs: Tensor) -> Tensor:
    """Return a number that depends on every entry of the output in another way."""
    out = first(module(*inputs))
    return (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)).sum()


def trained(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def gradients(module: nn.Module, inputs: tuple[Tensor, ...], function: Callable[..., Tensor] = scalar) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    return list(torch.autograd.grad(function(module, *leaves), [*leaves, *trained(module)]))


def close(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_every_kernel_has_a_case() -> None:
    assert CASES.keys() == KERNELS.keys()


@each_kernel
def test_kernel_serves_its_case_and_gives_the_values_and_gradients_of_the_formula(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs()
    out, grads = first(module(*inputs)), gradients(module, inputs)
    assert name in ran
    ran.clear()
    with reference():
        expected, expected_grads = first(module(*inputs)), gradients(module, inputs)
    assert ran == []
    close(out, expected)
    close(grads, expected_grads, 1e-4)


@pytest.mark.parametrize("name", WITHOUT_GRADIENT)
def test_kernel_without_gradient_gives_the_values_of_the_formula_where_it_serves(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs()
    with torch.no_grad():
        out = module(*inputs)
    assert (name in ran) is bool(torch.backends.mkldnn.enabled)
    ran.clear()
    gradients(module, inputs)
    module.double()(*CASES[name].inputs(dtype=torch.float64))
    assert name not in ran
    with reference():
        close(out, CASES[name].module()(*inputs))


def hooked(part: nn.Module) -> None:
    part.register_forward_hook(lambda _module, _args, out: 2 * out)


def patched(part: nn.Module) -> None:
    original = part.forward
    part.forward = lambda x: 2 * original(x)


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("change", [hooked, patched])
def test_changes_of_modules_inside_take_part_without_gradient(
    name: str, change: Callable[[nn.Module], None], ran: list[str]
) -> None:
    inputs = CASES[name].inputs()
    parts = [key for key, part in CASES[name].module().named_modules() if isinstance(part, (nn.SiLU, nn.Conv2d))]
    for key in parts:
        module = CASES[name].module()
        change(module.get_submodule(key))
        with torch.no_grad():
            out = module(*inputs)
            with reference():
                close(out, module(*inputs))
    assert parts
    assert ran == []


@pytest.mark.parametrize(
    "build",
    [
        lambda: Conv(4, 6),
        lambda: DSConv(4, 6),
        lambda: DSConv(4, 6, stride=(2, 2)),
        lambda: TimeFreqConvolutions(4, 8),
    ],
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["separable_in_place"])
def test_convolutions_in_place_are_as_exact_as_the_formula_and_leave_their_input(
    build: Callable[[], nn.Module], memory_format: Any, ran: list[str]
) -> None:
    module = Case(build, ()).module()
    with torch.no_grad():
        x = (torch.randn(3, 4, 50, 8) + torch.tensor([0.0, 5.0, -30.0, 100.0])[:, None, None]).contiguous(
            memory_format=memory_format
        )
        before = x.clone()
        out = module(x)
        served = list(ran)
        assert torch.equal(x, before)
        with reference():
            by_formula, exact = module(x), module.double()(x.double())
    assert bool(served) is bool(torch.backends.mkldnn.enabled)
    assert (out - exact).abs().max() <= 3 * (by_formula - exact).abs().max() + 1e-6


@each_kernel
def test_kernel_takes_double_precision(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module().double(), CASES[name].inputs(dtype=torch.float64)
    grads = gradients(module, inputs)
    with reference():
        close(grads, gradients(module, inputs), 1e-6)  # rotary frequencies stay float32
    assert name in ran


@each_kernel
def test_kernel_keeps_no_more_for_the_backward_pass_than_the_formula(
    name: str, ran: list[str], bytes_saved_for_backward: Callable[[], AbstractContextManager[dict[int, int]]]
) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs(requires_grad=True)
    sizes: list[int] = []
    for within in (reference, None):
        with within() if within else torch.enable_grad(), bytes_saved_for_backward() as saved:
            kept = scalar(module, *inputs)
        sizes.append(sum(saved.values()))
        del kept
    assert name in ran
    # Groups cost padding of bands, to at most twice their width; bands one copy of their tokens for all stems.
    copies = sum(4 * tensor.numel() for tensor in inputs) if "by_bands" in name else 0
    assert sizes[1] <= sizes[0] * (2.0 if "groups" in name else 1.0) + 1.5 * copies


@each_kernel
def test_graph_made_by_a_kernel_can_be_differentiated_again(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs()

    def penalty(module: nn.Module, *leaves: Tensor) -> Tensor:
        grads = torch.autograd.grad(scalar(module, *leaves), [*leaves, *trained(module)], create_graph=True)
        return scalar(module, *leaves) + sum(grad.square().sum() for grad in grads)

    second = gradients(module, inputs, penalty)
    assert name in ran
    with reference():
        close(second, gradients(module, inputs, penalty), 1e-3)


@pytest.mark.parametrize("name", ["fused_twice"])
def test_second_derivatives_of_attention_are_those_of_differences(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module().double(), CASES[name].inputs(dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(module, inputs)
    assert name in ran


@each_kernel
def test_functions_of_torch_func_see_the_formula(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs()
    with reference():
        expected = gradients(module, inputs)
    parameters = dict(module.named_parameters())

    def call(parameters: dict[str, Tensor], *tensors: Tensor) -> Tensor:
        out = first(torch.func.functional_call(module, parameters, tensors))
        return (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view(out.shape)).sum()

    grads = torch.func.grad(call, argnums=tuple(range(len(inputs) + 1)))(parameters, *inputs)
    close([*grads[1:], *(grads[0][key] for key, p in parameters.items() if p.requires_grad)], expected, 1e-4)
    assert ran == []


@each_kernel
def test_ensembles_and_samples_go_through_vmap(name: str, ran: list[str]) -> None:
    case = CASES[name]
    models, inputs = [case.module(), copy.deepcopy(case.module())], case.inputs()
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(1.1)
    expected = [first(model(*inputs)) for model in models]
    ran.clear()
    parameters, buffers = torch.func.stack_module_state(models) if trained(models[0]) else ({}, {})

    # PyTorch leaves what it swapped in a module that is shared within a model, as position embeddings are.
    skeleton = copy.deepcopy(models[0])

    def call(parameters: Any, buffers: Any, *tensors: Tensor) -> Tensor:
        return first(torch.func.functional_call(skeleton, (parameters, buffers), tensors))

    if parameters:
        outs = torch.func.vmap(call, in_dims=(0, 0, *[None] * len(inputs)))(parameters, buffers, *inputs)
        close(outs, torch.stack(expected))
    if case.batched:
        by_sample = torch.func.vmap(lambda *one: first(models[0](*(t[None] for t in one)))[0])(*inputs)
        close(by_sample, expected[0])
    assert ran == []


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is (deprecated|not supported)")  # PyTorch's own use of it
@each_kernel
def test_tangents_of_forward_mode_are_those_of_differences(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module().double(), CASES[name].inputs(dtype=torch.float64)
    tangents, step = tuple(torch.randn_like(tensor) for tensor in inputs), 1e-6
    with torch.no_grad():
        ahead, behind = (
            first(module(*(x + sign * step * t for x, t in zip(inputs, tangents, strict=True)))) for sign in (1, -1)
        )
        ran.clear()
        with forward_ad.dual_level():
            duals = map(forward_ad.make_dual, inputs, tangents)
            tangent = forward_ad.unpack_dual(first(module(*duals))).tangent
        close(torch.func.jvp(lambda *x: first(module(*x)), inputs, tangents)[1], tangent, 1e-9)
    assert ran == []
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-4)


@each_kernel
def test_gradients_survive_selective_activation_checkpointing(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs()
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default]

    def policy(_context: object, operator: object, *_args: object, **_kwargs: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operator in kept else CheckpointPolicy.PREFER_RECOMPUTE

    def selective(module: nn.Module, *leaves: Tensor) -> Tensor:
        contexts = partial(create_selective_checkpoint_contexts, policy)
        return checkpoint(partial(scalar, module), *leaves, use_reentrant=False, context_fn=contexts)

    close(gradients(module, inputs, selective), gradients(module, inputs), 1e-4)

    def whole(module: nn.Module, *leaves: Tensor) -> Tensor:
        return checkpoint(partial(scalar, module), *leaves, use_reentrant=False)

    ran.clear()
    close(gradients(module, inputs, whole), gradients(module, inputs), 1e-4)
    assert name in ran


def test_a_checkpoint_computes_again_as_in_its_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "by_blocks"
    module, inputs = CASES[name].module(), CASES[name].inputs()

    def in_checkpoint(within: Callable[[], AbstractContextManager[object]]) -> list[Tensor]:
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        with within():
            out = checkpoint(partial(scalar, module), *leaves, use_reentrant=False)
        first_time = torch.autograd.grad(out, [*leaves, *trained(module)], retain_graph=True)
        again = torch.autograd.grad(out, [*leaves, *trained(module)])
        close(first_time, again, 0)
        return list(again)

    def partly(module: nn.Module, *leaves: Tensor) -> Tensor:
        with reference():
            out = first(module(*leaves))
        return scalar(module, out)

    expected = gradients(module, inputs)
    for within in (reference, partial(FlopCounterMode, display=False), torch.enable_grad):
        close(in_checkpoint(within), expected, 1e-4)
    whole = partial(checkpoint, partly, use_reentrant=False)
    close(gradients(module, inputs, whole), gradients(module, inputs, partly), 1e-5)
    # Where PyTorch does not tell of checkpoints, all is as in any other program: what differs is an error.
    monkeypatch.setattr(internals, "running_checkpoint", lambda: None)
    close(in_checkpoint(torch.enable_grad), expected, 1e-4)
    with pytest.raises(torch.utils.checkpoint.CheckpointError):
        in_checkpoint(reference)


@each_kernel
def test_modes_that_count_operators_count_those_of_the_formula(name: str, ran: list[str]) -> None:
    module, inputs, counts = CASES[name].module(), CASES[name].inputs(), []
    for within in (reference, torch.enable_grad):
        # Of PyTorch's attention backends on a CPU the counter knows this one alone.
        with within(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            scalar(module, *inputs)
        counts.append(counter.get_total_flops())
    if "groups" in name:  # made of ordinary operators, on padded bands
        assert counts[0] <= counts[1] <= 2 * counts[0]
    else:
        assert counts[0] == counts[1]
    assert all(KERNELS[one].ordinary for one in ran)


@each_layer
def test_profiler_counts_the_operations_of_every_product(name: str, ran: list[str]) -> None:
    module, inputs, counts = CASES[name].module(), CASES[name].inputs(), []
    products = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
    for within in (reference, torch.enable_grad):
        with within(), torch.no_grad(), torch.profiler.profile(with_flops=True, record_shapes=True) as profile:
            module(*inputs)
        counts.append(sum(event.flops for event in profile.key_averages() if event.key in products))
    assert counts[0] > 0
    assert counts[0] <= counts[1] <= 2 * counts[0]
    assert name in ran


@pytest.mark.filterwarnings("ignore:`torch.jit.trace", "ignore::torch.jit.TracerWarning")
@each_kernel
def test_trace_takes_longer_inputs_too(name: str, ran: list[str]) -> None:
    case = CASES[name]
    module, inputs = case.module(), case.inputs()
    traced = torch.jit.trace(First(module), inputs, check_trace=False)
    longer = tuple(torch.cat([tensor, tensor.flip(0)]) for tensor in inputs) if case.batched else inputs
    close(traced(*longer), first(module(*longer)))
    if name in ("attention", "by_blocks", "feed_forward"):
        longer = tuple(torch.cat([tensor, tensor.flip(1), tensor], dim=1) for tensor in inputs)
        close(traced(*longer), first(module(*longer)))


@each_kernel
def test_autocast_gives_the_dtype_and_the_values_of_the_formula(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs()
    with torch.autocast("cpu", torch.bfloat16):
        out, grads = first(module(*inputs)), gradients(module, inputs)
        with reference():
            expected, expected_grads = first(module(*inputs)), gradients(module, inputs)
    assert out.dtype == expected.dtype
    close(out.float(), expected.float(), 0.05)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        assert grad.dtype == wanted.dtype
        assert (grad - wanted).norm() <= 0.05 * wanted.norm() + 0.02


@each_layer
@pytest.mark.parametrize("kind", ["forward", "pre", "backward"])
def test_every_hook_inside_is_called_once_with_the_whole_batch(name: str, kind: str, ran: list[str]) -> None:
    plain, inputs = CASES[name].module(), CASES[name].inputs()
    with reference():
        expected = gradients(plain, inputs)
        probe, wanted = copy.deepcopy(plain), {}
        for key, part in probe.named_modules():
            part.register_forward_hook(lambda _m, _a, out, key=key: wanted.update({key: first(out).shape}))
        probe(*inputs)
    for key in wanted:
        if not key:
            continue
        part, calls = plain.get_submodule(key), []
        if kind == "forward":
            hook = part.register_forward_hook(lambda _m, _args, out, calls=calls: calls.append(first(out).shape))
        elif kind == "pre":
            hook = part.register_forward_pre_hook(lambda _m, _args, calls=calls: calls.append(None))
        else:
            hook = part.register_full_backward_hook(lambda _m, _ins, outs, calls=calls: calls.append(outs[0].shape))
        with hook:
            close(gradients(plain, inputs), expected, 1e-4)
        times = 2 if "rotary_embed" in key or key == "rotary_embed" else 1
        times = times if name == "by_blocks" else 1  # layers of a transformer share it
        assert calls == [wanted[key] if kind != "pre" else None] * times, key


@each_layer
@pytest.mark.parametrize("way", ["instance", "class"])
def test_patched_forwards_inside_take_part(
    name: str, way: str, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, inputs = CASES[name].module(), CASES[name].inputs()
    linears = [key for key, part in plain.named_modules() if type(part) is nn.Linear]
    original = nn.Linear.forward

    def doubled(self: nn.Linear, x: Tensor) -> Tensor:
        return 2 * original(self, x)

    for key in linears if way == "instance" else linears[:1]:
        module = copy.deepcopy(plain)
        with monkeypatch.context() as patch:
            if way == "instance":
                part = module.get_submodule(key)
                part.forward = partial(doubled, part)
            else:
                patch.setattr(nn.Linear, "forward", doubled)
            out = first(module(*inputs))
            with reference():
                expected = first(module(*inputs))
        close(out, expected)
        with reference():
            assert not torch.allclose(expected, first(plain(*inputs)), rtol=1e-3, atol=1e-3)


@each_layer
def test_adapters_of_peft_take_part_and_learn(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs()
    linears = [key for key, part in module.named_modules() if type(part) is nn.Linear]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=linears, init_lora_weights=False), module)
    grads = gradients(module, inputs)
    with reference():
        close(grads, gradients(module, inputs), 1e-4)
    assert any("lora" in key for key, parameter in module.named_parameters() if parameter.requires_grad)
    assert name not in ran


def by_new_storage(part: nn.Module, stored: dict[str, Tensor], *, bring: bool) -> None:
    for key, weight in stored.items():
        part.get_parameter(key).data = weight.clone() if bring else torch.empty(0)


def by_resizing(part: nn.Module, stored: dict[str, Tensor], *, bring: bool) -> None:
    for key, weight in stored.items():
        data = part.get_parameter(key).data
        data.untyped_storage().resize_(4 * weight.numel() if bring else 0)
        if bring:
            data.copy_(weight)


SLOTS: dict[tuple[str, torch.Size], Tensor] = {}
"""The memory that weights of one name and shape share."""


def by_one_slot(part: nn.Module, stored: dict[str, Tensor], *, bring: bool) -> None:
    for key, weight in stored.items():
        slot = SLOTS.setdefault((key, weight.shape), torch.empty_like(weight))
        part.get_parameter(key).data = slot.copy_(weight)


@each_layer
@pytest.mark.parametrize("way", [by_new_storage, by_resizing, by_one_slot])
def test_weights_that_hooks_bring_in_for_each_layer_are_those_used(
    name: str, way: Callable[..., None], ran: list[str]
) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs()
    with reference(), torch.no_grad():
        expected = first(module(*inputs))
    kinds = (Attention, FeedForward) if name == "by_blocks" else (nn.Linear,)
    for part in [part for part in module.modules() if isinstance(part, kinds)]:
        stored = {key: value.detach().clone() for key, value in part.named_parameters() if value.requires_grad}
        part.register_forward_pre_hook(lambda one, _args, stored=stored: way(one, stored, bring=True))
        if way is not by_one_slot:
            way(part, stored, bring=False)
            part.register_forward_hook(lambda one, _args, _out, stored=stored: way(one, stored, bring=False))
    with torch.no_grad():
        for _time in range(2):
            close(first(module(*inputs)), expected)


@each_kernel
def test_exception_in_the_middle_leaves_nothing_behind(name: str, ran: list[str]) -> None:
    module, inputs = CASES[name].module(), CASES[name].inputs()
    expected = first(module(*inputs))
    wrong = tuple(tensor[..., :-1] for tensor in inputs)
    with suppress(RuntimeError, ValueError, IndexError):  # Some take these shapes.
        module(*wrong)
    close(first(module(*inputs)), expected, 0)
    assert not seam.surroundings().off


@each_kernel
def test_threads_do_not_see_one_another(name: str, ran: list[str]) -> None:
    case = CASES[name]
    modules = [case.module() for _thread in range(4)]
    with torch.no_grad():
        for index, module in enumerate(modules):
            for parameter in module.parameters():
                parameter.mul_(1 + index)
    inputs = case.inputs()
    expected, results = [first(module(*inputs)) for module in modules], {}

    def work(index: int) -> None:
        torch.set_num_threads(1)
        results[index] = [first(modules[index](*inputs)) for _time in range(10)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, outs in results.items():
        for out in outs:
            close(out, expected[index])
    assert len(results) == 4


@pytest.mark.parametrize("name", ["attention", "by_blocks"])
@pytest.mark.parametrize("positions", [None, RotaryEmbedding, PolarEmbedding])
@pytest.mark.parametrize("streams", [1, 3])
@pytest.mark.parametrize("mix", [None, "learned", "constant", "swapped"])
def test_options_of_layers_are_served_alike(name: str, positions: Any, streams: int, mix: Any, ran: list[str]) -> None:
    embedding = {
        None: lambda: None,
        RotaryEmbedding: lambda: RotaryEmbedding(4),
        PolarEmbedding: lambda: PolarEmbedding(4, 2),
    }
    options = {"positions": embedding[positions](), "value_residual_mix": mix}
    if name == "attention":
        module: nn.Module = Attention(6, ATTENTION, **options)
        inputs: tuple[Tensor, ...] = (torch.randn(5, 7, 6),)
    else:
        parameters = ParametersTransformer(ATTENTION, ParametersResidual(num_residual_streams=streams))
        module = Transformer(6, parameters, depth=2, keep_values=True, **options)
        inputs = (torch.randn(5 * streams, 7, 6),)
    if mix:
        inputs += (torch.randn(5, 2, 7, 4),)
    out, grads = module(*inputs), gradients(module, inputs)
    assert name in ran
    with reference():
        close(out, module(*inputs))
        close(grads, gradients(module, inputs), 1e-4)
