"""YAML and JSON as plain values: no duplicate keys, no Python objects, limited in size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any, cast

from hunterFormsBS.installation import how_to_install
from hunterFormsBS.limits import DEEPEST, MOST_KEYS, MOST_VALUES
from hunterFormsBS.printable import short_repr


def parse_json(text: str) -> object:
    """Parse JSON.

    Raises
    ------
    ValueError, RecursionError
        If it is not JSON, or states a key twice.
    """

    def pairs_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        _refuse_twice(key for key, _ in pairs)
        return dict(pairs)

    return cast("object", json.loads(text, object_pairs_hook=pairs_once))


def parse_yaml(text: str) -> object:
    """Parse YAML, with `!!python/tuple` and no other tag for Python objects.

    Raises
    ------
    ImportError
        If PyYAML is not installed.
    ValueError, RecursionError
        If it is not YAML, states a key twice, or contains Python objects.
    """
    try:
        import yaml
    except ImportError as error:
        raise ImportError(f"to read YAML, install PyYAML: {how_to_install('separation')}") from error

    class Loader(yaml.SafeLoader):
        """Plain values and tuples."""

    def construct_tuple(loader: Loader, node: yaml.Node) -> tuple[object, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise yaml.constructor.ConstructorError(None, None, "a tuple must be written as a list", node.start_mark)
        return tuple(loader.construct_sequence(node, deep=True))

    def construct_mapping(loader: Loader, node: yaml.MappingNode) -> dict[Any, Any]:
        construct = cast("Callable[..., object]", loader.construct_object)
        if isinstance(node, yaml.MappingNode):  # pyright: ignore[reportUnnecessaryIsInstance]
            keys = [construct(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
            try:
                _refuse_twice(keys)
            except ValueError as error:
                raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor("tag:yaml.org,2002:python/tuple", construct_tuple)
    Loader.add_constructor("tag:yaml.org,2002:map", construct_mapping)
    try:
        _refuse_multitudes(yaml.compose(text, Loader), _nodes_in)
        return cast("object", yaml.load(text, Loader))
    except yaml.constructor.ConstructorError as error:
        if error.problem and "tag:yaml.org,2002:python" in error.problem:
            raise ValueError(
                f"it asks for Python objects, which is refused because it could run code ({error}). "
                "Of the Python tags only !!python/tuple is read: replace the others by plain values"
            ) from error
        raise ValueError(str(error)) from error
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    # PyYAML's constructors trust tags: !!bool on other text than a boolean, !!timestamp on other text than a time.
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"a value is not what its tag says ({type(error).__name__}: {error})") from error


def check_extent(value: object) -> None:
    """Refuse values that are nested too deep or too many, and arrays in place of plain values.

    Aliases are expanded. The only array allowed in a configuration is `mask_filter_bank`.

    Raises
    ------
    ValueError
        With the limit, or the array's type.
    """
    _refuse_multitudes(value, _values_in)


def _values_in(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        entries = cast("Mapping[object, object]", value).items()
        return (entry for key, entry in entries if key != "mask_filter_bank" or not _axes(entry))
    if isinstance(value, (list, tuple, set, frozenset)):
        return cast("Iterable[object]", value)
    if _axes(value):
        raise ValueError(f"it holds {short_repr(value)} where only numbers, text and lists can be")
    return ()


def _axes(value: object) -> int:
    """Return the number of axes of a PyTorch or NumPy array, and 0 for anything else."""
    axes: object = getattr(value, "ndim", 0)
    return axes if isinstance(axes, int) else 0


def _nodes_in(node: object) -> Iterable[object]:
    """Return the parts of a YAML node, before anything is constructed."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        return chain.from_iterable(cast("Iterable[tuple[object, object]]", node.value))
    return cast("Iterable[object]", node.value) if isinstance(node, yaml.SequenceNode) else ()


def _refuse_multitudes(root: object, parts_of: Callable[[object], Iterable[object]]) -> None:
    level, count = [root], 0
    for _ in range(DEEPEST):
        deeper: list[object] = []
        for container in level:
            deeper.extend(parts_of(container))
            if count + len(deeper) > MOST_VALUES:
                raise ValueError(f"it has more than {MOST_VALUES:,} values, which no configuration needs")
        if not deeper:
            return
        count += len(deeper)
        level = deeper
    raise ValueError(f"it is nested more than {DEEPEST} deep, or holds itself")


def _refuse_twice(keys: Iterable[object]) -> None:
    seen: set[object] = set()
    for number, key in enumerate(keys):
        if number >= MOST_KEYS:
            raise ValueError(f"a mapping has more than {MOST_KEYS:,} keys, which no configuration needs")
        try:
            if key in seen:
                raise ValueError(f"the key {short_repr(key)} is stated twice")
            seen.add(key)
        except TypeError:
            raise ValueError(f"the key {short_repr(key)} is a list or a mapping") from None
