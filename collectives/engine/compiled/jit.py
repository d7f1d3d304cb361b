"""The one way this project compiles: `@jit`, with its reasons.

* ``nogil``: training runs beside the engine's thread.
* no ``fastmath``: sums must not depend on how a loop was vectorised; NaN and Inf stay visible.
* ``error_model="numpy"``: a division never raises inside the loop.
* cached on disk under one stamp for all compiled sources. Numba stamps a cache entry with the file of that function
  alone, so that a loop would go on using yesterday's kernels after only kernels.py changed. The same sources have the
  same folder wherever they lie: an environment made anew, or a copy that has travelled to a cluster, compiles nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.extending import intrinsic
from numba.np.arrayobj import make_array, populate_array

from collectives.caches import cache_folder

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
    """A digest of all files that compiled code is made from, and of what compiles them."""
    digest = hashlib.sha256(numba.__version__.encode())
    for source in SOURCES:
        digest.update(source.read_bytes())
    return digest.hexdigest()


@functools.cache
def _folder() -> str | None:
    """Where compiled code is kept; None leaves it to Numba: NUMBA_CACHE_DIR, beside the sources, or below ~/.cache."""
    if os.environ.get("NUMBA_CACHE_DIR"):
        return None
    try:
        every = cache_folder("compiled")
        folder = every / source_stamp()[:16]
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            _forget_old(every)
        with tempfile.TemporaryFile(dir=folder):
            return str(folder)
    except OSError:
        return None


def _forget_old(every: Path) -> None:
    """Remove what other versions compiled more than KEPT_S ago; who still needs it compiles again."""
    for folder in every.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > KEPT_S:
                shutil.rmtree(folder, ignore_errors=True)


class _EngineCache(FunctionCache):  # type: ignore[misc]  # numba is untyped
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        self._source_stamp = source_stamp()
        self._cache_path: str = _folder() or self._impl.locator.get_cache_path()
        self._cache_file = IndexDataCacheFile(
            cache_path=self._cache_path, filename_base=self._impl.filename_base, source_stamp=self._source_stamp
        )


def jit(function: Function) -> Function:
    """Compile on first call, without the GIL, exactly, cached on disk."""
    dispatcher = numba.njit(nogil=True, boundscheck=False, **OPTIONS)(function)
    dispatcher._cache = _EngineCache(function)
    return dispatcher  # type: ignore[no-any-return]


def inline_jit(function: Function) -> Function:
    """As `jit`, but compiled into each caller.

    For the steps of a frame on a short op's way. A call that LLVM does not inline hands over a net or a table as a
    hundred machine words; for three such calls a 4 kB all-reduce of 8 ranks took 3 to 6 % longer.
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
