"""Who the program is: nobody, with nothing, and unable to become somebody."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable

from .harness import Reached, attempt, refused, status


@attempt("P1", quick=True)
def privileged_ids() -> None:
    """Run as user or group 0, or in any further group."""
    ids = {*os.getresuid(), *os.getresgid()}
    if 0 in ids:
        raise Reached(f"ids {os.getresuid()} {os.getresgid()}")
    if groups := set(os.getgroups()) - {os.getgid()}:
        raise Reached(f"further groups {groups}")


@attempt("P1", quick=True)
def capabilities() -> None:
    """Hold a capability in any set."""
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        if int(status(name), 16):
            raise Reached(f"{name} is {status(name)}")


@attempt("P1", quick=True)
def new_privileges() -> None:
    """Run without no_new_privs or without a seccomp filter."""
    if status("NoNewPrivs") != "1":
        raise Reached("no_new_privs is not set")
    if status("Seccomp") != "2":
        raise Reached(f"seccomp mode {status('Seccomp')}")


@attempt("P1")
def become_root() -> None:
    """Become user or group 0."""
    calls: tuple[tuple[str, Callable[[], None]], ...] = (
        ("setuid", lambda: os.setuid(0)),
        ("setgid", lambda: os.setgid(0)),
        ("setreuid", lambda: os.setreuid(0, 0)),
        ("setresuid", lambda: os.setresuid(0, 0, 0)),
        ("setresgid", lambda: os.setresgid(0, 0, 0)),
        ("setgroups", lambda: os.setgroups([0])),
    )
    for name, call in calls:
        with refused(name):
            call()
    libc = ctypes.CDLL(None)
    libc.setfsuid(0)
    if libc.setfsuid(0) == 0:
        raise Reached("setfsuid")


@attempt("P1")
def become_somebody_else() -> None:
    """Become another unprivileged user: another run's, perhaps."""
    for uid in {1, 33, 1000, 65534, os.getuid() + 1, os.getuid() - 1} - {os.getuid()}:
        with refused(f"setuid {uid}"):
            os.setuid(uid)


@attempt("P1")
def map_other_users() -> None:
    """Rewrite the maps of the user namespace."""
    for name in ("uid_map", "gid_map"):
        with refused(f"{name} was written"):
            descriptor = os.open(f"/proc/self/{name}", os.O_WRONLY)
            try:
                os.write(descriptor, b"0 0 1\n")
            finally:
                os.close(descriptor)


@attempt("P1")
def gain_by_set_user_id() -> None:
    """Gain from a set-user-id program, the system's or one's own."""
    with open("/usr/bin/id", "rb") as source, open("/tmp/id", "wb") as copy:
        copy.write(source.read())
    os.chmod("/tmp/id", stat.S_ISUID | stat.S_ISGID | 0o755)
    for command in (
        "/tmp/id -u",
        "/usr/bin/su -c id",
        "/bin/mount",
        "/usr/bin/newgrp root -c 'id -u'",
    ):
        printed = os.popen(f"{command} </dev/null 2>/dev/null").read().split()
        if "0" in printed or "uid=0(root)" in printed:
            raise Reached(command)


@attempt("P1", quick=True)
def inherited_descriptors() -> None:
    """Inherit any descriptor but the three streams, or one that leads somewhere."""
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    own = {n for n in numbers if n > 2 and _is_the_scan(n)}
    if extra := set(numbers) - {0, 1, 2} - own:
        shown = {n: os.readlink(f"/proc/self/fd/{n}") for n in extra}
        raise Reached(f"descriptors {shown}")
    for number in (0, 1, 2):
        mode = os.fstat(number).st_mode
        if stat.S_ISSOCK(mode) or stat.S_ISDIR(mode):
            raise Reached(f"descriptor {number} is {os.readlink(f'/proc/self/fd/{number}')}")


def _is_the_scan(number: int) -> bool:
    """Whether the descriptor was the scan's own, closed by now."""
    try:
        os.fstat(number)
    except OSError:
        return True
    return False


@attempt("P1")
def controlling_terminal() -> None:
    """Have a controlling terminal, or share a session with somebody else."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    session, terminal = int(fields[3]), int(fields[4])
    if terminal:
        raise Reached(f"terminal {terminal}")
    if session == 0:
        raise Reached("the session belongs to somebody outside")


@attempt("P7", quick=True)
def secrets_in_the_environment() -> None:
    """Find a variable of the service in the environment."""
    documented = {
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "MPLBACKEND",
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
    }
    with open("/proc/self/environ", "rb") as file:
        initial = {entry.split(b"=")[0].decode() for entry in file.read().split(b"\0") if entry}
    if extra := (initial | set(os.environ)) - documented:
        raise Reached(f"variables {sorted(extra)}")


@attempt("P7")
def the_host_by_name() -> None:
    """Learn the host's name."""
    name = os.uname().nodename
    with open("/proc/sys/kernel/hostname") as file:
        if file.read().strip() != name:
            raise Reached("two names")
    if name not in ("sandbox", "localhost", "code-executor"):
        raise Reached(f"the host is called {name!r}")


@attempt("P1")
def the_address_space() -> None:
    """Find anything of the service mapped: shared memory, a foreign path."""
    with open("/proc/self/maps") as file:
        for line in file:
            fields = line.split(maxsplit=5)
            path = fields[5].strip() if len(fields) > 5 else ""
            # Read-only ones are libc's own: it maps its converter cache like that.
            if (
                fields[1][1] == "w"
                and fields[1][3] == "s"
                and path not in ("", "/dev/zero (deleted)")
            ):
                raise Reached(f"shared mapping {line.strip()}")
            if path.startswith("/") and not path.startswith(
                ("/usr/", "/opt/", "/work/", "/lib", "/SYSV")
            ):
                raise Reached(f"mapped {path}")


@attempt("P6")
def leftovers() -> None:
    """Find something that an earlier run left: files, shared memory, queues, semaphores."""
    for directory in ("/tmp", "/dev/shm"):
        if names := os.listdir(directory):
            raise Reached(f"{directory} holds {names}")
    for table in ("shm", "msg", "sem"):
        if not os.path.exists("/proc/sysvipc"):
            continue  # a kernel that tells nobody (gVisor)
        with open(f"/proc/sysvipc/{table}") as file:
            if rows := file.readlines()[1:]:
                raise Reached(f"System V {table}: {rows}")
