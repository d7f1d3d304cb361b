"""`torchrun ... -m collectives bench`: how long a collective takes, ours and Gloo in turn, beside the limit.

Columns; the first five as nccl-tests defines them:

    size      bytes of the message: the larger of what goes into a rank and what comes out
    time      seconds of one call: those of a round of calls on its slowest rank over their number; median of the rounds
    algbw     size / time
    busbw     algbw times the bytes that each rank must send for one byte of the message: 2 (n - 1) / n for an
              all-reduce, (n - 1) / n for reduce-scatter, all-gather and all-to-all, 1 for broadcast and reduce
    wrong     wrong elements of the result, over all ranks, in one call before the timed rounds and one after them
    limit     seconds below which no algorithm can be; of limit: limit / time. See `limit.py`
    planned   seconds that our plan predicts for the links as the group knows them; error: planned / time - 1
    memory    rise of a rank's resident memory since the group was formed, without the message's own tensors; the peak,
              on the rank with the highest
    CPU       seconds of processor time, user and system, of all ranks' processes, for each GB of message
    ratio     Gloo's time over ours

Ours and Gloo use the same tensors and run their rounds in turn, so that other load on the machines affects both alike.
"""
