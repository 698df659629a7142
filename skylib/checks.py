"""Checks of values that a user gives, with messages that say what is allowed."""

from __future__ import annotations

import functools
import inspect
import math
import os
from collections.abc import Callable, Collection, Container, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

_hints: Callable[[Any], dict[str, Any]] = functools.cache(get_type_hints)
P = ParamSpec("P")
R = TypeVar("R")

# Least and largest value of the options that are numbers, or lists of them, which mean the same wherever they occur.
_OF = {
    (1, math.inf): """k batch_size n_neighbors n_components n_epochs n_bins min_count max_dropped workers processes
        n_shards world_size resident readers cutouts_per_tile n_tiles block code_bytes n_lists rows box sample
        steps accumulate max_bad_steps log_every validate_every checkpoint_every epochs min_steps evaluations patience
        n_objects candidates""",
    (0, math.inf): """n_labels radius exclude_radius min_separation min_dist guard outlier_threshold reach rank shard
        learning_rate final_learning_rate weight_decay weight_decays clip_grad checkpoint_minutes flux_weight image_hdu
        mask_hdu variance_hdu mask_planes bad_planes brightness noise memory epoch next""",
    (1e-9, math.inf): "strength sky_sigma",
    (0, 1): "betas overlap min_data cooldown layer_decay hide_bands fractions band_dropout q",
    (0, 2**32 - 1): "seed seeds",
    (0, 29): "order",
    (1, 1024): "patch_size decoder_depth",
    (1, 16_384): "size image_size decoder_width",  # a file may ask for more than any machine holds
    (8, 32_768): "tile_size",
    (2, math.inf): "n_folds",
}
_RANGES = {name: ends for ends, names in _OF.items() for name in names.split()}
# Lists that must hold something.
_FULL = "bands methods n_labels seeds magnitudes pools layers fractions weight_decays tiles".split()  # noqa: SIM905
_NUMBERS = {int: (Integral, "iu", "a whole number"), float: (Real, "iuf", "a number")}
_WORDS = {bool: "true or false", str: "text", NoneType: "None", Path: "a path", slice: "a slice"}
_STRICT = ("skylib", "torch.Tensor")  # classes of which a value must be an instance; others are checked where used


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function check its arguments: by its annotations, and the options that every function takes by their ranges.

    What it then raises is a ValueError that names the option, its value and what is allowed.

    Examples
    --------
    >>> checked(lambda k: k).__name__
    '<lambda>'
    """
    signature = inspect.signature(function)
    open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    named = {name for name, one in signature.parameters.items() if one.kind not in open_ended}

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # an argument too many, or too few, which the call itself says
            given = {}
        check_values({name: given[name] for name in named & set(given)}, _hints(function))
        return function(*args, **kwargs)

    return call


def check_values(values: Mapping[str, Any], hints: Mapping[str, Any], *, where: str = "") -> None:
    """Raise ValueError, which names it, for a value that is not of its type, or out of range."""
    for name, value in values.items():
        if name in hints and not _fits(value, hints[name]):
            allowed = _describe(hints[name])
            raise ValueError(f"{where}{name}={_short(value)}: {'' if allowed[:6] == 'one of' else 'must be '}{allowed}")
        if name in _FULL and isinstance(value, Collection) and not len(value):
            raise ValueError(f"{where}{name}={value!r}: must not be empty")
        held = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else [value]
        for one in held if name in _RANGES else ():
            if isinstance(one, Real) and not isinstance(one, bool):
                check_range(f"{where}{name}", one, *_RANGES[name])  # type: ignore[arg-type]


def check_fields(config: Any, *, where: str = "") -> None:
    """Raise ValueError for a field of a dataclass that is not of its type, or out of range."""
    hints = _hints(type(config))
    check_values({name: getattr(config, name) for name in hints if hasattr(config, name)}, hints, where=where)


def check_choice(name: str, value: object, allowed: tuple[Any, ...]) -> None:
    """Raise ValueError, naming the allowed values, unless `value` is one of them."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r}: one of {', '.join(map(repr, allowed))}")


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Raise ValueError unless ``low <= value <= high``."""
    if not low <= value <= high:
        allowed = f"at least {low}" if high == math.inf else f"{low} to {high}"
        raise ValueError(f"{name}={value!r}: must be {allowed}")


def free_name(name: str, taken: Container[str]) -> str:
    """Return a name that is not taken: `name`, or with ``_label`` behind it as often as need be.

    Examples
    --------
    >>> free_name("rank", {"score"}), free_name("rank", {"rank", "rank_label"})
    ('rank', 'rank_label_label')
    """
    while name in taken:
        name += "_label"
    return name


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that an annotation states, as far as this can be told."""
    import numpy as np  # late: the command line has no use for it

    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str | bool | NoneType) and value in inner
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint][0]) and not isinstance(value, bool) and value == value
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            map(_fits, (*value, *value.values()), [inner[0]] * len(value) + [inner[1]] * len(value))
        )
    if isinstance(origin, type) and issubclass(origin, Collection) and inner:
        if isinstance(value, np.ndarray) and inner[0] in _NUMBERS:
            return value.ndim == 1 and value.dtype.kind in _NUMBERS[inner[0]][1]
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
            return False
        kinds = inner if origin is tuple and inner[-1] is not ... else (inner[0],) * len(value)
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if origin is Callable:
        return callable(value)
    if hint is np.ndarray:
        of_many = isinstance(value, Real | Collection | slice) and not isinstance(value, str | bytes | Mapping)
        return of_many or hasattr(value, "__array__")
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if hint in _WORDS or (isinstance(hint, type) and f"{hint.__module__}.{hint.__name__}".startswith(_STRICT)):
        return getattr(hint, "_is_protocol", False) or isinstance(value, os.PathLike if hint is Path else hint)
    return True


def _describe(hint: Any) -> str:
    """Return what an annotation allows, in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(map(_describe, inner))
    if origin is Literal:
        return f"one of {', '.join(map(repr, inner))}"
    if origin is Callable:
        return "a function"
    if hint in _NUMBERS:
        return _NUMBERS[hint][2]
    if origin is not None and inner:
        if issubclass(origin, Mapping):
            return f"a mapping to {_describe(inner[1])}"
        return f"{len(inner) if origin is tuple and ... not in inner else 'a list'} of {_describe(inner[0])}"
    name = getattr(hint, "__name__", str(hint))
    return "an array" if name == "ndarray" else _WORDS.get(hint, name)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
