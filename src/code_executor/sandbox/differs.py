"""Where a backend differs from what the conformance suite asks of all: each check with its reason.

A check named here is run all the same, and must fail (but for ``MAY_PASS``): one that passes is to
be taken off the list.
Everything else must pass. The probes at the service's start read the list too, for the attempts in
it, and ``docs/backends.md`` says what each means to a user.
"""

from __future__ import annotations

from collections.abc import Mapping

_KERNEL = "gVisor's kernel, not the host's, answers here: "

DIFFERS: Mapping[str, Mapping[str, str]] = {
    "gvisor": {
        "isolation.set_user_id_programs": _KERNEL + "it shows its root without nosuid; it gives "
        "set-user-id programs nothing (isolation.gain_by_set_user_id)",
        "isolation.devices_beyond_the_minimum": _KERNEL + "its /dev has its own fuse device",
        "artifacts.kept_when_memory_is_over": "the limit is on gVisor's kernel as a whole, and "
        "ends it: what the program wrote to files is gone with it; its output is kept",
        "memory.inodes_are_bounded": "gVisor has no limit on inodes: the memory limit bounds them",
        "clocks.many_children": "each process takes more memory than on Linux: dozens of them may "
        "end the run as oom before its deadline does",
        "contract.usage_is_true": "a program's own CPU clock also runs while the host runs others: "
        "cpu_ms is the host's count, and on a busy machine the smaller one",
        "processes.a_fork_bomb_ends": "as the number of processes: it may end as oom or killed "
        "before its deadline",
        "processes.the_number_of_processes_is_bounded": "gVisor has no limit on processes of its "
        "own: memory, and a limit on the host's side, end the run as oom or killed",
        "isolation.bring_an_interface_up": _KERNEL + "its network is its own, with nothing outside",
        "isolation.listen_for_others": _KERNEL + "its network is its own: nobody else is there",
        "isolation.descriptors_of_others": _KERNEL + "what init has open can be opened again: "
        "/dev/null, /work and the program's own pipes; not the channel to the service, a socket "
        "(isolation.the_channel_of_init)",
        "isolation.raise_priority": _KERNEL + "it takes any nice value, and the host never sees it",
        "isolation.devices_on_mounts": _KERNEL + "it shows its root without nodev; the host's "
        "devices are not behind it",
        "isolation.read_the_init": _KERNEL + "it shows everybody the environment of process 1, "
        "which is empty but for HOME",
    },
    "docker": {
        "isolation.set_user_id_programs": "the engine mounts images without nosuid; the images "
        "have no such program, no_new_privs makes one worthless, no capability is left to gain",
        "isolation.devices_on_mounts": "the engine mounts images without nodev; no device can be "
        "made without CAP_MKNOD, and the device cgroup admits the usual few only",
        "isolation.traces_of_an_engine": "/.dockerenv is the engine's own; it is empty",
        "isolation.signal_the_init": "init has the program's user id, so the call is allowed; as "
        "PID 1 without handlers it is given no signal",
    },
}

CALLS_MISSING: Mapping[str, frozenset[str]] = {
    "gvisor": frozenset({
        "copy_file_range", "landlock_create_ruleset", "openat2", "pidfd_open", "rseq",
    }),
}  # fmt: skip
"""Calls that the filter lets through and the backend's own kernel does not have: they answer
ENOSYS, and libc and the interpreters fall back. (gVisor's release in Debian 12; later ones have
some of them.)"""


# Those that may pass: what ends first, time or memory, and how busy it is, depends on the machine.
MAY_PASS = frozenset(
    {
        "clocks.many_children",
        "contract.usage_is_true",
        "memory.inodes_are_bounded",
        "processes.a_fork_bomb_ends",
    }
)


def reasons(backend: str) -> Mapping[str, str]:
    """The checks in which a backend differs, by name."""
    return DIFFERS.get(backend, {})
