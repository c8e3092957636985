"""The AppArmor profile: the parser takes it; where the kernel has AppArmor, it holds a container.

The second half needs an engine on a host with AppArmor and the profile loaded, as ``make test-vm``
makes one. What the profile denies is tried as root with every capability and no system call filter:
nothing else holds such a container back, which the same attempts without the profile show.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import running_docker
from tests.engine.rig import Engine, must_run

from code_executor.errors import HostUnfit
from code_executor.model import RunStatus
from code_executor.sandbox.conformance.bench import plan
from code_executor.sandbox.docker import DockerBackend
from code_executor.sandbox.docker_spec import APPARMOR
from code_executor.sandbox.probes import run_once

PROFILE = Path(__file__).parents[2] / "apparmor" / "code-executor"


def _parser() -> str:
    found = shutil.which("apparmor_parser", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is not None:
        return found
    reason = "no apparmor_parser; scripts/setup.sh --tests"
    if must_run(os.environ, "docker"):
        pytest.fail(reason)
    pytest.skip(reason)


def _parse(text: str) -> subprocess.CompletedProcess[str]:
    """Compile without loading it (-Q: there may be no AppArmor in this kernel) or caching it."""
    return subprocess.run([_parser(), "-Q", "-K"], input=text, capture_output=True, text=True)


def test_the_parser_takes_the_profile() -> None:
    done = _parse(PROFILE.read_text())
    assert done.returncode == 0, done.stderr


def test_the_parser_refuses_a_broken_one() -> None:
    assert _parse(PROFILE.read_text().replace("deny mount,", "deny mount")).returncode != 0


def test_the_profile_has_the_name_that_the_backend_asks_for() -> None:
    assert re.findall(r"^profile (\S+)", PROFILE.read_text(), re.M) == [APPARMOR]


# ── on a host with AppArmor ──

ENABLED = Path("/sys/module/apparmor/parameters/enabled")
has_apparmor = pytest.mark.skipif(
    not (ENABLED.exists() and ENABLED.read_text().strip() == "Y"),
    reason="this kernel has no AppArmor; make test-vm has",
)
MISSING = "code-executor-not-loaded"
OWN = "/proc/self/attr/current"
TELLS = {
    "python": f"print(open({OWN!r}).read())",
    "node": f"console.log(require('fs').readFileSync({OWN!r}, 'utf8'))",
    "ruby": f"puts File.read({OWN!r})",
    "php": f"<?php echo file_get_contents({OWN!r});",
    "go": 'package main\nimport ("fmt"; "os")\n'
    f'func main() {{ b, _ := os.ReadFile("{OWN}"); fmt.Print(string(b)) }}\n',
}

ATTEMPTS = """
import ctypes, os, signal, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)

def call(name, *arguments):
    if getattr(libc, name)(*arguments) == -1:
        raise OSError(ctypes.get_errno(), name)

def write(path, text):
    with open(path, "w") as file:
        file.write(text)

def trace():
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        call("ptrace", 16, child, None, None)
    finally:
        os.kill(child, signal.SIGKILL)

TRIES = {
    "mount": lambda: call("mount", b"none", b"/tmp", b"tmpfs", 0, None),
    "remount": lambda: call("mount", b"none", b"/", None, 32 | 4096, None),
    "umount": lambda: call("umount2", b"/dev/shm", 2),
    "set the host's name": lambda: socket.sethostname("mine"),
    "change an owner": lambda: os.chown("/dev/shm", 5, 5),
    "a raw packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "write to the root": lambda: write("/file", "x"),
    "a file of another place in proc": lambda: write("/proc/self/coredump_filter", "0"),
    "a setting of the kernel": lambda: write("/proc/sys/kernel/domainname", "mine"),
    "read a key list": lambda: open("/proc/keys").read(),
    "read sys": lambda: os.listdir("/sys/kernel"),
    "be unconfined": lambda: write("/proc/self/attr/current", "changeprofile unconfined"),
    "trace a child": trace,
}
held = []
for name, attempt in TRIES.items():
    try:
        attempt()
    except OSError:
        held.append(name)
print(", ".join(held) if held else "nothing", "of", len(TRIES))
"""


def _attempt(engine: Engine, profile: str) -> str:
    """Run the attempts in a container that only ``profile`` holds; what did not go through."""
    free = ["--user=0", "--cap-add=ALL", "--network=none", "--entrypoint=python3"]
    for option in ("seccomp=unconfined", "systempaths=unconfined", f"apparmor={profile}"):
        free += ["--security-opt", option]
    return engine.docker("run", "--rm", *free, "code-executor/python", "-c", ATTEMPTS)


@has_apparmor
@pytest.mark.docker
@pytest.mark.asyncio(loop_scope="session")
@pytest.mark.parametrize("language", TELLS)
async def test_programs_of_every_language_run_under_the_profile(
    docker: DockerBackend, language: str
) -> None:
    outcome = await run_once(docker, plan(language, TELLS[language], timeout_ms=10_000))
    assert outcome.status is RunStatus.SUCCEEDED, outcome.stderr.data
    assert outcome.stdout.data.strip() == f"{APPARMOR} (enforce)".encode()


@has_apparmor
@pytest.mark.docker
def test_the_profile_denies_what_nothing_else_does(engine: Engine) -> None:
    assert _attempt(engine, "unconfined").startswith("nothing of ")
    held, _, number = _attempt(engine, APPARMOR).rpartition(" of ")
    assert len(held.split(", ")) == int(number), f"only these are held: {held}"


@has_apparmor
@pytest.mark.docker
@pytest.mark.asyncio(loop_scope="session")
async def test_a_start_without_the_profile_says_what_to_load(
    engine: Engine, tmp_path: Path
) -> None:
    with pytest.raises(HostUnfit, match="apparmor") as caught:
        async with running_docker(engine, tmp_path, apparmor_profile=MISSING):
            pass
    assert MISSING in caught.value.fix
    assert MISSING not in engine.docker("ps", "--all", "--no-trunc")


@has_apparmor
@pytest.mark.docker
@pytest.mark.parametrize("command", ["check", "serve"])
def test_the_service_without_the_profile_does_not_start(
    engine: Engine, tmp_path: Path, command: str
) -> None:
    given = {
        "SANDBOX_BACKEND": "docker",
        "DOCKER_HOST": engine.address,
        "APPARMOR_PROFILE": MISSING,
        "DATA_DIR": str(tmp_path),
        "API_KEYS": "key-for-a-test:test",
        "PORT": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", "from code_executor.cli import main; main()", command],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert MISSING in said, said
    assert "no container can be made" in " ".join(said.split())
