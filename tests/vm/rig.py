"""Boots a real cgroup v2 host with AppArmor and Yama and runs the conformance suite there.

Theory of operation
-------------------
One ``qemu-system-x86_64`` process, without network and by default without KVM, boots
Debian's cloud kernel from the images of ``images.py``. Block devices connect it to us:

=====  ====================  ==========================================================
vda    the Debian system     writes go to a temporary overlay that qemu throws away
vdb    Python packages       read-only
vdc    ``project.tar``       read-only; the checkout and the job: identities and steps
vdd    ``results.tar``       written by the guest as its last act: exit codes, JUnit files
vde    a Docker engine's     its data with the runner images; for the docker backend only,
       data                  writes are thrown away
=====  ====================  ==========================================================

The serial console is copied to standard output for people; nothing is concluded from it,
because a program under test can print whatever it likes. The verdict comes from the
results: every step of every identity must have ended with 0 and have skipped no test, for
all that a test can need is there. A guest that wrote none (panic, hang, time limit) has
failed. qemu is killed at the time limit, and by the kernel should this process die first.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.vm.images import Images, pack_project, prepare

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache/vm"
RESULT_BYTES = 32 * 2**20

# What must be on PATH, and the Debian package that brings it.
TOOLS = {
    "git": "git",
    "mkfs.ext4": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
}

# Who can use a backend: the OCI runtimes are root's, an engine's socket is open to its group.
BACKENDS = {
    "native": ("root", "user"),
    "docker": ("root", "user"),
    "runc": ("root",),
    "gvisor": ("root",),
}
KINDS = ("facts", "build", "check", "conformance", "engine")
PYTEST = ["python", "-m", "pytest", "--color=no", "-p", "no:cacheprovider"]
CONTROL = "tests/conformance/test_control.py"
# What of the docker backend is not in the suite: how it is held, AppArmor, crashes.
ENGINE_TESTS = ["tests/security/test_apparmor.py", "tests/integration/test_docker_engine.py"]


@dataclass(frozen=True, slots=True)
class Job:
    """What to run inside: for each identity the argument vectors by step name."""

    sessions: dict[str, dict[str, list[str]]]


def main(arguments: Sequence[str]) -> int:
    """Build what is missing, boot, run the job; 0 if every step passed, 1 if not."""
    options = parse(arguments)
    job = Job({name: session(name, options) for name in options.identities})
    install_tools()
    with alone(CACHE):
        images = prepare(ROOT, CACHE, engine="docker" in options.backends)
        project, results = CACHE / "project.tar", CACHE / "results.tar"
        pack_project(ROOT, asdict(job), project)
        with results.open("wb") as empty:
            empty.truncate(RESULT_BYTES)
        command = qemu_command(images, project, results, options)
        if not run_machine(command, options.time_limit):
            print(f"vm: stopped at the time limit of {options.time_limit} s")
        return report(job, results, CACHE / "results")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; see ``--help``."""
    parser = argparse.ArgumentParser(prog="tests/vm/run", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--as", dest="identities", action="append", choices=("root", "user"))
    add("--step", dest="kinds", action="append", choices=KINDS, help="default: all")
    add("--backend", dest="backends", action="append", choices=tuple(BACKENDS), help="default: all")
    add("--time-limit", type=int, default=3600, metavar="SECONDS", help="default %(default)s")
    add("--memory", type=int, default=2048, metavar="MIB", help="default %(default)s")
    add("--clock", type=float, default=1.0, metavar="RATE", help="of its clock, on a busy machine")
    add("--accel", default="tcg", help="qemu's accelerator: tcg (default, works anywhere) or kvm")
    add("command", nargs="*", help="run this in the machine instead of the steps")
    options = parser.parse_args(arguments)
    options.identities = options.identities or ["root", "user"]
    options.backends = options.backends or list(BACKENDS)
    options.kinds = options.kinds or list(KINDS)
    return options


def session(identity: str, options: argparse.Namespace) -> dict[str, list[str]]:
    """The steps of an identity by name, in order: a command alone, or those that were chosen."""
    if options.command:
        return {"command": list(options.command)}
    found = {"facts": ["python3", "tests/vm/guest.py", "facts"], "build": build_command()}
    for name, users in BACKENDS.items():
        if name in options.backends and identity in users:
            found |= backend_steps(name)
    return {name: argv for name, argv in found.items() if name.split("-")[0] in options.kinds}


def build_command() -> list[str]:
    """What ``make up`` builds of the checkout."""
    build = (
        "python -m code_executor.sandbox.build; "
        "python -m code_executor.languages.goindex .runtime/go"
    )
    return ["sh", "-euxc", build]


def backend_steps(name: str) -> dict[str, list[str]]:
    """The steps that try a backend."""
    tests = [f"tests/conformance/test_{name}.py", *([CONTROL] if name == "native" else [])]
    steps = {
        f"check-{name}": ["env", f"SANDBOX_BACKEND={name}", "code-executor", "check"],
        f"conformance-{name}": [*PYTEST, *tests, f"--junitxml={{results}}/conformance-{name}.xml"],
    }
    if name == "docker":
        steps["engine-docker"] = [*PYTEST, *ENGINE_TESTS, "--junitxml={results}/engine-docker.xml"]
    return steps


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """Hold ``directory`` for this process; another run in the same checkout waits."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install_tools() -> None:
    """Install the missing tools with apt-get as root; otherwise end with what to install."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"  # where Debian keeps mkfs
    packages = [package for tool, package in TOOLS.items() if not shutil.which(tool, path=path)]
    if not packages:
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise SystemExit(f"vm: please install: apt-get install {' '.join(packages)}")
    print(f"vm: installing {' '.join(packages)}", flush=True)
    install = ["apt-get", "install", "--yes", "--no-install-recommends", *packages]
    subprocess.run(install, check=True, stdout=subprocess.DEVNULL)


def qemu_command(
    images: Images, project: Path, results: Path, options: argparse.Namespace
) -> list[str]:
    """The argument vector that boots the machine."""
    kernel_arguments = (
        "console=ttyS0 loglevel=3 panic=-1 root=/dev/vda rw init=/sbin/vm-init "
        "apparmor=1 lsm=landlock,lockdown,yama,apparmor "
        "no_timer_check"  # which fails where the processor is much faster than the clock
    )
    engine = f"file={images.engine},format=raw,if=virtio,snapshot=on"
    return [
        *("setpriv", "--pdeathsig", "KILL"),
        *(slow_clock(options.clock) if options.clock != 1 else ()),
        *("qemu-system-x86_64", "-accel", options.accel, "-cpu", "max", "-smp", "2"),
        *("-m", str(options.memory), "-nic", "none", "-no-reboot"),
        *("-display", "none", "-monitor", "none", "-serial", "stdio"),
        *("-kernel", str(images.kernel), "-initrd", str(images.initrd)),
        *("-append", kernel_arguments),
        *("-drive", f"file={images.base},format=raw,if=virtio,snapshot=on"),
        *("-drive", f"file={images.python},format=raw,if=virtio,readonly=on"),
        *("-drive", f"file={project},format=raw,if=virtio,readonly=on"),
        *("-drive", f"file={results},format=raw,if=virtio"),
        *(("-drive", engine) if images.engine else ()),
    ]


def slow_clock(rate: float) -> list[str]:
    """What makes a program, and so the machine in it, live at ``rate`` seconds in one of ours.

    A guest that gets a fifth of a core then sees a slow host, not one that misses every deadline.
    """
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        raise SystemExit("vm: please install: apt-get install faketime")
    return ["env", f"LD_PRELOAD={libraries[0]}", f"FAKETIME=+0 x{rate:g}"]


def run_machine(command: Sequence[str], time_limit: float) -> bool:
    """Run qemu with its console on our output; False if it had to be killed at the limit."""
    machine = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        machine.wait(time_limit)
    except subprocess.TimeoutExpired:
        return False
    finally:
        machine.kill()
        machine.wait()
    return True


def report(expected: Job, results: Path, directory: Path) -> int:
    """Unpack the guest's results into ``directory``, print them, return the verdict."""
    shutil.rmtree(directory, ignore_errors=True)
    codes = read_codes(results, directory)
    verdict = 0
    planned = [(name, step) for name, steps in expected.sessions.items() for step in steps]
    for identity, step in planned:
        code = codes.get(identity, {}).get(step)
        tests = count_tests(directory / identity / f"{step}.xml")
        passed = code == 0 and not tests.get("skipped")
        outcome = "passed" if passed else "DID NOT END" if code is None else "FAILED"
        counts = ", ".join(f"{count} {name}" for name, count in tests.items())
        print(f"vm: {outcome}: {identity} {step} {counts}".rstrip())
        verdict |= not passed
    return verdict


def read_codes(results: Path, directory: Path) -> dict[str, dict[str, int]]:
    """Unpack the guest's results into ``directory``; exit codes by identity and step.

    Empty when the guest wrote none: the disk is still all zeros, which tar reads as nothing.
    """
    with tarfile.open(results) as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isfile() else None
            if content is not None:
                target = directory.joinpath(*Path(entry.name).parts[1:])
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    codes = directory / "codes.json"
    return json.loads(codes.read_text()) if codes.exists() else {}


def count_tests(path: Path) -> dict[str, int]:
    """The counts in pytest's JUnit file at ``path``, by name; empty if there is no file.

    It counts a check that is declared to fail, and did, as skipped; here it is not.
    """
    if not path.is_file():
        return {}
    [suite] = ElementTree.parse(path).getroot()
    names = ("tests", "failures", "errors", "skipped")
    counts = {name: int(suite.get(name, 0)) for name in names}
    counts["skipped"] -= len(suite.findall(".//skipped[@type='pytest.xfail']"))
    return counts


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
