"""`codec="auto"`: the mildest codec whose communication hides behind the backward pass.

Communication of a bucket overlaps with the backward pass of the layers before it. As long as all of a step's
communication takes no longer than backward, a stronger codec would not make the step shorter, only less exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

NEAR = 1.01  # if none hides: the mildest one within this factor of the shortest time


@dataclass(frozen=True)
class Choice:
    """A choice and its reasons; `str` is the line that is logged.

    Attributes:
        codec: the chosen one.
        predicted_s: seconds of communication of a step with each codec that was considered, the mildest first.
        backward_s: seconds of the backward pass of the slowest rank.
    """

    codec: str
    predicted_s: dict[str, float]
    backward_s: float

    def __str__(self) -> str:
        considered = ", ".join(f"{codec} {1e3 * seconds:.1f} ms" for codec, seconds in self.predicted_s.items())
        hides = self.predicted_s[self.codec] <= self.backward_s
        return (
            f"codec auto takes {self.codec}: predicted communication of a step {considered}; the slowest rank's "
            f"backward takes {1e3 * self.backward_s:.1f} ms" + ("" if hides else ", behind which none of them hides")
        )


def choose(
    codecs: Sequence[str], bucket_bytes: Sequence[int], backward_s: float, seconds: Callable[[int, str], float]
) -> Choice:
    """The mildest codec with  sum over buckets of seconds(bytes, codec) <= backward_s,  else the mildest near the best.

    Args:
        codecs: the candidates, the mildest first.
        bucket_bytes: sizes of a step's buckets, in bytes of float32.
        backward_s: seconds of the slowest rank's backward pass.
        seconds: predicted seconds of an all-reduce of so many bytes with a codec.
    """
    predicted_s: dict[str, float] = {}
    for codec in codecs:
        predicted_s[codec] = sum(seconds(num_bytes, codec) for num_bytes in bucket_bytes)
        if predicted_s[codec] <= backward_s:
            return Choice(codec, predicted_s, backward_s)
    shortest = min(predicted_s.values())
    return Choice(next(each for each in codecs if predicted_s[each] <= NEAR * shortest), predicted_s, backward_s)
