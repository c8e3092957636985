"""The inside of the virtual machine: becomes an ordinary host, runs the job, reports.

Theory of operation
-------------------
The kernel starts ``/sbin/vm-init``, which unpacks ``project.tar`` and becomes ``guest.py boot``,
PID 1 of the machine. PID 1 forks once: the child does everything, the parent only reaps what
is reparented to it, as an ordinary init does (a suite that looks for left-over processes
must not find zombies of ours), and resets the machine when the child has ended.

The child makes the mounts and cgroups that systemd would make and then holds one session for
each identity of the job: a fresh copy of the project owned by that identity, and each step
as a process of that identity in a cgroup made for that step:

``root``
    a service in ``system.slice``.
``user``
    uid 1000, a scope below ``user@1000.service``, which is delegated to it, like
    ``systemd-run --user --scope``.

Where there is a fifth disk, a Docker engine with its data on it is started first, as a service; its
socket belongs to the ordinary user's group. The project's AppArmor profile is loaded with the
system's own, as ``docs/docker.md`` asks of an operator.

A step that leaves a process behind has failed, whatever its exit code says. The exit codes
go to ``results.tar``, written to the fourth disk as the last act. A machine that dies on the
way writes none, and that counts as failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

JOB = Path("/srv/job")
PROJECT = Path("/srv/code-executor")
RESULTS = Path("/run/results")
CGROUPS = Path("/sys/fs/cgroup")
KERNEL_THREADS = 2  # the process that is the parent of them all
CONTROLLERS = ("cpu", "memory", "pids")
ENGINE_DISK = Path("/dev/vde")
ENGINE_SOCKET = Path("/run/docker.sock")
ENGINE_TIMEOUT_S = 180
DELEGATED_FILES = ("", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads")

MOUNTS = (
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", "nosuid,nodev,noexec,nsdelegate"),
    ("securityfs", "/sys/kernel/security", "securityfs", "nosuid,nodev,noexec"),
    ("tmpfs", "/dev/shm", "tmpfs", "nosuid,nodev"),
    ("/dev/vdb", "/opt", "ext4", "ro"),
)
SYSCTLS = {
    "kernel/hostname": "testhost",
    "kernel/yama/ptrace_scope": "1",
    "kernel/unprivileged_userns_clone": "1",
    "net/ipv4/ping_group_range": "0 2147483647",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Who holds a session; ``delegated`` is the cgroup given to it, ``scope`` where a step runs."""

    uid: int
    home: str
    delegated: str
    scope: str


IDENTITIES = {
    "root": Identity(0, "/root", "system.slice", "system.slice/code-executor-{step}.service"),
    "user": Identity(
        1000,
        "/home/runner",
        "user.slice/user-1000.slice/user@1000.service",
        "user.slice/user-1000.slice/user@1000.service/app.slice/{step}.scope",
    ),
}


def main(arguments: Sequence[str]) -> int:
    """Run one of the verbs ``boot``, ``enter`` and ``facts``; return its exit code."""
    match list(arguments):
        case ["boot"]:
            boot()
            return 0
        case ["enter", identity, cgroup, *command]:
            enter(IDENTITIES[identity], Path(cgroup), command)
        case ["facts"]:
            return print_facts()
    return 2


def boot() -> None:
    """Be PID 1: hold the session in a child, reap everything, reset the machine."""
    session = os.fork()
    if session == 0:
        try:
            run_job(**json.loads((JOB / "job.json").read_text()))
        except BaseException:
            traceback.print_exc()  # the console is all that there is to tell it to
        finally:
            sys.stderr.flush()
            os._exit(0)
    while os.wait()[0] != session:
        pass
    os.sync()
    Path("/proc/sysrq-trigger").write_text("b")


def run_job(sessions: Mapping[str, Mapping[str, list[str]]]) -> None:
    """Run the steps of each identity's session and write the exit codes."""
    furnish()
    RESULTS.mkdir()
    if ENGINE_DISK.exists():
        start_engine()
    codes = {name: run_session(name, steps) for name, steps in sessions.items()}
    (RESULTS / "codes.json").write_text(json.dumps(codes))
    with tarfile.open("/dev/vdd", "w") as archive:
        archive.add(RESULTS, "results")


def furnish() -> None:
    """Make the mounts, settings and loopback interface of an ordinary host."""
    for source, target, kind, options in MOUNTS:
        Path(target).mkdir(exist_ok=True)
        _run("mount", "-t", kind, "-o", options, source, target)
    for name, value in SYSCTLS.items():
        (Path("/proc/sys") / name).write_text(value)
    _run("ip", "link", "set", "lo", "up")
    shutil.copy(JOB / "project/apparmor/code-executor", "/etc/apparmor.d/")
    _run("apparmor_parser", "--replace", "--skip-cache", "/etc/apparmor.d")


def start_engine() -> None:
    """Start a Docker engine as a service of the machine and wait until it answers.

    It needs no network: containers of this project have none.
    """
    data = Path("/var/lib/docker")
    data.mkdir(exist_ok=True)
    _run("mount", "-t", "ext4", str(ENGINE_DISK), str(data))
    group = make_cgroup(IDENTITIES["root"], "system.slice/docker.service")
    command = ["dockerd", "--iptables=false", "--bridge=none"]
    command += [f"--host=unix://{ENGINE_SOCKET}", "--group=runner"]
    with (RESULTS / "dockerd.log").open("wb") as log:
        subprocess.Popen(
            [sys.executable, __file__, "enter", "root", str(group), *command],
            env=environment(IDENTITIES["root"]),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + ENGINE_TIMEOUT_S
    ask = ["docker", "version"]
    while subprocess.run(ask, capture_output=True).returncode and time.monotonic() < deadline:
        time.sleep(1)  # one that never answers is told by every step that needs it


def run_session(name: str, steps: Mapping[str, list[str]]) -> dict[str, int]:
    """Run ``steps`` as the identity ``name``; return their exit codes by step."""
    identity = IDENTITIES[name]
    own_directory(RESULTS / name, identity)
    own_directory(Path(f"/run/user/{identity.uid}"), identity)
    lay_out_project(identity)
    codes = {}
    for step, command in steps.items():
        print(f"\n=== {name}: {step}", flush=True)
        started = time.monotonic()
        argv = [part.replace("{results}", str(RESULTS / name)) for part in command]
        before = frozenset(others())
        codes[step] = run_step(name, step, argv) or report_left_over(before)
        elapsed = time.monotonic() - started
        print(f"=== {name}: {step} ended with {codes[step]} after {elapsed:.0f} s", flush=True)
    return codes


def run_step(name: str, step: str, command: Sequence[str]) -> int:
    """Run ``command`` as the identity ``name`` in a cgroup of its own; return its exit code."""
    identity = IDENTITIES[name]
    cgroup = make_cgroup(identity, identity.scope.format(step=step))
    return subprocess.run(
        [sys.executable, __file__, "enter", name, str(cgroup), *command],
        cwd=PROJECT,
        env=environment(identity),
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    ).returncode


def make_cgroup(identity: Identity, path: str) -> Path:
    """Make a cgroup with every controller on down to it; what is delegated changes owner."""
    group = CGROUPS
    for part in Path(path).parts:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in CONTROLLERS))
        group = group / part
        group.mkdir(exist_ok=True)
        if group.is_relative_to(CGROUPS / identity.delegated):
            for name in DELEGATED_FILES:
                os.chown(group / name, identity.uid, identity.uid)
    return group


def report_left_over(before: Set[int]) -> int:
    """Print and end the processes that a step left behind; return 1 if there were any.

    ``before`` are those that were there when it began. The others get a moment, for a process that
    was killed may still be on its way out.
    """
    deadline = time.monotonic() + 10
    while (left := [pid for pid in others() if pid not in before]) and time.monotonic() < deadline:
        time.sleep(0.2)
    for pid in left:
        name = _read(Path(f"/proc/{pid}/cmdline")).replace("\0", " ")
        print(f"NOT ended: process {pid} {name}", flush=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return 1 if left else 0


def others() -> list[int]:
    """The processes of this machine, but for PID 1, ourselves and the kernel's threads."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent not in (0, KERNEL_THREADS) and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found


def lay_out_project(identity: Identity) -> None:
    """Replace the project by a fresh copy that belongs to ``identity``."""
    shutil.rmtree(PROJECT, ignore_errors=True)
    shutil.copytree(JOB / "project", PROJECT)
    (PROJECT / ".venv").symlink_to("/opt/venv")
    (PROJECT / ".runtime").mkdir()
    (PROJECT / ".runtime/python").symlink_to("/opt/runtime")
    (PROJECT / ".runtime/go").symlink_to("/var/lib/go-runtime")
    _run("chown", "--recursive", "--no-dereference", f"{identity.uid}:{identity.uid}", str(PROJECT))


def own_directory(path: Path, identity: Identity) -> None:
    """Make ``path``, private to ``identity``."""
    path.mkdir(parents=True)
    path.chmod(0o700)
    os.chown(path, identity.uid, identity.uid)


def environment(identity: Identity) -> dict[str, str]:
    """The environment a login of ``identity`` has, the project's tools first in PATH."""
    engine = {"CODE_EXECUTOR_ENGINE": f"unix://{ENGINE_SOCKET}"} if ENGINE_DISK.exists() else {}
    return {
        **engine,
        "CODE_EXECUTOR_MUST_RUN": "docker,gvisor,runc",
        "HOME": identity.home,
        "LANG": "C.UTF-8",
        "PATH": f"{PROJECT}/.venv/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
        "XDG_RUNTIME_DIR": f"/run/user/{identity.uid}",
    }


def enter(identity: Identity, cgroup: Path, command: list[str]) -> None:
    """Join ``cgroup``, become ``identity``, and become ``command``."""
    (cgroup / "cgroup.procs").write_text("0")
    os.setgroups([])
    os.setresgid(identity.uid, identity.uid, identity.uid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    os.execvp(command[0], command)


def print_facts() -> int:
    """Print what this host is; return 1 unless it is the host the suite is meant to meet."""
    failures = 0
    for name, value, fits in facts():
        print(f"{'ok ' if fits else 'NOT'} {name}: {value}")
        failures += not fits
    print(Path("/proc/cgroups").read_text(), end="", flush=True)
    return 1 if failures else 0


def facts() -> Iterator[tuple[str, str, bool]]:
    """Name, value and fitness of each property of the host that the rig promises."""
    yield "kernel", platform.release(), "cloud" in platform.release()
    yield "uid", str(os.getuid()), True
    mounts = Path("/proc/self/mountinfo").read_text()
    kinds = {line.split(" - ")[1].split()[0] for line in mounts.splitlines()}
    versions = sorted(kinds & {"cgroup", "cgroup2"})
    yield "cgroup file systems", " ".join(versions), versions == ["cgroup2"]
    yield "cgroups nsdelegate", str("nsdelegate" in mounts), "nsdelegate" in mounts
    own = Path("/proc/self/cgroup").read_text().strip().removeprefix("0::/")
    yield "own cgroup", own, os.access(CGROUPS / own, os.W_OK)
    controllers = _read(CGROUPS / own / "cgroup.controllers")
    yield "own controllers", controllers, set(CONTROLLERS) <= set(controllers.split())
    modules = _read(Path("/sys/kernel/security/lsm"))
    wanted = {"landlock", "lockdown", "yama", "apparmor"}
    yield "security modules", modules, wanted <= set(modules.split(","))
    yama = _read(Path("/proc/sys/kernel/yama/ptrace_scope"))
    yield "ptrace_scope", yama, yama == "1"
    apparmor = _read(Path("/sys/module/apparmor/parameters/enabled"))
    yield "apparmor", apparmor, apparmor == "Y"
    yield "own apparmor profile", _read(Path("/proc/self/attr/apparmor/current")), True
    if os.getuid() == 0:  # nobody else may read it
        profiles = _read(Path("/sys/kernel/security/apparmor/profiles"))
        yield "apparmor profiles", profiles.replace("\n", ", "), "enforce" in profiles
    if ENGINE_DISK.exists():
        yield from engine_facts()
    subuids = _read(Path("/etc/subuid"))
    yield "subordinate ids", subuids, subuids.endswith(":65536") and bool(shutil.which("newuidmap"))
    uid = _uid_in_new_namespaces()
    yield "uid in new namespaces", uid, uid == "0"


def engine_facts() -> Iterator[tuple[str, str, bool]]:
    """What the Docker engine says of this host."""
    wanted = "{{.CgroupVersion}} {{.CgroupDriver}} {{.Driver}} {{.SecurityOptions}}"
    asked = ["docker", "info", "--format", wanted]
    told = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    fits = told.startswith("2 ") and "name=apparmor" in told and "name=seccomp" in told
    yield "docker engine", told, fits


def _uid_in_new_namespaces() -> str:
    command = "unshare --user --map-root-user --pid --mount --net --ipc --uts --cgroup --fork id -u"
    result = subprocess.run(command.split(), capture_output=True, text=True)
    return (result.stdout or result.stderr).strip()


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        return f"({error.strerror})"


def _run(*command: str) -> None:
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
