"""Options of the groups of a process: from `configure()`, else from the environment, else the default."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from collectives.errors import UsageError
from collectives.schedule.codec import CODECS as ENGINE_CODECS

BACKEND = "narrowgauge"
"""The backend's name in torch.distributed."""
CODECS = (*ENGINE_CODECS, "low-rank", "auto")
MIN_TOKEN = 16
MAX_TIMEOUT_S = 1e9  # thirty years; the engine counts nanoseconds in 64 bits


@dataclass(frozen=True)
class Options:
    """Options of the groups that this process joins.

    Attributes:
        backend: "narrowgauge", or "gloo" to run the same calls on torch's Gloo. Env NARROWGAUGE_BACKEND.
        host: name of the (emulated) host of this rank; None detects it. Env NARROWGAUGE_HOST.
        token: shared secret of at least 16 characters that peers must prove; what ranks publish in the store is signed
            with it, and a group never moves to Gloo unless all ranks ask for that. None: rank 0 makes one and shares it
            through the store, whoever can write to which is trusted. Env NARROWGAUGE_TOKEN.
        interface: network interface whose address peers should use, or several, separated by commas, over which the
            streams are spread; None takes the one that reaches the store. Env NARROWGAUGE_INTERFACE.
        streams: TCP connections for each peer; "auto": as many as the links' rate and latency need. If ranks ask for
            different numbers, all take the smallest. Env NARROWGAUGE_STREAMS.
        slice_bytes: size of the pipelined unit in bytes; where it is encoded it may be up to four times as long. Env
            NARROWGAUGE_SLICE_BYTES.
        window_bytes: bytes of a message that may be in flight; bounds the engine's memory. None takes 4 MiB, or more
            for links with a high rate and latency. Env NARROWGAUGE_WINDOW_BYTES.
        shared_memory: whether ranks of one host pass slices through shared memory. Env NARROWGAUGE_SHARED_MEMORY
            ("0" or "1").
        timeout_s: seconds without progress after which an op fails; None takes the timeout that torch gives the group.
            Env NARROWGAUGE_TIMEOUT_S.
        hang_report_s: seconds without progress after which rank 0 logs which ranks have not joined the op, and where
            they are; at the latest after half the timeout. 0: never. Env NARROWGAUGE_HANG_REPORT_S.
        topology: path of a topology JSON file; None measures the links between machines once and caches them; "equal"
            assumes equal links. Env NARROWGAUGE_TOPOLOGY.
        emulate: Mbit/s of each host's link, in the order of their lowest ranks, separated by commas ("1000,1000,100"):
            the kernel then paces the connections between (emulated) hosts. An approximation, see docs/guides/lab.md.
            Env NARROWGAUGE_EMULATE.
        trace: folder to which each rank writes a trace of its ops when it leaves the group, for ui.perfetto.dev.
            Env NARROWGAUGE_TRACE.
        codec: codec of gradients in `collectives.attach`: "none", "bf16", "int8", "int4", one of the last three with
            the prefix "narrow-", "low-rank" or "auto". Used nowhere else. Env NARROWGAUGE_CODEC.
        log: path of this rank's log, sent to peers so that their errors can name it. Env NARROWGAUGE_LOG.
    """

    backend: str = "narrowgauge"
    host: str | None = None
    token: str | None = field(default=None, repr=False)
    interface: str | None = None
    streams: int | str = "auto"
    slice_bytes: int = 64 * 1024
    window_bytes: int | None = None
    shared_memory: bool = True
    timeout_s: float | None = None
    hang_report_s: float = 30.0
    topology: str | None = None
    emulate: str | None = None
    trace: str | None = None
    codec: str = "none"
    log: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in ("narrowgauge", "gloo"):
            raise UsageError(f"backend is {self.backend!r}; wanted 'narrowgauge' or 'gloo'")
        if self.codec not in CODECS:
            raise UsageError(f"codec is {self.codec!r}; wanted one of {', '.join(CODECS)}")
        if self.streams != "auto" and not (isinstance(self.streams, int) and 1 <= self.streams <= 64):
            raise UsageError(f"streams is {self.streams!r}; wanted 1 to 64, or 'auto'")
        if not 1024 <= self.slice_bytes <= 64 * 1024 * 1024 or self.slice_bytes % 64:
            raise UsageError(f"slice_bytes is {self.slice_bytes}; wanted a multiple of 64 from 1024 to 64 MiB")
        if self.window_bytes is not None and self.window_bytes < self.slice_bytes:
            raise UsageError(f"window_bytes is {self.window_bytes}; wanted at least slice_bytes, {self.slice_bytes}")
        if self.timeout_s is not None and not 0 < self.timeout_s <= MAX_TIMEOUT_S:
            raise UsageError(f"timeout_s is {self.timeout_s}; wanted more than 0, at most {MAX_TIMEOUT_S:g}")
        if not 0 <= self.hang_report_s <= MAX_TIMEOUT_S:
            raise UsageError(f"hang_report_s is {self.hang_report_s}; wanted 0 (never) to {MAX_TIMEOUT_S:g}")
        self.emulated_rates()
        if self.token is not None and len(self.token) < MIN_TOKEN:
            raise UsageError(
                f"token has {len(self.token)} characters; wanted at least {MIN_TOKEN}, which nobody guesses, the same "
                'on all ranks: make one with python -c "import secrets; print(secrets.token_hex(16))"'
            )

    def emulated_rates(self) -> list[float]:
        """Payload bytes per second of each host's emulated link; [] if links are not emulated."""
        try:
            rates = [float(mbit) * 1e6 / 8 for mbit in self.emulate.split(",")] if self.emulate else []
        except ValueError:
            rates = [0.0]
        if any(not 0 < rate < 1e12 for rate in rates):
            raise UsageError(f"emulate is {self.emulate!r}; wanted Mbit/s of each host, such as '1000,1000,100'")
        return rates


_configured: dict[str, object] = {}
_READ: dict[str, tuple[Callable[[str], object], str]] = {
    "streams": (lambda text: text if text == "auto" else int(text), "a whole number, or auto"),
    "slice_bytes": (int, "a whole number"),
    "window_bytes": (int, "a whole number"),
    "shared_memory": ({"0": False, "1": True}.__getitem__, "0 or 1"),
    "timeout_s": (float, "a number"),
    "hang_report_s": (float, "a number"),
}


def configure(**settings: object) -> None:
    """Set options for the groups that this process joins from now on.

    Args:
        settings: by name, as in `Options`. Options that are not named keep their values.

    Raises:
        UsageError: an unknown name or a value out of range; nothing is changed then.
    """
    unknown = set(settings) - set(Options.__dataclass_fields__)
    if unknown:
        raise UsageError(f"configure() got {sorted(unknown)}; it takes {', '.join(Options.__dataclass_fields__)}")
    replace(_from_environment(), **{**_configured, **settings})  # type: ignore[arg-type]
    _configured.update(settings)


def current() -> Options:
    """The options in force: from `configure`, else from the environment, else the defaults."""
    return replace(_from_environment(), **_configured)  # type: ignore[arg-type]


def current_token() -> str | None:
    """The token in force, also while another option has a value that `current` refuses."""
    token = _configured.get("token", os.environ.get("NARROWGAUGE_TOKEN") or None)
    return token if isinstance(token, str) else None


def _from_environment() -> Options:
    found: dict[str, object] = {}
    for name in Options.__dataclass_fields__:
        variable = f"NARROWGAUGE_{name.upper()}"
        text = os.environ.get(variable)
        if not text:
            continue
        read, wanted = _READ.get(name, (str, "text"))
        try:
            found[name] = read(text)
        except (ValueError, KeyError):
            raise UsageError(f"{variable} is {text!r}; wanted {wanted}") from None
    return replace(Options(), **found)  # type: ignore[arg-type]
