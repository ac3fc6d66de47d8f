"""The seam between layers and their faster equivalents.

A layer's method is its formula, in ordinary PyTorch. `served_by` puts kernels in front of it: functions with the same
arguments and results that are faster on some machines. A kernel runs only if nobody can tell the difference; otherwise
the method itself runs:

- Kernels are on: not within `reference`, and not `HUNTERFORMSBS_REFERENCE=1` in the environment.
- No transformation of `torch.func` and no forward-mode differentiation is active.
- No mode and no tracer records operators, and no argument is a tensor subclass, unless the kernel is `ordinary`: see
  `Kernel`.
- The layers whose weights the kernel uses without calling them are unmodified: see `Layer.is_unmodified_inside`.
- The kernel's own conditions hold, such as those on dtypes: it returns None otherwise.

`KERNELS` lists every kernel by name; tests check each under all these conditions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import Flag, auto
from functools import wraps
from inspect import isfunction
from typing import Any, ClassVar, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from hunterFormsBS.kernels import internals

Method = TypeVar("Method", bound=Callable[..., Any])
P = ParamSpec("P")
R = TypeVar("R")

VARIABLE = "HUNTERFORMSBS_REFERENCE"
"""The environment variable that turns kernels off if it is 1."""


class Where(Flag):
    """Where code runs: in eager mode on a CPU, in eager mode on another device, or in a graph, compiled or exported."""

    CPU = auto()
    DEVICE = auto()
    GRAPH = auto()
    EAGER = CPU | DEVICE
    EVERYWHERE = EAGER | GRAPH


@dataclass(eq=False)
class Kernel:
    """A function that may replace a method."""

    name: str
    run: Callable[..., Any]
    where: Where
    ordinary: bool
    """It calls no private operators, changes nothing in place and stores what autograd would: modes may record it."""


KERNELS: dict[str, Kernel] = {}
"""Every kernel."""


def kernel(where: Where, *, ordinary: bool = False) -> Callable[[Callable[..., Any]], Kernel]:
    """Register a function with the method's arguments, which returns the method's result or None, as a kernel.

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
    """The state of PyTorch around a layer's call."""

    off: bool
    """Kernels are turned off, or a transformation needs formulas."""
    recorded: bool
    """Something records single operators: a mode or a tracer."""


_off_everywhere = os.environ.get(VARIABLE, "") not in ("", "0")
_off_here: ContextVar[bool] = ContextVar("_off_here", default=False)
_repeated: ContextVar[Surroundings | None] = ContextVar("_repeated", default=None)
"""Surroundings of a forward pass, while the backward pass repeats it in this thread."""


@contextmanager
def reference() -> Generator[None]:
    """Turn all kernels off: each layer computes its formula with PyTorch's own operators.

    This is slower, takes more memory, and is differentiable in every way that PyTorch supports. It affects the current
    thread or asynchronous task, and nests. `HUNTERFORMSBS_REFERENCE=1` in the environment affects the whole process.
    Graphs compiled before keep their kernels until they are compiled again.
    """
    token = _off_here.set(True)
    try:
        yield
    finally:
        _off_here.reset(token)


@contextmanager
def noting_kernels() -> Generator[list[str]]:
    """Collect the name of the kernel of each call, in all threads."""
    taken: list[str] = []
    functions = {name: one.run for name, one in KERNELS.items()}

    def noting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            out = function(*args, **kwargs)
            if out is not None:
                taken.append(name)
            return out

        return run

    for name, function in functions.items():
        KERNELS[name].run = noting(name, function)
    try:
        yield taken
    finally:
        for name, function in functions.items():
            KERNELS[name].run = function


@internals.constant_when_compiled
def is_off() -> bool:
    """Tell whether kernels are turned off, in this thread or in the process."""
    return _off_everywhere or _off_here.get()


def surroundings() -> Surroundings:
    """Return the surroundings of a layer's call, in eager mode."""
    if (repeated := _repeated.get()) is not None:
        return repeated
    running = internals.running_checkpoint()
    if running is None:
        return _surroundings_now()
    noted: list[Surroundings] = running.record.setdefault("_hunterFormsBS_surroundings", [])
    if running.repetition is None:
        noted.append(_surroundings_now())
        return noted[-1]
    # The recomputation must store the same tensors as the forward pass; other kernels would not.
    to_repeat = running.repetition.setdefault("_hunterFormsBS_surroundings", iter(tuple(noted)))
    return next(to_repeat, None) or _surroundings_now()


def _surroundings_now() -> Surroundings:
    if is_off() or not internals.can_ask() or internals.is_transformed():
        return Surroundings(off=True, recorded=True)
    return Surroundings(off=False, recorded=internals.is_recorded())


def repeatable(function: Callable[P, R]) -> Callable[P, R]:
    """Wrap `function` so that all its calls, including those in the backward pass, use the same kernels."""
    if torch.compiler.is_compiling():
        return function
    first = surroundings()

    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        token = _repeated.set(first)
        try:
            return function(*args, **kwargs)
        finally:
            _repeated.reset(token)

    return run


def where_of(tensors: Iterable[Tensor]) -> Where:
    """Return where code on these tensors runs."""
    if torch.compiler.is_compiling():
        return Where.GRAPH
    return Where.CPU if all(tensor.device.type == "cpu" for tensor in tensors) else Where.DEVICE


def _permitted(kernels: Sequence[Kernel], tensors: Iterable[Tensor]) -> Sequence[Kernel]:
    """Return the kernels that may run because nothing outside could notice."""
    if torch.compiler.is_compiling():
        return () if is_off() else kernels
    if not kernels:
        return ()
    watched = surroundings()
    if watched.off:
        return ()
    if watched.recorded or not all(map(internals.is_simple, tensors)):
        return [one for one in kernels if one.ordinary]
    return kernels


def served_by(*kernels: Kernel) -> Callable[[Method], Method]:
    """Put kernels in front of a method or function: the first that can takes the call; otherwise it runs itself.

    A kernel may pass the keyword argument `prepared` to the kernels of inner layers. Methods never get it.
    """
    candidates = {where: tuple(one for one in kernels if where in one.where) for where in Where}

    def decorate(method: Method) -> Method:
        @wraps(method)
        def served(*args: Any, prepared: object = None, **kwargs: Any) -> Any:
            tensors = [arg for arg in (*args, *kwargs.values()) if isinstance(arg, Tensor)]
            chosen = _permitted(candidates[where_of(tensors)], tensors)
            if prepared is not None:
                kwargs["prepared"] = prepared
            for one in chosen:
                out = one.run(*args, **kwargs)
                if out is not None:
                    return out
            kwargs.pop("prepared", None)
            return method(*args, **kwargs)

        vars(served)["kernels"] = kernels
        return cast(Method, served)

    return decorate


class Served(Protocol):
    """The part of a layer that the seam uses. Each kernel has its own protocol for the layers that it uses."""

    def is_unmodified_inside(self) -> bool:
        """Tell whether the modules inside are unchanged since the constructor."""
        ...

    def likeness(self, kernel_name: str) -> int | None:
        """Return a value that is equal for layers that this kernel serves and whose modules have equal shapes."""
        ...


def are_served_alike(by: Kernel, layers: Sequence[Served]) -> bool:
    """Tell whether a kernel may compute several layers at once: it serves each, and they have equal shapes."""
    first, *others = [layer.likeness(by.name) for layer in layers]
    return first is not None and all(other == first for other in others)


class Part(NamedTuple):
    """A module inside a layer: its name, its class, and the names and shapes of its own parameters."""

    name: str
    kind: type[nn.Module]
    shapes: tuple[tuple[str, torch.Size | None], ...]


class _Constructor(type):
    """Metaclass: makes layers remember the modules that their constructor made."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        layer = super().__call__(*args, **kwargs)
        layer.modules_made = _parts_of(_modules_inside(layer))
        return layer


class Layer(nn.Module, metaclass=_Constructor):
    """Base of this package's layers, which detects changes to them."""

    methods: ClassVar[dict[type[nn.Module], Mapping[str, Callable[..., Any]]]] = {}
    """The methods of each known class when it was registered."""

    modules_made: list[Part]
    """The modules inside when the constructor ended."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.startswith("hunterFormsBS."):
            know(cls)

    def is_unmodified_inside(self) -> bool:
        """Tell whether the modules inside do exactly what this class and their classes define.

        False for any replacement or addition: other layers, subclasses, LoRA and quantised layers, parametrizations,
        hooks, patched methods, parameters of other shapes or of tensor subclasses. Of the layer itself, methods other
        than `forward` count too, because the kernel of `forward` would have to call them.
        """
        return _look_at_forwards(self) and self._is_unmodified_inside()

    @internals.constant_when_compiled
    def _is_unmodified_inside(self) -> bool:
        inside = _modules_inside(self)
        return (
            has_own_methods(self, but="forward")
            and self.modules_made == _parts_of(inside)
            and has_simple_parameters(self)
            and not internals.is_watched_everywhere()
            and all(is_unmodified(module) for _, module in inside)
        )

    def is_unmodified(self) -> bool:
        """Tell whether this layer does exactly what its class defines."""
        return _look_at_forwards(self) and self._is_unmodified()

    @internals.constant_when_compiled
    def _is_unmodified(self) -> bool:
        return is_unmodified(self) and self._is_unmodified_inside()

    def likeness(self, kernel_name: str) -> int | None:
        """Return a number that is equal only for layers whose modules have equal classes and shapes.

        None if the kernel of this name does not compute what the layer does: its `forward` has other kernels, or it was
        changed.
        """
        return self._likeness(kernel_name) if _look_at_forwards(self) else None

    @internals.constant_when_compiled
    def _likeness(self, kernel_name: str) -> int | None:
        kernels: Sequence[Kernel] = getattr(type(self).forward, "kernels", ())
        is_served = kernel_name in [one.name for one in kernels]
        return hash(tuple(self.modules_made)) if is_served and self._is_unmodified() else None

    def __getstate__(self) -> dict[str, Any]:
        """Leave compiled methods out of copies and pickles."""
        return without_compiled_methods(self)


def _look_at_forwards(layer: nn.Module) -> bool:
    """Read the `forward` of all modules inside while a graph is made, and return True.

    The compiler guards what it has read, so it compiles again if such a module or its `forward` is replaced, as with
    PyTorch's own modules.
    """
    return not torch.compiler.is_compiling() or all(callable(module.forward) for module in layer.modules())


def without_compiled_methods(module: nn.Module) -> dict[str, Any]:
    """Return the state of `module` for a copy or a pickle, without compiled methods.

    `module.forward = torch.compile(module.forward)` keeps `module` and its weights: a copy would run those.
    """
    state = dict(cast("dict[str, Any]", super(nn.Module, module).__getstate__()))
    for name in [name for name, value in state.items() if internals.is_compiled_callable(value)]:
        if hasattr(type(module), name):
            del state[name]
    return state


def _modules_inside(layer: nn.Module) -> list[tuple[str, nn.Module]]:
    named = cast("Iterable[tuple[str, nn.Module]]", layer.named_modules())
    return [(name, module) for name, module in named if module is not layer]


def _parts_of(modules: Iterable[tuple[str, nn.Module]]) -> list[Part]:
    return [Part(name, type(module), _shapes(module)) for name, module in modules]


def _shapes(module: nn.Module) -> tuple[tuple[str, torch.Size | None], ...]:
    own: dict[str, Tensor | None] = module.__dict__["_parameters"]
    if not own:
        return ()
    return tuple([(name, None if parameter is None else parameter.shape) for name, parameter in own.items()])


def know(*kinds: type[nn.Module]) -> None:
    """Register classes whose modules may be parts of unmodified layers, as long as their methods are not changed."""
    for kind in kinds:
        # For this package's layers every method counts, because kernels rely on several.
        own = [base for base in kind.__mro__ if issubclass(base, Layer) and base is not Layer]
        functions = (name for base in own for name, value in vars(base).items() if isfunction(value))
        names = {name for name in functions if not name.startswith("__")}
        Layer.methods[kind] = {name: getattr(kind, name) for name in names | {"forward"}}


know(nn.Dropout, nn.GELU, nn.GLU, nn.Identity, nn.Linear, nn.ModuleList, nn.Sequential, nn.Tanh)


def is_unmodified(module: nn.Module) -> bool:
    """Tell whether `module`, apart from the modules inside, does exactly what its class defines."""
    return (
        type(module) in Layer.methods
        and has_own_methods(module)
        and not internals.has_hooks(module)
        and has_simple_parameters(module)
    )


def has_own_methods(module: nn.Module, but: str = "") -> bool:
    """Tell whether no method of the known class of `module` was replaced or overridden, except one."""
    kind, own = type(module), module.__dict__
    # An unknown class is a subclass of a known one, or not ours.
    known = kind if kind in Layer.methods else next((base for base in kind.__mro__ if base in Layer.methods), None)
    methods: Mapping[str, Callable[..., Any]] = {} if known is None else Layer.methods[known]
    for name, method in methods.items():
        if name != but and (name in own or getattr(kind, name) is not method):
            return False
    return True


def has_simple_parameters(module: nn.Module) -> bool:
    """Tell whether no parameter of `module` itself is a tensor subclass."""
    return all(internals.is_simple(p) for p in module.__dict__["_parameters"].values() if p is not None)
