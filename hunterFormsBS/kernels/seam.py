"""The seam between what a layer is and how it is computed fast.

A layer's method is its formula, in ordinary PyTorch. `served_by` puts kernels in front of it: functions of the same
arguments, with the same results, that are faster on some machine. A kernel runs only where nobody can tell the
difference; elsewhere the method itself runs:

- Kernels are on: not within `reference`, and not `HUNTERFORMSBS_REFERENCE=1` in the environment.
- No transformation of `torch.func` and no forward-mode differentiation is under way.
- No mode and no tracer records operators, and no argument is of a tensor subclass, unless the kernel is `ordinary`: see
  `Kernel`.
- The layers whose weights the kernel uses without calling them are unmodified: see `Layer.is_unmodified_inside`.
- The kernel's own conditions hold, such as those on dtypes: it returns None otherwise.

`KERNELS` lists every kernel by its name, and tests take each through all of this.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Flag, auto
from functools import wraps
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor, nn

from hunterFormsBS.kernels import internals

Method = TypeVar("Method", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "HUNTERFORMSBS_REFERENCE"
"""The environment variable that turns kernels off when it is 1."""


class Where(Flag):
    """Where code runs: eagerly on a CPU, eagerly on another device, or in a graph, compiled or exported."""

    CPU = auto()
    DEVICE = auto()
    GRAPH = auto()
    EAGER = CPU | DEVICE
    EVERYWHERE = EAGER | GRAPH


PLACES = (Where.CPU, Where.DEVICE, Where.GRAPH)


@dataclass(eq=False)
class Kernel:
    """A function that may stand for a method."""

    name: str
    run: Callable[..., Any]
    where: Where
    ordinary: bool
    """It calls no private operator, changes no memory in place and stores what autograd would: modes may record it."""


KERNELS: dict[str, Kernel] = {}
"""Every kernel."""


def kernel(where: Where, *, ordinary: bool = False) -> Callable[[Callable[..., Any]], Kernel]:
    """Make a kernel of a function that takes what the method takes, and returns the same or None.

    Parameters
    ----------
    where : Where
        Where it is useful.
    ordinary : bool
        See `Kernel`.
    """

    def register(function: Callable[..., Any]) -> Kernel:
        made = Kernel(function.__name__, function, where, ordinary)
        made.__doc__ = function.__doc__
        if made.name in KERNELS:
            raise ValueError(f"there are two kernels named {made.name}")
        KERNELS[made.name] = made
        return made

    return register


class Surroundings(NamedTuple):
    """What else is going on while a layer runs."""

    off: bool
    """Kernels are turned off, or a transformation asks for formulas."""
    recorded: bool
    """Something records single operators: a mode or a tracer."""


class _Switch:
    """Whether kernels are on, for the whole process, as PyTorch's own switches of backends are."""

    def __init__(self) -> None:
        self.off = os.environ.get(VARIABLE, "") not in ("", "0")


class _Recomputation(threading.local):
    """What surrounded a forward pass, while the backward pass repeats it in this thread."""

    surroundings: Surroundings | None = None


_switch = _Switch()
_recomputation = _Recomputation()


@contextmanager
def reference() -> Generator[None]:
    """Turn every kernel off: each layer computes its formula as it stands in the source, by PyTorch's own operators.

    Slower, in more memory, and differentiable in every way that PyTorch knows. It holds for the whole process,
    all threads. Setting `HUNTERFORMSBS_REFERENCE=1` in the environment does the same from the start.
    Graphs compiled before keep their kernels until they are compiled again.
    """
    before, _switch.off = _switch.off, True
    try:
        yield
    finally:
        _switch.off = before


def surroundings() -> Surroundings:
    """Find out what is going on around a layer, in eager mode."""
    if _recomputation.surroundings is not None:
        return _recomputation.surroundings
    if _switch.off or not internals.can_ask() or internals.is_transformed():
        return Surroundings(off=True, recorded=True)
    return Surroundings(off=False, recorded=internals.is_recorded())


def repeatable(function: Callable[P, R]) -> Callable[P, R]:
    """Return `function` such that all its calls take the same kernels, those in the backward pass too."""
    if torch.compiler.is_compiling():
        return function
    first = surroundings()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        before, _recomputation.surroundings = _recomputation.surroundings, first
        try:
            return function(*args, **kwargs)
        finally:
            _recomputation.surroundings = before

    return run


def place_of(tensors: Iterable[Tensor]) -> Where:
    """Return where code on these tensors runs."""
    if torch.compiler.is_compiling():
        return Where.GRAPH
    return Where.CPU if all(tensor.device.type == "cpu" for tensor in tensors) else Where.DEVICE


def _permitted(kernels: Sequence[Kernel], tensors: Iterable[Tensor]) -> Sequence[Kernel]:
    """Return the kernels that may run: those whose use nothing outside could notice."""
    if torch.compiler.is_compiling():
        return () if _switch.off else kernels
    if not kernels:
        return ()
    watched = surroundings()
    if watched.off:
        return ()
    if watched.recorded or not all(map(internals.is_simple, tensors)):
        return [one for one in kernels if one.ordinary]
    return kernels


def served_by(*kernels: Kernel) -> Callable[[Method], Method]:
    """Put kernels in front of a method or function: the first that can takes the call, else it runs itself.

    A kernel may pass the keyword argument `prepared`, which holds what it has made for them, to the kernels of the
    layers inside. No method sees it.
    """
    candidates = {place: tuple(one for one in kernels if place in one.where) for place in PLACES}

    def decorate(method: Method) -> Method:
        @wraps(method)
        def served(*args: Any, prepared: object = None, **kwargs: Any) -> Any:
            tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
            chosen = _permitted(candidates[place_of(tensors)], tensors)
            if prepared is not None:
                kwargs["prepared"] = prepared
            for one in chosen:
                out = one.run(*args, **kwargs)
                if out is not None:
                    return out
            kwargs.pop("prepared", None)
            return method(*args, **kwargs)

        return cast(Method, served)

    return decorate


class _Constructor(type):
    """Makes layers that remember which modules their constructor put into them."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        layer = super().__call__(*args, **kwargs)
        layer.modules_made = modules_of(layer)
        return layer


class Layer(nn.Module, metaclass=_Constructor):
    """Base of this package's layers, which can tell whether anybody has changed them."""

    forwards: ClassVar[dict[type[nn.Module], Callable[..., Any]]] = {}
    """`forward` of each known class as it was when the class was made."""

    modules_made: list[tuple[str, type[nn.Module]]]
    """What `modules_of` returned when the constructor was done."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("hunterFormsBS."):
            Layer.forwards[cls] = cls.forward

    @internals.constant_when_compiled
    def is_unmodified_inside(self) -> bool:
        """Tell whether calling the modules inside does what this class, and theirs, say, and nothing else.

        False for anything that someone put in their place or hung on them: other layers, subclasses, LoRA and quantised
        layers, parametrizations, hooks, a patched `forward`, parameters that are tensor subclasses.
        """
        return (
            self.modules_made == modules_of(self)
            and has_simple_parameters(self)
            and not internals.is_watched_everywhere()
            and all(is_unmodified(module) for module in self.modules() if module is not self)
        )

    @internals.constant_when_compiled
    def is_unmodified(self) -> bool:
        """Tell whether calling this layer does what its class says, and nothing else."""
        return is_unmodified(self) and self.is_unmodified_inside()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies and pickles what was compiled."""
        return without_compiled_methods(self)


def without_compiled_methods(module: nn.Module) -> dict[str, Any]:
    """Return the state of `module` for a copy or a pickle, without methods replaced by their compiled selves.

    `module.forward = torch.compile(module.forward)` holds on to `module` and its weights: a copy would run those.
    """
    state = dict(cast("dict[str, Any]", super(nn.Module, module).__getstate__()))
    for name in [name for name, value in state.items() if internals.is_compiled_callable(value)]:
        if hasattr(type(module), name):
            del state[name]
    return state


def modules_of(layer: nn.Module) -> list[tuple[str, type[nn.Module]]]:
    """Return the names and classes of the modules inside `layer`."""
    named = cast("Iterable[tuple[str, nn.Module]]", layer.named_modules())
    return [(name, type(module)) for name, module in named if module is not layer]


def know(*kinds: type[nn.Module]) -> None:
    """Let modules of these classes, which belong to other libraries, be parts of unmodified layers."""
    Layer.forwards.update({kind: kind.forward for kind in kinds})


know(nn.Dropout, nn.GELU, nn.GLU, nn.Identity, nn.Linear, nn.ModuleList, nn.Sequential, nn.Tanh)


def is_unmodified(module: nn.Module) -> bool:
    """Tell whether calling `module`, apart from what is inside, does what its class says and nothing else."""
    kind = type(module)
    return (
        Layer.forwards.get(kind) is kind.forward
        and "forward" not in module.__dict__
        and not internals.has_hooks(module)
        and has_simple_parameters(module)
    )


def has_simple_parameters(module: nn.Module) -> bool:
    """Tell whether no parameter of `module` itself is a tensor subclass."""
    return all(internals.is_simple(p) for p in module.__dict__["_parameters"].values() if p is not None)
