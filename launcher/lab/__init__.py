"""A farm on one machine: a network namespace for each host, joined by shaped links.

    network.py   namespaces, bridges and links, by `ip` and `tc`
    record.py    which labs are up, in /run
    life.py      up, down, and a lab for the duration of a command
    inside.py    processes in a host
    ranks.py     a command once per rank, from the first start to the last end
    ray_nodes.py a Ray node in each host
    warden.py    cleans up after a runner that was killed
    signals.py   how signals end a command, and when they have to wait
    commands.py  `launcher lab ...`

The root namespace gets no device, no address and no firewall rule: the bridges live in a namespace of their own, the
switch. A lab therefore cannot disturb the network of its machine, and deleting its namespaces removes all of it. The
schema of the lab file, and the topology that follows from it, are `config.lab_file`.
"""
