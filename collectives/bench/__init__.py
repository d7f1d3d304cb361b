"""`torchrun ... -m collectives bench`: how long a collective takes, ours and Gloo in turn, next to what limits it.

Columns; the first five as nccl-tests defines them:

    size      bytes of the message: the larger of what goes into a rank and what comes out
    time      seconds of one call: a round of calls on its slowest rank over their number; the median of the rounds
    algbw     size / time
    busbw     algbw times what each rank must send for one byte of it: 2 (n - 1) / n for an all-reduce,
              (n - 1) / n for reduce-scatter, all-gather and all-to-all, 1 for broadcast and reduce
    wrong     elements of the result that are not what they should be, over all ranks, of a call before the timed rounds
              and one after them
    limit     seconds below which no algorithm can be; of limit: limit / time. See `limit.py`
    planned   seconds that our plan promises over the links as the group knows them; error: planned / time - 1
    memory    by how much a rank's resident memory has risen since the group was formed, beside the message's own
              tensors; at its highest, on the worst rank
    CPU       seconds of processor time, user and system, of all ranks' processes, for each GB of message
    ratio     how many times Gloo's speed

Ours and Gloo use the same tensors and get rounds in turn, so that a change of the machine's mood meets them alike.
"""
