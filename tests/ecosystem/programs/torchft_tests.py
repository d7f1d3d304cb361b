"""torchft's tests of its process groups, as installed; prints what each test came to.

torchft makes its Gloo groups in C++ by hand, past torch's registry. So in Gloo's place its two classes of Gloo groups
get the one method that makes the group: everything that torchft wraps around it, reconfigures, aborts and ends stays.
The second class, "Baby", makes its group in a process of its own, which imports this file.
"""

import os
import sys
from datetime import timedelta

import torch.distributed as dist
import torchft.process_group as torchft_groups
from torch.distributed import distributed_c10d as c10d

from tests.ecosystem.program import OURS


def made(store, rank, size, timeout):
    """A group of ours on a store, made as torch makes it."""
    import collectives  # noqa: F401  registers the backend

    options = c10d._DistributedBackendOptions()
    options.store, options.group_rank, options.group_size = store, rank, size
    options.timeout, options.group_id, options.global_ranks_in_group = timeout, "torchft", list(range(size))
    return dist.Backend._plugins[OURS.upper()].creator_fn(options, None)


class ProcessGroupGloo(torchft_groups.ProcessGroupGloo):
    def _create_pg(self, store, rank, world_size):
        return made(store, rank, world_size, self._timeout)


class ProcessGroupBabyGloo(torchft_groups.ProcessGroupBabyGloo):
    @classmethod
    def _create_pg(cls, store, rank, world_size):
        return made(store, rank, world_size, timedelta(minutes=30))


class Print:
    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            print("test", "::".join(report.nodeid.split("::")[1:]), report.outcome)
            print(report.longreprtext if report.failed else "", file=sys.stderr)


def give_time(kind):
    """Tests give three processes 10 s to import torch and all else, which a loaded machine does not always keep."""
    make = kind.__init__

    def made_with_time(self, timeout=60.0):
        seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
        make(self, seconds if seconds < 1 else max(seconds, 90.0))

    kind.__init__ = made_with_time


def main():
    import pytest  # not above: the processes of "Baby" groups need none

    give_time(torchft_groups.ProcessGroupBaby)
    if os.environ["ECOSYSTEM_BACKEND"] == OURS:
        from tests.ecosystem.programs import torchft_tests

        torchft_groups.ProcessGroupGloo = torchft_tests.ProcessGroupGloo
        torchft_groups.ProcessGroupBabyGloo = torchft_tests.ProcessGroupBabyGloo
    tests = torchft_groups.__file__.replace(".py", "_test.py")
    pytest.main([tests, "-p", "no:terminal", "-p", "no:cacheprovider", "--rootdir", "."], plugins=[Print()])


if __name__ == "__main__":
    main()
