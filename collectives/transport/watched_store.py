"""What the ranks of a group exchange through the store while the group forms, and the one way in which they wait.

Whoever waits here is not left alone with a mistake of another rank. Every wait ends at the latest with the group's
deadline, and before that as soon as

    a rank publishes that it failed        all raise its words
    a rank's process ends                  known by its control connection: the group's own, or those of the group that
                                           this one is a part of
    the store goes away                    its process has ended

Stores are polled: a `get` or `wait` of torch's blocks in C++, where nothing of this is seen.

With a token of the user's, all that is published is signed with it, for one group, generation, rank and key, and from
`bind` on for this meeting alone, so that what was recorded at another proves nothing. What is not signed is not
believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from collectives import errors
from collectives.errors import NarrowgaugeError, RendezvousError
from collectives.transport.control import Ending

FIRST_PAUSE_S, LAST_PAUSE_S = 0.0002, 0.05  # between two polls; a pause is a tenth of the time waited so far
CHECK_S = 0.1
LINGER_S = 1.0
INTRODUCTION = "about"
"""The first key that a rank publishes."""
_FAILED, _SEEN, _TOGETHER = "failed", "seen", ".together"
_NOT_SIGNED = "-"
_KINDS = {kind.__name__: kind for kind in (errors.PlanError, errors.UsageError, RendezvousError)}

Endings = Callable[[], Mapping[int, Ending]]
"""By rank of the group, how its process left, of those that have."""


class Store(Protocol):
    """What is needed of a torch.distributed store."""

    def set(self, key: str, value: str) -> object: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...


class Unsigned(RendezvousError):
    """A value in the store that nobody with this group's token has written."""


class WatchedStore:
    """One rank's view of a forming group.

    Args:
        token: the user's; None publishes without signatures.
        timeout_s: seconds until `deadline`.
        host: this rank's, for messages.

    Attributes:
        deadline: when it must be over; time.monotonic, seconds.
        names: of the ranks, as far as they are known, for messages.
    """

    def __init__(
        self, store: Store, rank: int, size: int, group: str, generation: int, token: str | None, timeout_s: float,
        host: str,
    ) -> None:  # fmt: skip
        self.rank, self.size, self.group, self.generation = rank, size, group, generation
        self.timeout_s, self.deadline = timeout_s, time.monotonic() + timeout_s
        self.names = {other: f"rank {other}" for other in range(size)} | {rank: f"rank {rank} ({host})"}
        self._store, self._token, self._session = store, token.encode() if token else None, b""
        self._watches: list[Endings] = []
        self._published: list[str] = []
        self._check_at, self._announced = 0.0, False

    @property
    def has_token(self) -> bool:
        """Whether what is published is signed with a token of the user's."""
        return self._token is not None

    @property
    def session(self) -> bytes:
        """Digest of what `bind` was given; b"" before that."""
        return self._session

    def bind(self, introductions: Sequence[object]) -> None:
        """From now on signatures are for this meeting alone: of ranks that said this when they came."""
        self._session = hashlib.sha256(_encode([self.group, self.generation, *introductions])).digest()

    def watch(self, endings: Endings) -> None:
        """Ask also this one who has left, whenever something is waited for."""
        self._watches.append(endings)

    def renew(self, timeout_s: float) -> None:
        """Count the time anew: what comes now may take so many seconds, however long it took to come here."""
        self.timeout_s, self.deadline = timeout_s, time.monotonic() + timeout_s

    def publish(self, key: str, value: object) -> None:
        """Set this rank's value under a key. It must be JSON."""
        self._published.append(key)
        with self._reporting_a_lost_store():
            self._store.set(f"{key}/{self.rank}", self._signed(key, self.rank, value))

    def read(self, key: str, author: int) -> Any:
        """What a rank has published under a key, once it has.

        Raises:
            RendezvousError, or what another rank raised: a rank failed or left, or the deadline has passed.
        """
        self._wait([(key, author)])
        return self._verified(key, author, self._text(key, author))

    def gather(self, key: str, value: object) -> list[Any]:
        """Publish a value; those of all ranks, in their order.

        Rank 0 waits for all and publishes them as one value, as they were signed, so that each other rank writes one
        key and reads one. What comes from rank 0 must quote this rank as it is: before `bind` a signature proves a
        token, but no time, and a stranger may have kept what was passed on at an earlier meeting.

        Raises:
            As `read`. Unsigned: what came was not passed on at this meeting.
        """
        self.publish(key, value)
        ranks, together = range(self.size), f"{key}{_TOGETHER}"
        if self.rank == 0:
            self._wait([(key, author) for author in ranks])
            # Before they are verified: a rank with another token must see that it is not alone in being refused.
            # Bytes of a stranger's that are no text are refused as unsigned like any other.
            self.publish(together, [self._text(key, author).decode(errors="replace") for author in ranks])
        texts = self._of_all(key, together)
        values = [self._verified(key, author, text.encode(errors="replace")) for author, text in enumerate(texts)]
        for each in values:
            _raise_if_failed(each)
        if texts[self.rank] != self._signed(key, self.rank, value):
            raise Unsigned(
                f"{self._where()}: what the store has under {together!r} of {self.names[0]} is of an earlier meeting: "
                f"it quotes this rank with another {key!r} than it published; a stranger wrote it, or the store was "
                "used before for a group of this name"
            )
        return values

    def decide(self, key: str, make: Callable[[], Any]) -> Any:
        """What rank 0 makes, on all ranks.

        Raises:
            As `read`.
        """
        if self.rank == 0:
            self.publish(key, make())
        return self.read(key, 0)

    def check(self, awaited: Sequence[tuple[str, int]] = (), patient: bool = False) -> None:
        """Return if the group may still form; cheap enough to be called often.

        Args:
            awaited: keys, with their ranks, that the caller waits for: a rank that took its leave will not set them.
            patient: ask even if that was done just now, and wait a moment for an answer.

        Raises:
            What another rank raised, or a RendezvousError that says who has left.
        """
        now = time.monotonic()
        if now < self._check_at and not patient:
            return
        self._check_at = now + CHECK_S
        gone = self._gone()
        failure = self.failure(patient=patient or bool(gone))
        if failure is not None:
            raise failure
        for rank, ending in sorted(gone.items()):
            if ending.is_error or any(author == rank and not self._has([(key, rank)]) for key, author in awaited):
                raise RendezvousError(f"{self._where()}: {self.names[rank]} {ending.text}")

    def failure(self, patient: bool = False) -> NarrowgaugeError | None:
        """What another rank published when it gave up, as an exception of the same kind; None if none did.

        Args:
            patient: ask once more; the last words of a rank that has just left may still be on their way.
        """
        with self._reporting_a_lost_store():
            if not self._store.check([_FAILED]):
                if not patient:
                    return None
                time.sleep(CHECK_S)
                if not self._store.check([_FAILED]):
                    return None
            text = bytes(self._store.get(_FAILED))
        try:
            words = self._verified(_FAILED, None, text)
            who, raised = int(words["rank"]), _as_raised(words)
        except (Unsigned, KeyError, TypeError, ValueError):
            return None  # of a stranger, or of a rank with another token, which is noticed by what that rank publishes
        if who == self.rank:
            return None
        with contextlib.suppress(RuntimeError):
            self._store.set(f"{_SEEN}/{self.rank}", "")
        return raised

    def announce(self, error: BaseException) -> None:
        """Publish why this rank gives up, unless another did before it: no rank should wait for one that has given up,
        and what failed first is the cause that all should report."""
        if self._announced:
            return
        self._announced = True
        with contextlib.suppress(Exception):  # the store may be what failed
            self._store.set(f"{_SEEN}/{self.rank}", "")  # nobody needs to wait for this rank
            if self.failure() is not None:
                return
            kind = type(error).__name__
            words = {"rank": self.rank, "kind": kind, "text": self.last_words(error)}
            self._store.set(_FAILED, self._signed(_FAILED, None, words))
            if not self._published:
                # Ranks with another token cannot read that. That it is not theirs they learn by what they wait for.
                self.publish(INTRODUCTION, {_FAILED: words})
                if self.rank == 0:
                    self.publish(f"{INTRODUCTION}{_TOGETHER}", {_FAILED: words})
            if self.rank == 0 and self.size > 1:  # the store is often in this process, and ends with it
                self._linger()

    def last_words(self, error: BaseException) -> str:
        """The error as other ranks should read it."""
        text = str(error) if isinstance(error, NarrowgaugeError) else f"{type(error).__name__}: {error}"
        return text if self.names[self.rank] in text else f"{self.names[self.rank]}: {text}"

    def _gone(self) -> dict[int, Ending]:
        """How ranks left that have, as far as any watch knows."""
        return {rank: ending for watch in self._watches for rank, ending in watch().items()}

    def _linger(self) -> None:
        """Wait until the others have read this rank's last words, a second at most: some may never come."""
        gone, until = self._gone(), time.monotonic() + LINGER_S
        seen = [f"{_SEEN}/{other}" for other in range(1, self.size) if other not in gone]
        while time.monotonic() < until and not self._store.check(seen):
            time.sleep(LAST_PAUSE_S)

    def _of_all(self, key: str, together: str) -> list[str]:
        """What rank 0 has published of all ranks, each text as its rank signed it."""
        # Who is waited for are all of them, though only rank 0's key is polled.
        self._wait([(together, 0)], [*((key, author) for author in range(self.size)), (together, 0)])
        texts = self._verified(together, 0, self._text(together, 0))
        _raise_if_failed(texts)
        if not isinstance(texts, list) or len(texts) != self.size or not all(isinstance(each, str) for each in texts):
            raise RendezvousError(f"{self._where()}: what {self.names[0]} published as {together!r} cannot be read")
        return texts

    def _wait(self, polled: Sequence[tuple[str, int]], wanted: Sequence[tuple[str, int]] = ()) -> None:
        """Return when the store has what is polled.

        Args:
            wanted: what that depends on, if it is more: whose leave ends the wait, and who is missed at the deadline.
        """
        started, wanted = time.monotonic(), wanted or polled
        while not self._has(polled):
            try:
                self.check(wanted)
            except RendezvousError:
                # A rank that has left may have published this just before, and nothing more is asked of it here.
                if self.failure() is not None or not self._has(polled):
                    raise
                return
            now = time.monotonic()
            if now > self.deadline:
                raise self._not_come(wanted)
            time.sleep(min(LAST_PAUSE_S, max(FIRST_PAUSE_S, (now - started) / 10)))

    def _not_come(self, wanted: Sequence[tuple[str, int]]) -> RendezvousError:
        """The deadline has passed: who is missing, and how far each of them came."""
        absent, behind = [], []
        for key, author in wanted:
            if self._has([(key, author)]):
                continue
            reached = [each for each in self._published if self._has([(each, author)])]
            if reached:
                behind.append(f"{self.names[author]} came as far as {reached[-1]!r} and did not publish {key!r}")
            else:
                absent.append(author)
        parts = [f"{_listed(absent)} of {self.size} did not come to the rendezvous"] if absent else []
        # The words in brackets are those of torch's store, which scripts search for.
        return RendezvousError(
            f"{self._where()}: {'; '.join([*parts, *behind[:5]])} within {self.timeout_s:g} s (wait timeout after "
            f"{self.timeout_s * 1000:.0f}ms). See the log of that rank; was it started, and with the same address of "
            "the store?"
        )

    def _where(self) -> str:
        return f"{self.names[self.rank]}, forming group {self.group}"

    def _has(self, wanted: Sequence[tuple[str, int]]) -> bool:
        with self._reporting_a_lost_store():
            return self._store.check([f"{key}/{author}" for key, author in wanted])

    def _text(self, key: str, author: int) -> bytes:
        with self._reporting_a_lost_store():
            return bytes(self._store.get(f"{key}/{author}"))

    def _signed(self, key: str, author: int | None, value: object) -> str:
        """The text in the store: a signature, a space, JSON. An author of None: whoever comes first."""
        payload = _encode(value)
        return f"{self._signature(key, author, payload)} {payload.decode()}"

    def _signature(self, key: str, author: int | None, payload: bytes) -> str:
        if self._token is None:
            return _NOT_SIGNED
        # Last words are also those of a rank that never saw who else came, so they belong to no session.
        session = "" if key == _FAILED else self._session.hex()
        purpose = _encode(["store", self.group, self.generation, author, key, session])
        return hmac.new(self._token, purpose + b"\0" + payload, "sha256").hexdigest()

    def _verified(self, key: str, author: int | None, text: bytes) -> Any:
        """The value of a text in the store.

        Raises:
            Unsigned: it is signed with another token, or not at all. RendezvousError: it is no JSON.
        """
        signature, _, payload = text.partition(b" ")
        who = "a rank" if author is None else self.names[author]
        if not hmac.compare_digest(signature, self._signature(key, author, payload).encode()):
            what = f"{self._where()}: what the store has under {key!r} of {who} is"
            if self._token is None:
                raise Unsigned(f"{what} signed: that rank has a token and this one has none; {_SAME}")
            if signature == _NOT_SIGNED.encode():
                raise Unsigned(f"{what} not signed: that rank has no token, or a stranger wrote it; {_SAME}")
            raise Unsigned(
                f"{what} not signed with this group's token: that rank has another one, or a stranger wrote it; {_SAME}"
            )
        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise RendezvousError(f"{self._where()}: what {who} published as {key!r} cannot be read: {error}") from None

    @contextlib.contextmanager
    def _reporting_a_lost_store(self) -> Iterator[None]:
        """torch's stores raise DistNetworkError and DistStoreError, both RuntimeErrors, when their server is gone."""
        try:
            yield
        except NarrowgaugeError:
            raise
        except RuntimeError as error:
            for rank, ending in sorted(self._gone().items()):
                if ending.is_error:
                    raise RendezvousError(f"{self._where()}: {self.names[rank]} {ending.text}") from None
            reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise RendezvousError(
                f"{self._where()}: the store does not answer any more ({reason}): the process that holds it has ended, "
                "which is rank 0's unless the launcher keeps it"
            ) from None


_SAME = "give all ranks the same NARROWGAUGE_TOKEN"


def store_host(store: object) -> str | None:
    """The address of a TCPStore, below any number of prefixes; None for a store that is no server."""
    while (below := getattr(store, "underlying_store", None)) is not None:
        store = below
    host = getattr(store, "host", None)
    return host if isinstance(host, str) else None


def _as_raised(words: Mapping[str, Any]) -> NarrowgaugeError:
    """The error of a rank that gave up, as the others raise it."""
    kind = _KINDS.get(words["kind"], RendezvousError)
    return kind(f"a rank could not join the group: {words['text']}")


def _raise_if_failed(value: object) -> None:
    """Raise if a rank published its last words in place of a value."""
    if isinstance(value, dict) and isinstance(words := value.get(_FAILED), dict) and {"kind", "text"} <= words.keys():
        raise _as_raised(words)


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def _listed(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - 5} more" if len(ranks) > 5 else ""
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks[:5]))}{more}"
