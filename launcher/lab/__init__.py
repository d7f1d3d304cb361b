"""A farm on one machine: a network namespace for each host, joined by shaped links.

    file.py      what a lab file says, and the topology that follows from it
    network.py   namespaces, bridges and links, by `ip` and `tc`
    record.py    what is up, in /run
    life.py      up, down, and a lab for the time of a command
    inside.py    processes in a host
    ranks.py     a command once in each rank, from start to the last one's end
    ray_nodes.py a Ray node in each host
    warden.py    cleans up after a runner that was killed
    commands.py  `launcher lab ...`

The root namespace gets no device, no address and no rule: the bridges live in a namespace of their own, the switch.
"""
