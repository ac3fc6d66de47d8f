"""A reader of pickles that knows only tensors and plain containers, and never imports or calls what a file names.

A pickle is a program for a small stack machine, and two of its instructions look a name up and call what they find.
Here names are not looked up: `_RECIPES` lists the names that describe tensors and containers, and every other name
becomes a `Placeholder`, which does nothing. So a checkpoint with a scheduler or a NumPy number besides its weights
loads, and no code runs.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import IO, Final, NamedTuple, TypeAlias, cast

import torch

from hunterFormsBS.checkpoint.errors import CheckpointError
from hunterFormsBS.limits import LARGEST_HEADER, LONGEST_INTEGER, MOST_AXES, MOST_INSTRUCTIONS
from hunterFormsBS.printable import printable, short_repr


class Placeholder:
    """Replaces a class or a function that a file names, unless it makes tensors or plain containers."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        """Return the name, printable."""
        return printable(self.name, 120)


class Storage(NamedTuple):
    """The memory of tensors, somewhere in the file."""

    key: str
    dtype: torch.dtype
    numbers: int
    offset: int = 0


class StoredTensor:
    """A tensor that has not been read yet, checked against the size of its storage."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    @property
    def dtype(self) -> torch.dtype:
        """The type of its numbers."""
        return self.storage.dtype


class DamagedError(ValueError):
    """The file is damaged or incomplete."""


class _Mark:
    """The only value that MARK puts on the stack."""


class _Storages(NamedTuple):
    dtype: torch.dtype


_BROKEN: Final = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, RecursionError, TypeError, ValueError, struct.error),
)
_Recipe: TypeAlias = Callable[..., object]
_MARK: Final = _Mark()

_STORAGES: Final[Mapping[str, torch.dtype]] = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}


def unpickle(file: IO[bytes], storages: dict[str, torch.dtype] | None = None) -> object:
    """Read one pickle from the current offset of a file.

    Parameters
    ----------
    file : IO[bytes]
        Open for reading, and not empty.
    storages : dict[str, torch.dtype] | None, default None
        Collects the dtypes of all named storages, including those of left-out objects. Only for files from before
        `torch.save` wrote archives, where a view of a part of a storage has its own name.

    Returns
    -------
    content : object
        Plain containers of plain values, `StoredTensor` and `Placeholder`.

    Raises
    ------
    DamagedError
        If it is not a pickle, or is truncated.
    CheckpointError
        If it exceeds a limit.
    """
    try:
        return _Machine(file, storages).run()
    except CheckpointError:
        raise
    # A damaged or hostile file can lead to any of these.
    except _BROKEN as error:
        raise DamagedError(f"{type(error).__name__}: {printable(error, 120)}") from error


class _Machine:
    """The stack machine of pickles, with one method per kind of instruction."""

    def __init__(self, file: IO[bytes], storages: dict[str, torch.dtype] | None) -> None:
        self.file = file
        self.storages = storages
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.bytes_read = 0

    def run(self) -> object:
        stop = pickle.STOP[0]
        for _ in range(MOST_INSTRUCTIONS):
            code = self.read(1)[0]
            if code == stop:
                return self.pop()
            _INSTRUCTIONS[code](self)
        raise CheckpointError(f"it has more than {MOST_INSTRUCTIONS:,} instructions, which no checkpoint needs")

    def read(self, count: int) -> bytes:
        self.bytes_read += count
        if self.bytes_read > LARGEST_HEADER:
            raise CheckpointError(
                f"what describes its tensors is larger than {LARGEST_HEADER:,} bytes, which no checkpoint needs"
            )
        data = self.file.read(count)
        if len(data) < count:
            raise EOFError("the file ends too early")
        return data

    def line(self) -> str:
        data = self.file.readline(1000)
        self.bytes_read += len(data)
        if not data.endswith(b"\n"):
            raise EOFError("the file ends too early")
        return data[:-1].decode("utf-8")

    def number(self, form: str) -> int:
        number: int = struct.unpack(form, self.read(struct.calcsize(form)))[0]
        return number

    def pop(self) -> object:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark is not a value")
        return value

    def pop_to_mark(self) -> list[object]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                values = self.stack[start + 1 :]
                del self.stack[start:]
                return values
        raise ValueError("there is no mark")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("the stack is too short")
        values = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.push(values)

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def extend(self, values: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            cast("list[object]", target).extend(values)
        elif isinstance(target, set):
            cast("set[object]", target).update(value for value in values if _is_key(value))

    def set_items(self, values: list[object]) -> None:
        target = self.stack[-1]
        if len(values) % 2:
            raise ValueError("a key has no value")
        if isinstance(target, dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            cast("dict[object, object]", target).update((key, value) for key, value in pairs if _is_key(key))

    def name(self, module: object, name: object) -> None:
        self.push(_look_up(str(module), str(name)))

    def name_from_stack(self) -> None:
        name = self.pop()
        self.name(self.pop(), name)

    def call(self, function: object, arguments: object) -> None:
        if isinstance(function, Placeholder) or not callable(function):
            known = isinstance(function, Placeholder)
            self.push(function if known else Placeholder(f"a call of {short_repr(function)}"))
        else:
            # Only recipes of this module are callable here.
            self.push(function(*cast("tuple[object, ...]", arguments)))

    def reduce(self) -> None:
        arguments = self.pop()
        self.call(self.pop(), arguments)

    def reduce_with_keywords(self) -> None:
        self.pop()
        self.reduce()

    def instance(self) -> None:
        module = self.line()
        function = _look_up(module, self.line())
        self.call(function, tuple(self.pop_to_mark()))

    def instance_from_stack(self) -> None:
        function, *arguments = self.pop_to_mark()
        self.call(function, tuple(arguments))

    def build(self) -> None:
        """Drop the state of an object: weights do not need that of tensors and plain containers."""
        self.pop()

    def persistent(self) -> None:
        identity = cast("tuple[object, ...]", self.pop())
        storage = _storage(identity, legacy=self.storages is not None)
        if isinstance(storage, Storage) and self.storages is not None:
            self.storages[storage.key] = storage.dtype
        self.push(storage)


def _look_up(module: str, name: str) -> object:
    recipe = _RECIPES.get(f"{module}.{name}")
    if recipe is not None:
        return recipe
    if module in ("torch", "torch.storage") and name in _STORAGES:
        return _Storages(_STORAGES[name])
    dtype = getattr(torch, name, None) if module == "torch" and name in _DTYPES else None
    return dtype if dtype is not None else Placeholder(f"{module}.{name}")


def _storage(identity: tuple[object, ...], *, legacy: bool) -> object:
    kind, storages, key, _location, count, *view = (*identity,)
    if kind not in ("storage", b"storage") or not isinstance(key, (str, bytes, int)):
        return Placeholder(f"the persistent object {short_repr(kind)}")
    if isinstance(storages, Placeholder):
        return storages
    if not isinstance(storages, _Storages):
        raise TypeError("a storage has no type")
    offset: object = 0
    if legacy and view and view[0] is not None:
        _, offset, count = cast("tuple[object, object, object]", view[0])
    name = key.decode("ascii") if isinstance(key, bytes) else str(key)
    if name != PurePosixPath(name).name or len(name) > 100:
        raise ValueError(f"{short_repr(name)} is not a name of a storage")
    return Storage(name, storages.dtype, _size(count), _size(offset))


def _size(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**48:
        raise ValueError(f"{short_repr(value)} is not a size")
    return value


def _tensor(storage: object, offset: object, shape: object, strides: object, *_rest: object) -> object:
    if isinstance(storage, Placeholder):
        return storage
    if not isinstance(storage, Storage):
        raise TypeError("a tensor has no storage")
    return checked(storage, _size(offset), _sizes(shape), _sizes(strides))


def checked(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> StoredTensor:
    """Return a tensor if its elements are in its storage, each once; refuse it otherwise."""
    if len(shape) != len(strides) or len(shape) > MOST_AXES:
        raise CheckpointError(
            f"a tensor has {len(shape)} sizes and {len(strides)} strides: at most {MOST_AXES} are read"
        )
    elements, last = 1, offset
    for size, stride in zip(shape, strides, strict=True):
        elements *= size
        last += max(0, size - 1) * stride
    if elements > storage.numbers or (elements and last >= storage.numbers):
        raise CheckpointError(
            f"a tensor of the shape {short_repr(shape)} is larger than its storage of {storage.numbers} numbers"
        )
    return StoredTensor(storage, offset, shape, strides)


def _sizes(value: object) -> tuple[int, ...]:
    if not isinstance(value, tuple) or len(cast("tuple[object, ...]", value)) > MOST_AXES:
        raise TypeError("a shape is not a short tuple")
    return tuple(_size(size) for size in cast("tuple[object, ...]", value))


def _tensor_with_dtype(*arguments: object) -> object:
    """Describe a tensor with a dtype without a storage class: unsigned integers, and 8-bit numbers."""
    return Placeholder(f"a tensor of {arguments[6]!r}" if len(arguments) > 6 else "a tensor of an unknown type")


def _parameter(data: object, *_rest: object) -> object:
    return data


def _from_type(function: object, _kind: object, arguments: object, *_rest: object) -> object:
    if isinstance(function, Placeholder) or not callable(function):
        return Placeholder("a tensor of a class of its own")
    return function(*cast("tuple[object, ...]", arguments))


def _dictionary(*arguments: object) -> dict[object, object]:
    given = arguments[0] if arguments else None
    if isinstance(given, dict):
        return dict(cast("dict[object, object]", given))
    # Older files store an `OrderedDict` as a list of pairs.
    pairs = cast("list[tuple[object, object]]", given if isinstance(given, list) else [])
    return {key: value for key, value in pairs if _is_key(key)}


def _refused(what: str) -> _Recipe:
    def recipe(*_arguments: object) -> object:
        return Placeholder(what)

    return recipe


def _is_key(value: object) -> bool:
    """Tell whether a value is safe as a key; others, for example deeply nested tuples, are left out."""
    # Larger integers can be chosen so that all have one hash.
    if isinstance(value, (int, float)):
        return abs(value) < 2**53
    return value is None or isinstance(value, (str, bytes, Placeholder))


_DTYPES: Final = frozenset(
    ("float64", "float32", "float16", "bfloat16", "complex64", "complex128", "int64", "int32", "int16", "int8", "uint8")
) | {"bool"}

_RECIPES: Final[Mapping[str, _Recipe]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _from_type,
    "torch._utils._rebuild_qtensor": _refused("a quantised tensor"),
    "torch._utils._rebuild_sparse_tensor": _refused("a sparse tensor"),
    "torch._utils._rebuild_sparse_csr_tensor": _refused("a sparse tensor"),
    "torch._utils._rebuild_nested_tensor": _refused("a nested tensor"),
    "torch._utils._rebuild_meta_tensor_no_storage": _refused("a tensor without content, of the device meta"),
    "collections.OrderedDict": _dictionary,
    "collections.Counter": _dictionary,
    "collections.defaultdict": lambda *_arguments: dict[object, object](),
    "torch.Size": lambda *arguments: tuple(cast("tuple[object, ...]", arguments[0])) if arguments else (),
}


def _integer_text(machine: _Machine) -> object:
    text = machine.line().removesuffix("L")
    if len(text) > LONGEST_INTEGER:
        raise CheckpointError(f"it has an integer of {len(text)} digits, and at most {LONGEST_INTEGER} are read")
    return {"00": False, "01": True}[text] if text in ("00", "01") else int(text)


def _integer_bytes(machine: _Machine, form: str) -> object:
    count = machine.number(form)
    if not 0 <= count <= LONGEST_INTEGER:
        raise CheckpointError(f"it has an integer of {count} bytes, and at most {LONGEST_INTEGER} are read")
    return int.from_bytes(machine.read(count), "little", signed=True)


def _text(machine: _Machine, form: str) -> str:
    return machine.read(_length(machine, form)).decode("utf-8", "surrogatepass")


def _length(machine: _Machine, form: str) -> int:
    count = machine.number(form)
    if count < 0:
        raise ValueError("a length is negative")
    return count


def _pushing(make: Callable[[_Machine], object]) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(make(machine))


def _constant(value: object) -> Callable[[_Machine], None]:
    return lambda machine: machine.stack.append(value)


def _nothing(_machine: _Machine) -> None:
    """Do nothing: frames and protocol only describe how a pickle was written."""


_BY_CODE: Final[Mapping[bytes, Callable[[_Machine], object]]] = {
    pickle.PROTO: lambda machine: machine.read(1),
    pickle.FRAME: lambda machine: machine.read(8),
    pickle.MARK: _constant(_MARK),
    pickle.POP: lambda machine: machine.stack.pop(),
    pickle.POP_MARK: lambda machine: machine.pop_to_mark(),
    pickle.DUP: lambda machine: machine.stack.append(machine.stack[-1]),
    pickle.NONE: _constant(None),
    pickle.NEWTRUE: _constant(value=True),
    pickle.NEWFALSE: _constant(value=False),
    pickle.INT: _pushing(_integer_text),
    pickle.LONG: _pushing(_integer_text),
    pickle.BININT: _pushing(lambda machine: machine.number("<i")),
    pickle.BININT1: _pushing(lambda machine: machine.number("<B")),
    pickle.BININT2: _pushing(lambda machine: machine.number("<H")),
    pickle.LONG1: _pushing(lambda machine: _integer_bytes(machine, "<B")),
    pickle.LONG4: _pushing(lambda machine: _integer_bytes(machine, "<i")),
    pickle.FLOAT: _pushing(lambda machine: float(machine.line())),
    pickle.BINFLOAT: _pushing(lambda machine: struct.unpack(">d", machine.read(8))[0]),
    pickle.STRING: _pushing(lambda machine: machine.line().strip("'\"")),
    pickle.BINSTRING: _pushing(lambda machine: machine.read(_length(machine, "<i")).decode("latin-1")),
    pickle.SHORT_BINSTRING: _pushing(lambda machine: machine.read(_length(machine, "<B")).decode("latin-1")),
    pickle.UNICODE: _pushing(lambda machine: machine.line()),
    pickle.BINUNICODE: _pushing(lambda machine: _text(machine, "<I")),
    pickle.SHORT_BINUNICODE: _pushing(lambda machine: _text(machine, "<B")),
    pickle.BINUNICODE8: _pushing(lambda machine: _text(machine, "<Q")),
    pickle.BINBYTES: _pushing(lambda machine: machine.read(_length(machine, "<I"))),
    pickle.SHORT_BINBYTES: _pushing(lambda machine: machine.read(_length(machine, "<B"))),
    pickle.BINBYTES8: _pushing(lambda machine: machine.read(_length(machine, "<Q"))),
    pickle.BYTEARRAY8: _pushing(lambda machine: machine.read(_length(machine, "<Q"))),
    pickle.EMPTY_LIST: _pushing(lambda _machine: list[object]()),
    pickle.EMPTY_TUPLE: _constant(()),
    pickle.EMPTY_DICT: _pushing(lambda _machine: dict[object, object]()),
    pickle.EMPTY_SET: _pushing(lambda _machine: set[object]()),
    pickle.LIST: _pushing(lambda machine: machine.pop_to_mark()),
    pickle.TUPLE: _pushing(lambda machine: tuple(machine.pop_to_mark())),
    pickle.DICT: lambda machine: _make_dictionary(machine),
    pickle.FROZENSET: _pushing(lambda machine: frozenset(filter(_is_key, machine.pop_to_mark()))),
    pickle.TUPLE1: lambda machine: machine.tuple_of(1),
    pickle.TUPLE2: lambda machine: machine.tuple_of(2),
    pickle.TUPLE3: lambda machine: machine.tuple_of(3),
    pickle.APPEND: lambda machine: machine.extend([machine.pop()]),
    pickle.APPENDS: lambda machine: machine.extend(machine.pop_to_mark()),
    pickle.ADDITEMS: lambda machine: machine.extend(machine.pop_to_mark()),
    pickle.SETITEM: lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    pickle.SETITEMS: lambda machine: machine.set_items(machine.pop_to_mark()),
    pickle.PUT: lambda machine: machine.put(int(machine.line())),
    pickle.BINPUT: lambda machine: machine.put(machine.number("<B")),
    pickle.LONG_BINPUT: lambda machine: machine.put(machine.number("<I")),
    pickle.MEMOIZE: lambda machine: machine.put(len(machine.memo)),
    pickle.GET: _pushing(lambda machine: machine.memo[int(machine.line())]),
    pickle.BINGET: _pushing(lambda machine: machine.memo[machine.number("<B")]),
    pickle.LONG_BINGET: _pushing(lambda machine: machine.memo[machine.number("<I")]),
    pickle.GLOBAL: lambda machine: machine.name(machine.line(), machine.line()),
    pickle.STACK_GLOBAL: lambda machine: machine.name_from_stack(),
    pickle.EXT1: _pushing(lambda machine: Placeholder(f"the extension {machine.number('<B')}")),
    pickle.EXT2: _pushing(lambda machine: Placeholder(f"the extension {machine.number('<H')}")),
    pickle.EXT4: _pushing(lambda machine: Placeholder(f"the extension {machine.number('<i')}")),
    pickle.REDUCE: lambda machine: machine.reduce(),
    pickle.NEWOBJ: lambda machine: machine.reduce(),
    pickle.NEWOBJ_EX: lambda machine: machine.reduce_with_keywords(),
    pickle.INST: lambda machine: machine.instance(),
    pickle.OBJ: lambda machine: machine.instance_from_stack(),
    pickle.BUILD: lambda machine: machine.build(),
    pickle.BINPERSID: lambda machine: machine.persistent(),
    pickle.PERSID: _pushing(lambda machine: Placeholder(f"the persistent object {machine.line()}")),
    pickle.NEXT_BUFFER: _pushing(lambda _machine: Placeholder("a buffer outside the pickle")),
    pickle.READONLY_BUFFER: _nothing,
}
_INSTRUCTIONS: Final = {code[0]: instruction for code, instruction in _BY_CODE.items()}


def _make_dictionary(machine: _Machine) -> None:
    values = machine.pop_to_mark()
    machine.push(dict[object, object]())
    machine.set_items(values)
