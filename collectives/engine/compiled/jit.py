"""The one way this project compiles: `@jit`, with its reasons.

* ``nogil``: training runs beside the engine's thread.
* no ``fastmath``: sums must not depend on how a loop was vectorised; NaN and Inf stay visible.
* ``error_model="numpy"``: a division never raises inside the loop.
* cached on disk under one stamp for all compiled sources. Numba stamps a cache entry with the file of that function
  alone, so that a loop would go on using yesterday's kernels after only kernels.py changed. The same sources have the
  same folder wherever they lie: an environment made anew, or a copy that has travelled to a cluster, compiles nothing.
* never cached where another user may write: Numba unpickles what it finds.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import binding, ir
from numba.core import cgutils, config, types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, IndexDataCacheFile, _CacheLocator
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from collectives.caches import cache_folder, private_folder, temporary_folder

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
SOURCES = (
    *sorted(HERE.glob("*.py")),
    HERE.parent.parent / "schedule" / "codec.py",
)  # all that compiled code is made of
OPTIONS = {"error_model": "numpy"}
KEPT_S = 30 * 24 * 3600
Function = TypeVar("Function", bound=Callable[..., Any])


@functools.cache
def source_stamp() -> str:
    """A digest of all files that compiled code is made from, of what compiles them, and of the processor."""
    processor = config.CPU_NAME or binding.get_host_cpu_name()
    features = config.CPU_FEATURES or binding.get_host_cpu_features().flatten()
    compiler = (numba.__version__, sys.implementation.cache_tag, processor, features)
    digest = hashlib.sha256(repr(compiler).encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()


@functools.cache
def compiled_folder() -> Path:
    """Where compiled code of this stamp is kept: below $NUMBA_CACHE_DIR or the user's cache. If that is not this user's
    own or cannot be written, in a private folder among the temporary files, with a warning.

    Raises:
        OSError: nothing can be written anywhere.
    """
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    try:
        every = private_folder(Path(chosen) / "narrowgauge") if chosen else cache_folder("compiled", make=True)
        return _of_this_stamp(every)
    except OSError as error:
        every = temporary_folder()
        logger.warning("compiled code is kept in %s, because the usual folder cannot be used: %s", every, error)
        return _of_this_stamp(every)


def _of_this_stamp(every: Path) -> Path:
    is_new = not (every / source_stamp()[:16]).is_dir()
    folder = private_folder(every / source_stamp()[:16])
    if is_new:
        _forget_old(every)
    with tempfile.TemporaryFile(dir=folder):
        return folder


def _forget_old(every: Path) -> None:
    """Remove what other versions compiled more than KEPT_S ago; who still needs it compiles again."""
    for folder in every.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)


class _Locator(_CacheLocator):  # type: ignore[misc]  # numba is untyped
    """Numba's own locators try folders that others may write, and raise where none can be written."""

    def __init__(self, function: Callable[..., Any], file: str) -> None:
        self._py_file, self._line = file, function.__code__.co_firstlineno

    @classmethod
    def from_function(cls, function: Callable[..., Any], file: str) -> _Locator:
        return cls(function, file)

    def get_cache_path(self) -> str:
        return str(compiled_folder())

    def get_source_stamp(self) -> str:
        return source_stamp()

    def get_disambiguator(self) -> str:
        return str(self._line)


class _CacheImpl(CompileResultCacheImpl):  # type: ignore[misc]
    _locator_classes = (_Locator,)


class _EngineCache(FunctionCache):  # type: ignore[misc]
    _impl_class = _CacheImpl

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        # Once more, because NUMBA_CACHE_LOCATOR_CLASSES goes before the locator of a class.
        self._cache_path = str(compiled_folder())
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path, filename_base=self._impl.filename_base, source_stamp=source_stamp()
        )


def jit(function: Function) -> Function:
    """Compile on first call, without the GIL, exactly, cached on disk."""
    dispatcher = numba.njit(nogil=True, boundscheck=False, **OPTIONS)(function)
    dispatcher._cache = _EngineCache(function)
    return dispatcher  # type: ignore[no-any-return]


def inline_jit(function: Function) -> Function:
    """As `jit`, but compiled into each caller.

    For the steps of a frame on a short op's way. A call that LLVM does not inline hands over a net or a table as a
    hundred machine words.
    """
    return numba.njit(nogil=True, boundscheck=False, inline="always", **OPTIONS)(function)  # type: ignore[no-any-return]


def compiled_address(function: Callable[..., Any], signature: Any) -> int:
    """Compile a function by itself and return the address of its C entry, for `call`.

    What is called in the ordinary way is optimised again within each of its callers. The kernels are large and stand
    at the end of a long chain of calls; reached by address they are compiled once.
    """
    compiled = CFunc(function, (signature.args, signature.return_type), locals={}, options=OPTIONS)
    compiled._cache = _EngineCache(function)  # type: ignore[attr-defined]
    compiled.compile()
    return int(compiled.address or 0)


@intrinsic  # type: ignore[untyped-decorator]
def call(typingctx: Any, address: Any, argument: Any) -> Any:
    """Call the C function at an address with one int64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def void_pointer(typingctx: Any, address: Any) -> Any:
    """An address (int64) as a pointer that `numba.carray` takes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def array_at(typingctx: Any, described: Any, k: Any, dtype: Any) -> Any:
    """The k-th array of those whose addresses and lengths lie, in pairs of int64, at an address.

    As `numba.carray` makes one, of which each type would be compiled by itself, in seconds.
    """
    kind = types.Array(dtype.dtype, 1, "C")

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pairs = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        first = builder.mul(args[1], ir.Constant(ir.IntType(64), 2))
        at = builder.load(builder.gep(pairs, [first]))
        length = builder.load(builder.gep(pairs, [builder.add(first, ir.Constant(ir.IntType(64), 1))]))
        array = make_array(kind)(context, builder)
        item_size = context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(kind.dtype)))
        populate_array(
            array, data=builder.inttoptr(at, array.data.type), shape=(length,), strides=(item_size,),
            itemsize=item_size, meminfo=None,
        )  # fmt: skip
        return array._getvalue()

    return kind(types.int64, types.int64, dtype), codegen


@intrinsic  # type: ignore[untyped-decorator]
def load_int32(typingctx: Any, address: Any) -> Any:
    """The int32 that lies at an address (int64)."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(32).as_pointer()))

    return types.int32(types.int64), codegen
