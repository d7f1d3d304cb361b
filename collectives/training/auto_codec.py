"""`codec="auto"`: the mildest codec whose communication hides behind the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

NEAR = 1.01  # times the shortest: a milder codec is worth that much


@dataclass(frozen=True)
class Choice:
    """What was chosen, and from what.

    Attributes:
        codec: the one to use.
        predicted_s: seconds of communication of a step with each codec that was looked at, the mildest first.
        backward_s: seconds of the backward pass of the slowest rank.
    """

    codec: str
    predicted_s: dict[str, float]
    backward_s: float

    def __str__(self) -> str:
        looked_at = ", ".join(f"{codec} {1e3 * seconds:.1f} ms" for codec, seconds in self.predicted_s.items())
        hides = self.predicted_s[self.codec] <= self.backward_s
        return (
            f"codec auto takes {self.codec}: predicted communication of a step {looked_at}; the slowest rank's "
            f"backward takes {1e3 * self.backward_s:.1f} ms" + ("" if hides else ", behind which none of them hides")
        )


def choose(
    codecs: Sequence[str], bucket_bytes: Sequence[int], backward_s: float, seconds: Callable[[int, str], float]
) -> Choice:
    """The mildest codec for which  sum over buckets of seconds(bytes, codec) <= backward_s;  else the mildest near the
    shortest.

    Args:
        codecs: what to look at, the mildest first.
        bucket_bytes: sizes of the buckets of a step, in bytes of float32.
        seconds: what a message of so many bytes takes with a codec.
    """
    predicted_s: dict[str, float] = {}
    for codec in codecs:
        predicted_s[codec] = sum(seconds(num_bytes, codec) for num_bytes in bucket_bytes)
        if predicted_s[codec] <= backward_s:
            return Choice(codec, predicted_s, backward_s)
    shortest = min(predicted_s.values())
    return Choice(next(each for each in codecs if predicted_s[each] <= NEAR * shortest), predicted_s, backward_s)
