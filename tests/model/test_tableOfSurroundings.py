"""The table of surroundings: every kind of model, the columns, in everything that users put around a model, the rows.

A row is a function of a model, a mixture and stems. It returns numbers under surroundings of its name, and the numbers
that these should be: without them, those of the formulas without surroundings. `tests/model/test_processes.py` has the
rows that need two processes.
"""

from __future__ import annotations

import asyncio
import copy
import importlib.util
import io
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import lightning_fabric
import peft
import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hunterFormsBS import BandSplitRotator
from hunterFormsBS.attend import Attention, FeedForward
from hunterFormsBS.kernels.seam import reference
from tests.configurations import COLUMNS

SAMPLES = 480
Numbers = dict[str, Tensor]
Row = Callable[[BandSplitRotator, Tensor, Tensor], "Numbers | tuple[Numbers, Numbers]"]


@dataclass(frozen=True)
class Surrounding:
    """A row: a function, the largest difference relative to the largest number, and columns that cannot be."""

    run: Row
    tolerance: float
    marks: tuple[pytest.MarkDecorator, ...]
    is_lossy: bool
    """Formulas lose precision as well: kernels may lose twice as much."""
    cannot: dict[str, str] = field(default_factory=dict)
    """Why not, by columns; `docs/training.md` says so too."""


ROWS: dict[str, Surrounding] = {}


def row(
    name: str,
    *marks: pytest.MarkDecorator,
    tolerance: float = 1e-4,
    is_lossy: bool = False,
    needs: str = "",
    cannot: dict[str, str] | None = None,
) -> Callable[[Row], Row]:
    """Add a row to the table."""

    def add(run: Row) -> Row:
        is_lacking = bool(needs) and importlib.util.find_spec(needs) is None
        lacking = pytest.mark.skipif(is_lacking, reason=f"{needs} is not installed")
        ROWS[name] = Surrounding(run, tolerance, (*marks, *([lacking] if needs else [])), is_lossy, cannot or {})
        return run

    return add


class Column(NamedTuple):
    """A model, a mixture and stems."""

    model: BandSplitRotator
    x: Tensor
    y: Tensor
    by_formula: Numbers
    """What the formulas make of them."""
    error: float
    """How far that is from double precision: layers such as norms over few numbers amplify."""


@cache
def column(name: str) -> Column:
    """Return a small model of this kind, and its data."""
    torch.manual_seed(0)
    model = BandSplitRotator(**COLUMNS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn_like(parameter))
    y = torch.randn(2, model.num_stems, model.audio_channels, SAMPLES)
    x = y.sum(1)
    with reference():
        by_formula = both(copy.deepcopy(model), x, y)
        exact = both(copy.deepcopy(model).double(), x.double(), y.double())
    return Column(model, x, y, by_formula, difference(by_formula, exact))


def difference(actual: Numbers, expected: Numbers) -> float:
    """Return the largest difference of audio, of the loss and of gradients, relative to the largest of its kind."""
    apart = ("audio", "loss")
    actual, expected = ({name: value.detach() for name, value in numbers.items()} for numbers in (actual, expected))
    largest = max([float(expected[name].abs().max()) for name in actual if name not in apart], default=0.0)
    return max(
        float((value - expected[name]).abs().max()) / (float(expected[name].abs().max()) if name in apart else largest)
        for name, value in actual.items()
    )


def learn(model: nn.Module, x: Tensor, y: Tensor) -> Numbers:
    """Return the loss and the gradients."""
    model.zero_grad()
    loss = model(x, y)
    loss.backward()
    grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **grads}


def listen(model: nn.Module, x: Tensor) -> Numbers:
    with torch.no_grad():
        return {"audio": model(x)}


def both(model: nn.Module, x: Tensor, y: Tensor) -> Numbers:
    return {**listen(model, x), **learn(model, x, y)}


def with_formulas(numbers: Callable[..., Numbers], model: nn.Module, *data: Tensor) -> tuple[Numbers, Numbers]:
    """Return numbers by kernels, and by formulas in the same surroundings."""
    actual = numbers(model, *data)
    with reference():
        return actual, numbers(model, *data)


def cells() -> list[Any]:
    """Return every cell. Each row has one that is not exhaustive, and so has each column."""
    made = []
    for (index, one), (number, name) in product(enumerate(ROWS), enumerate(COLUMNS)):
        is_quick = index % len(COLUMNS) == number
        marks = ROWS[one].marks if is_quick else (*ROWS[one].marks, pytest.mark.exhaustive)
        made.append(pytest.param(one, name, marks=marks, id=f"{one}-{name}"))
    return made


# ---- PyTorch in eager mode


@row("kernels", tolerance=1e-4)
def _kernels(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    return both(model, x, y)


@row("activation checkpointing of the model")
def _checkpointing(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    twin = BandSplitRotator(**{**model.configuration, "use_torch_checkpoint": True}).eval()
    twin.load_state_dict(model.state_dict())
    return both(twin, x, y)


@row("checkpoint around the model")
def _checkpoint(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    loss = checkpoint(model, x, y, use_reentrant=False)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@row("checkpoint with only its forward pass in reference mode")
def _checkpoint_in_reference(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    with reference():
        loss = checkpoint(model, x, y, use_reentrant=False)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@row("checkpoint with only its forward pass counted")
def _checkpoint_counted(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    with FlopCounterMode(display=False):
        loss = checkpoint(model, x, y, use_reentrant=False)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@row("autocast", tolerance=0.05, is_lossy=True)
def _autocast(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return with_formulas(learn, model, x, y)


@row("bfloat16 module", tolerance=0.05, is_lossy=True)
def _bfloat16(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    return with_formulas(listen, model.bfloat16(), x)


FEW_CHANNELS = "with AVX512_FP16, oneDNN never ends a depthwise convolution of float16 over 16 channels or fewer"
FEW_PIXELS = "instance norms over a few pixels amplify rounding a thousandfold: no digit of a half would be left"


@row(
    "half module",
    tolerance=0.02,
    is_lossy=True,
    cannot={"HyperACE v1": FEW_PIXELS, "HyperACE v2": FEW_PIXELS, "Conformer": FEW_CHANNELS},
)
def _half(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    return with_formulas(listen, model.half(), x)


@row("deterministic algorithms")
def _deterministic(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    torch.use_deterministic_algorithms(True)
    try:
        return both(model, x, y)
    finally:
        torch.use_deterministic_algorithms(False)


@row("default dtype", tolerance=1e-6)
def _default_dtype(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    torch.set_default_dtype(torch.float64)
    try:
        twin = BandSplitRotator(**model.configuration).eval()
        twin.load_state_dict(model.state_dict())
        return with_formulas(both, twin, x.double(), y.double())
    finally:
        torch.set_default_dtype(torch.float32)


@row("default device")
def _default_device(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    with torch.device("meta"):
        return both(model, x, y)


@row("torch.func")
def _func(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: Numbers) -> Tensor:
        return torch.func.functional_call(model, parameters, (x, y))  # type: ignore[no-any-return]

    return torch.func.grad(loss)(trained)


@row("forward mode", tolerance=1e-6)
def _forward_mode(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    model, direction = model.double(), torch.randn_like(x, dtype=torch.float64)
    leaf = x.double().requires_grad_()
    (grad,) = torch.autograd.grad(model(leaf, y.double()), leaf)
    with forward_ad.dual_level(), torch.no_grad():
        loss = model(forward_ad.make_dual(x.double(), direction), y.double())
        return {"tangent": forward_ad.unpack_dual(loss).tangent}, {"tangent": (grad * direction).sum()}


@row("gradients of gradients", tolerance=1e-3)
def _penalty(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    def penalised(model: nn.Module, x: Tensor, y: Tensor) -> Numbers:
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf, y), leaf, create_graph=True)
        (1e3 * grad).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    return with_formulas(penalised, model, x, y)


@row("saved-tensor hooks")
def _saved(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (t.shape, t.flatten().clone()), lambda s: s[1].view(s[0])):
        return learn(model, x, y)


@row("operators counted")
def _counted(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    with FlopCounterMode(display=False):
        return both(model, x, y)


@row("swapped tensors", tolerance=1e-6)
def _swapped(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return with_formulas(both, model.double(), x.double(), y.double())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@row("memory-mapped weights")
def _mapped(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    path = Path(FOLDER[0]) / "weights.pt"
    torch.save(model.state_dict(), path)
    with torch.device("meta"):
        empty = BandSplitRotator(**model.configuration).eval()
    empty.load_state_dict(torch.load(path, mmap=True, weights_only=True), assign=True)
    return both(empty, x, y)


@row("optimizer in the backward pass")
def _optimizer_in_backward(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    twin = copy.deepcopy(model)
    torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], 0.01).zero_grad()
    learn(twin, x, y)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.01 * parameter.grad)

    def step(parameter: Tensor) -> None:
        with torch.no_grad():
            parameter.sub_(0.01 * parameter.grad)
        parameter.grad = None

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(step)
    model(x, y).backward()
    return dict(model.named_parameters()), dict(twin.named_parameters())


@row("copies, averages, pickles")
def _copies(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    averaged = AveragedModel(copy.deepcopy(model), use_buffers=True)
    averaged.update_parameters(model)
    file = io.BytesIO()
    torch.save(averaged.module, file)
    file.seek(0)
    return both(pickle.loads(pickle.dumps(torch.load(file, weights_only=False))), x, y)


STAYS_ONE = "layers share what is trained, and the state dict has no copies of it"
SHARES_TRAINED = {"PoPE": STAYS_ONE, "RoFormer with shared biases": STAYS_ONE}


@row("weights written by safetensors", cannot=SHARES_TRAINED)
def _safetensors(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    from safetensors.torch import load_file, save_file

    path = Path(FOLDER[0]) / "weights.safetensors"
    save_file(model.state_dict(), path)
    twin = BandSplitRotator(**model.configuration).eval()
    twin.load_state_dict(load_file(path))
    return both(twin, x, y)


@row("threads")
def _threads(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    with ThreadPoolExecutor(3) as pool:
        outs = list(pool.map(lambda one: listen(model, one)["audio"], (x[:1], x[1:], x)))
    return {"audio": torch.cat(outs[:2])}, {"audio": outs[2]}


@row("asyncio")
def _asyncio(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    async def with_reference() -> Tensor:
        with reference():
            await asyncio.sleep(0)
            return listen(model, x)["audio"]

    async def all_at_once() -> list[Tensor]:
        return await asyncio.gather(with_reference(), asyncio.to_thread(lambda: listen(model, x)["audio"]))

    by_formula, actual = asyncio.run(all_at_once())
    return {"audio": actual}, {"audio": by_formula}


CROSSES = "what later groups need of earlier ones does not pass between the halves"


@row(
    "pipeline halves",
    cannot={
        "value residuals": CROSSES,
        "swapped value residuals": CROSSES,
        "linear": CROSSES,  # skip connections
        "streams": "streams are made before the first group, and added after the last",
        "constrained streams": "streams are made before the first group, and added after the last",
        "BS-RoFormer Siamese": "two streams pass between groups",
        "RoFormer with windowed sink attention": "sinks are added before the first group, and taken off after the last",
    },
)
def _halves(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    first, second = copy.deepcopy(model), copy.deepcopy(model)
    first.layers, first.final_norm, second.layers = model.layers[:1], nn.Identity(), model.layers[1:]
    spectrum = first.stft.forward(x)
    tokens = first.transform(first.split_bands(first.gather_bands(spectrum)))
    masks = second.estimate_masks(second.transform(tokens), range(model.num_stems))
    spectra = second.apply_mask(spectrum, second.average_overlaps(masks))
    return {"audio": second.stft.inverse(spectra, x.shape[-1]).detach()}


# ---- other packages


@row("quantize_dynamic", pytest.mark.filterwarnings("ignore"), tolerance=1e-3, is_lossy=True)
def _quantised(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}).to("cpu")
    return with_formulas(listen, quantised, x)


@row("torchao", pytest.mark.exhaustive, needs="torchao", tolerance=1e-3)
def _torchao(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    return with_formulas(listen, model, x)


def adapted(model: BandSplitRotator, configuration: peft.PeftConfig, x: Tensor, y: Tensor) -> Any:
    peft.inject_adapter_in_model(configuration, model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and ("lora" in name or "ia3" in name):
                parameter.add_(0.1 * torch.randn_like(parameter))
    state = model.to(torch.float32).state_dict()
    model.load_state_dict(state, assign=True)
    return with_formulas(learn, model, x, y)


def linears(model: nn.Module) -> list[str]:
    return [
        f"{name}.{key}"
        for name, layer in model.named_modules()
        if isinstance(layer, (Attention, FeedForward))
        for key, part in layer.named_modules()
        if type(part) is nn.Linear
    ]


@row("LoRA")
def _lora(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    return adapted(model, peft.LoraConfig(r=2, target_modules=linears(model)), x, y)


@row("DoRA")
def _dora(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    return adapted(model, peft.LoraConfig(r=2, use_dora=True, target_modules=linears(model)), x, y)


@row("IA3")
def _ia3(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    names = linears(model)
    configuration = peft.IA3Config(target_modules=names, feedforward_modules=[name for name in names if "net" in name])
    return adapted(model, configuration, x, y)


@row("Lightning Fabric")
def _fabric(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    fabric = lightning_fabric.Fabric(accelerator="cpu", devices=1)
    prepared, _ = fabric.setup(model, torch.optim.SGD(model.parameters(), 0.1))
    loss = prepared(x, y)
    fabric.backward(loss)
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@row("accelerate")
def _accelerate(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    accelerator = accelerate.Accelerator(cpu=True)
    prepared, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.1))
    loss = prepared(x, y)
    accelerator.backward(loss)
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@row("offloading by accelerate")
def _offloaded(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    accelerate.cpu_offload(model, torch.device("cpu"))
    return listen(model, x)


@row("Lightning", pytest.mark.exhaustive, needs="lightning")
def _lightning(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    import lightning

    class Training(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def training_step(self, batch: Any, _index: int) -> Tensor:
            return self.model(*batch)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(model.parameters(), 0.01)

    expected = one_step(model, x, y)
    data = torch.utils.data.DataLoader(list(zip(x, y, strict=True)), batch_size=len(x))
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
    )
    lightning.Trainer(accelerator="cpu", max_steps=1, **quiet).fit(Training(), data)
    return dict(model.named_parameters()), expected


@row(
    "Trainer of Hugging Face",
    pytest.mark.exhaustive,
    pytest.mark.filterwarnings("ignore"),
    needs="transformers",
    cannot=SHARES_TRAINED,
)
def _trainer(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    import transformers
    from safetensors.torch import load_file

    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
            return {"loss": self.model(x, y)}

    expected = one_step(model, x, y)
    whole = Training()
    arguments = transformers.TrainingArguments(
        output_dir=str(FOLDER[0]),
        max_steps=1,
        per_device_train_batch_size=len(x),
        use_cpu=True,
        report_to=[],
        learning_rate=0.01,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    data = [{"x": one, "y": other} for one, other in zip(x, y, strict=True)]
    optimizer = torch.optim.SGD(whole.parameters(), 0.01)
    transformers.Trainer(whole, arguments, train_dataset=data, optimizers=(optimizer, None)).train()
    written = load_file(FOLDER[0] / "checkpoint-1" / "model.safetensors")
    return {name: written[f"model.{name}"] for name in expected}, expected


def one_step(model: BandSplitRotator, x: Tensor, y: Tensor) -> Numbers:
    """Return the parameters after one step of SGD, with the formulas."""
    twin = copy.deepcopy(model).train()
    with reference():
        twin(x, y).backward()
    torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], 0.01).step()
    return {name: parameter.detach() for name, parameter in twin.named_parameters()}


@row("DeepSpeed", pytest.mark.exhaustive, pytest.mark.process, needs="deepspeed")
def _deepspeed(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    import deepspeed

    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        config={"train_micro_batch_size_per_gpu": len(x), "optimizer": {"type": "SGD", "params": {"lr": 0.01}}},
    )
    expected = one_step(model, x, y)
    engine.backward(engine.train()(x, y))
    engine.step()
    return dict(model.named_parameters()), expected


@row("Ray actor", pytest.mark.exhaustive, pytest.mark.process, pytest.mark.filterwarnings("ignore"), needs="ray")
def _ray(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    import ray

    if not ray.is_initialized():
        paths = {"PYTHONPATH": str(Path(__file__).parents[2])}
        ray.init(num_cpus=1, include_dashboard=False, runtime_env={"env_vars": paths}, log_to_driver=False)
    stems = ray.remote(listen).remote(model, x)
    return {"audio": torch.as_tensor(ray.get(stems)["audio"]).clone()}


def in_child(model: BandSplitRotator, x: Tensor, answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put(listen(model, x)["audio"].numpy())


def in_process(model: BandSplitRotator, x: Tensor, way: str) -> Numbers:
    listen(model, x)  # what is made on first use is there when the process starts
    context: Any = multiprocessing.get_context(way)
    answers = context.Queue()
    process = context.Process(target=in_child, args=(model, x, answers))
    process.start()
    audio = torch.from_numpy(answers.get(timeout=300))
    process.join()
    return {"audio": audio}


@row("forked process", pytest.mark.process, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"))
def _fork(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    return in_process(model, x, "fork")


@row("spawned process", pytest.mark.process)
def _spawn(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    return in_process(model.share_memory(), x, "spawn")


# ---- graphs: a row of PyTorch's own compiler is slow, so that most use its front end alone


def compiled(model: BandSplitRotator, x: Tensor, y: Tensor, **options: Any) -> Numbers:
    torch.compiler.reset()
    model.mask_spectrum = torch.compile(model.mask_spectrum, **options)  # type: ignore[method-assign]
    return both(model, x, y)


@row("compiled", pytest.mark.compile, pytest.mark.exhaustive)
def _compiled(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    return compiled(model, x, y, backend="aot_eager", fullgraph=True)


@row("compiled for any length", pytest.mark.compile, pytest.mark.exhaustive)
def _compiled_dynamic(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    compiled(model, x[..., :300], y[..., :300], backend="aot_eager", dynamic=True)
    return both(model, x, y)


@row("compiled with activation checkpointing", pytest.mark.compile, pytest.mark.exhaustive)
def _compiled_checkpointing(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    twin = BandSplitRotator(**{**model.configuration, "use_torch_checkpoint": True}).eval()
    twin.load_state_dict(model.state_dict())
    return compiled(twin, x, y, backend="aot_eager")


@row("training step compiled", pytest.mark.compile, pytest.mark.exhaustive)
def _compiled_step(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    torch.compiler.reset()
    step = torch.compile(lambda x, y: model(x, y), backend="aot_eager")
    loss = step(x, y)
    loss.backward()
    return {"loss": loss.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


@row("compiled by Inductor", pytest.mark.compile, pytest.mark.exhaustive)
def _inductor(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    return compiled(model, x, y)


class Masks(nn.Module):
    """Mask estimation as a module, which is what exports."""

    def __init__(self, model: BandSplitRotator) -> None:
        super().__init__()
        self.model = model

    def forward(self, spectrum: Tensor) -> Tensor:
        return self.model.mask_spectrum(spectrum)


def spectra_of(model: BandSplitRotator, masks: Callable[[Tensor], Tensor], x: Tensor) -> Numbers:
    with torch.no_grad():
        return {"audio": model.stft.inverse(masks(model.stft.forward(x)), x.shape[-1])}


@row("exported", pytest.mark.export, pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore"))
def _exported(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    short = model.stft.forward(x[..., :300])
    program = torch.export.export(Masks(model), (short,), dynamic_shapes=({3: torch.export.Dim.AUTO},))
    return spectra_of(model, program.module(), x)


@row("AOTInductor", pytest.mark.export, pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore"))
def _aot_inductor(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    program = torch.export.export(Masks(model), (model.stft.forward(x),))
    path = torch._inductor.aoti_compile_and_package(program, package_path=str(Path(FOLDER[0]) / "model.pt2"))
    return spectra_of(model, torch._inductor.aoti_load_package(path), x)


@row("ONNX", pytest.mark.export, pytest.mark.exhaustive, pytest.mark.filterwarnings("ignore"), tolerance=1e-3)
def _onnx(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    import onnxruntime

    path = str(Path(FOLDER[0]) / "model.onnx")
    torch.onnx.export(Masks(model), (model.stft.forward(x),), path, dynamo=True)
    session = onnxruntime.InferenceSession(path)
    (name,) = [one.name for one in session.get_inputs()]
    return spectra_of(model, lambda s: torch.from_numpy(session.run(None, {name: s.numpy()})[0]), x)


@row("jit.trace", pytest.mark.filterwarnings("ignore"))
def _traced(model: BandSplitRotator, x: Tensor, y: Tensor) -> Any:
    with torch.no_grad():
        traced = torch.jit.trace(Masks(model), model.stft.forward(x[..., :300]), check_trace=False)
    return spectra_of(model, traced, x)


# ---- the table


FOLDER: list[Path] = []
"""Where rows write."""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    FOLDER[:] = [tmp_path]


@pytest.mark.parametrize(("surrounding", "kind"), cells())
def test_numbers_stay_the_same(surrounding: str, kind: str) -> None:
    one = ROWS[surrounding]
    if reason := one.cannot.get(kind):
        pytest.skip(reason)
    model, x, y, by_formula, error = column(kind)
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is (deprecated|not supported)")
        warnings.filterwarnings("ignore", "There is a performance drop")
        result = one.run(copy.deepcopy(model), x.clone(), y.clone())
    actual, expected = result if isinstance(result, tuple) else (result, by_formula)
    assert actual
    assert actual.keys() <= expected.keys()
    assert all(value.isfinite().all() for value in actual.values())
    if one.is_lossy:
        assert difference(actual, by_formula) <= max(one.tolerance, 2 * difference(expected, by_formula))
    else:
        assert difference(actual, expected) <= max(one.tolerance, 5 * error)
