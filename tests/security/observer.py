"""Runs inside a sandbox: tells everything about itself that can be observed, as one JSON object."""

import json
import os
import resource
import stat


def lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


def tree(path: str) -> dict[str, str]:
    """Names below ``path``, one level, each with its kind and mode."""
    return {
        name: stat.filemode(os.lstat(os.path.join(path, name)).st_mode)
        for name in sorted(os.listdir(path))
    }


def mounts() -> list[dict[str, str]]:
    found = []
    for line in lines("/proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        _, _, _, root, point, options = before.split()[:6]
        found.append({"point": point, "root": root, "type": after.split()[0], "options": options})
    return found


def stream(number: int) -> str:
    mode = os.fstat(number).st_mode
    kinds = {"fifo": stat.S_ISFIFO, "regular": stat.S_ISREG, "device": stat.S_ISCHR}
    return next((name for name, test in kinds.items() if test(mode)), "other")


def descriptors() -> list[int]:
    with os.scandir("/proc/self/fd") as entries:
        numbers = [int(entry.name) for entry in entries]
    return [number for number in sorted(numbers) if _still_open(number)]


def _still_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def observe() -> dict[str, object]:
    numbers = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    process = lines("/proc/self/stat")[0].rpartition(")")[2].split()
    return {
        "status": dict(line.split(":\t", 1) for line in lines("/proc/self/status")),
        "mounts": mounts(),
        "descriptors": descriptors(),
        "streams": [stream(number) for number in (0, 1, 2)],
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in numbers},
        "namespaces": {
            name: os.readlink(f"/proc/self/ns/{name}") for name in os.listdir("/proc/self/ns")
        },
        "cgroups": sorted({line.split(":", 2)[2] for line in lines("/proc/self/cgroup")}),
        "uid_map": [line.split() for line in lines("/proc/self/uid_map")],
        "gid_map": [line.split() for line in lines("/proc/self/gid_map")],
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "environment": dict(os.environ),
        "session": {
            "sid": os.getsid(0) == os.getpid(),
            "pgid": os.getpgid(0) == os.getpid(),
            "tty": process[4],
        },
        "parent": os.getppid(),
        "threads": os.listdir("/proc/self/task") == [str(os.getpid())],
        "processes": [name for name in os.listdir("/proc") if name.isdigit()] == [str(os.getpid())],
        "nice": os.nice(0),
        "policy": os.sched_getscheduler(0),
        "umask": os.umask(0o22),
        "cwd": os.getcwd(),
        "hostname": os.uname().nodename,
        "oom_score_adj": lines("/proc/self/oom_score_adj")[0],
        "personality": lines("/proc/self/personality")[0]
        if os.access("/proc/self/personality", os.R_OK)
        else "00000000",
        "interfaces": [line.split(":")[0].strip() for line in lines("/proc/self/net/dev")[2:]],
        "root": tree("/"),
        "dev": tree("/dev"),
        "etc": list(tree("/etc")),
        "work": tree("/work"),
        "tmp": tree("/tmp"),
        "shm": tree("/dev/shm"),
        "opt": tree("/opt"),
    }


print(json.dumps(observe()))
