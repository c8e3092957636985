"""``make compose-up``: images built from this checkout, compose.yaml started on an own engine.

Each profile is started once, in the order of the tests below; the last two end it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.engine.rig import LANGUAGES, Engine, must_run

from code_executor.sandbox.cgroup import find_mounts
from code_executor.sandbox.docker_owner import HOME_LABEL

pytestmark = pytest.mark.docker

ROOT = Path(__file__).parents[2]
TOKEN = "compose-test-token"
WAIT_S = 300
AT_ONCE = 20
NATIVE_CAPS = {
    "KILL": 5,
    "NET_ADMIN": 12,
    "SETGID": 6,
    "SETPCAP": 8,
    "SETUID": 7,
    "SYS_ADMIN": 21,
    "SYS_CHROOT": 18,
    "SYS_PTRACE": 19,
}
"""Name and number (linux/capability.h) of all that the native service has."""
HELLO = {
    "python": "print('hello')",
    "node": "console.log('hello')",
    "ruby": "puts 'hello'",
    "php": '<?php echo "hello\\n";',
    "go": 'package main\nimport "fmt"\nfunc main() { fmt.Println("hello") }',
}


@dataclass(frozen=True)
class Service:
    """One profile of compose.yaml under a project name of its own."""

    engine: Engine
    profile: str
    port: int
    others: frozenset[str]

    @property
    def project(self) -> str:
        """What names begin with, as Compose makes them."""
        return f"code-executor-test-{self.profile}"

    def make(self, target: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """``make TARGET`` with this engine."""
        environment = self.engine.environment | {
            "API_KEYS": f"{TOKEN}:tester:1000:1000",
            "COMPOSE_PROJECT_NAME": self.project,
            "MAX_CONCURRENCY": str(AT_ONCE),
            "MAX_TIMEOUT_MS": str(1000 * WAIT_S),
            "PORT": str(self.port),
            "PROFILE": self.profile,
        }
        if self.profile == "docker" and find_mounts().version == 1:
            environment["WAIVE_PROMISES"] = "P4"  # docs/compose.md
        return subprocess.run(
            ["make", "--silent", target],
            cwd=ROOT,
            env=environment | settings,
            capture_output=True,
            text=True,
            check=False,
        )

    def client(self) -> httpx.Client:
        """Speaks to the published port, with the API key."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=WAIT_S,
        )

    def run(self, language: str, code: str, timeout_ms: int = 10_000) -> dict[str, Any]:
        """A program's whole answer."""
        with self.client() as client:
            body = {"language": language, "code": code, "limits": {"timeout_ms": timeout_ms}}
            answer = client.post("/v1/runs", json=body)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def told(self, name: str = "") -> dict[str, Any]:
        """What the engine says of a container; of the service's, where none is named."""
        chosen = f"label=com.docker.compose.service={name or self.profile}"
        ours = f"label=com.docker.compose.project={self.project}"
        found = self.engine.docker("ps", "--quiet", "--filter", ours, "--filter", chosen)
        (told,) = json.loads(self.engine.docker("inspect", *found.split()))
        return dict(told)

    def inside(self, *command: str) -> str:
        """Standard output of a command in the service's container, with all that it may do."""
        return self.engine.docker("exec", self.told()["Id"], *command)

    def running(self) -> int:
        """How many programs run now."""
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        (told,) = (line for line in lines if line.startswith("code_executor_runs_in_flight "))
        return int(float(told.split()[1]))

    def runners(self) -> set[str]:
        """The containers that its programs run in."""
        listed = self.engine.docker("ps", "--all", "--quiet", "--filter", f"label={HOME_LABEL}")
        return set(listed.split()) - self.others

    def kill(self) -> None:
        """SIGKILL to the service itself, from the host; the engine starts it again."""
        first = self.told()["State"]["Pid"]
        (service,) = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        os.kill(int(service), signal.SIGKILL)

    def is_healthy_again(self) -> bool:
        """Whether it was started again, and its health check is content."""
        told = self.told()
        healthy: bool = told["State"]["Health"]["Status"] == "healthy"
        return healthy and told["RestartCount"] > 0


@pytest.fixture(scope="module", params=["native", "docker"])
def service(request: pytest.FixtureRequest, engine: Engine) -> Iterator[Service]:
    """Built, started and healthy."""
    one = _service(engine, request.param)
    try:
        done = one.make("compose-up")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "is healthy" in done.stdout
        yield one
    finally:
        _remove(one)


def _service(engine: Engine, profile: str) -> Service:
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
    if plugin.returncode != 0 and shutil.which("docker-compose") is None:
        if must_run(os.environ, "docker"):
            pytest.fail("no Docker Compose; scripts/setup.sh --tests")
        pytest.skip("no Docker Compose; scripts/setup.sh --tests")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Service(engine, profile, port, frozenset(engine.containers()))


def _remove(service: Service) -> None:
    service.make("compose-down")
    for volume in _volumes(service):
        service.engine.docker("volume", "rm", "--force", volume)


def _volumes(service: Service) -> list[str]:
    listed = service.engine.docker("volume", "ls", "--quiet")
    return [name for name in listed.split() if name.startswith(service.project)]


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WAIT_S} s"
        time.sleep(0.2)


# ── what it does ──


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_program_runs(service: Service, language: str) -> None:
    told = service.run(language, HELLO[language])
    assert (told["status"], told["stdout"]) == ("succeeded", "hello\n"), told


def test_a_key_is_asked_for(service: Service) -> None:
    with service.client() as client:
        del client.headers["Authorization"]
        assert client.get("/v1/ready").status_code == 401


def test_an_artifact_is_fetched_by_its_link(service: Service) -> None:
    told = service.run("python", "open('outputs/a.txt', 'w').write('made')")
    (artifact,) = told["artifacts"]
    assert artifact["url"].startswith(f"http://127.0.0.1:{service.port}/")
    fetched = httpx.get(artifact["url"])
    assert (fetched.status_code, fetched.text) == (200, "made")


# ── how it is held ──


def test_the_container_is_held_as_the_file_says(service: Service) -> None:
    told = service.told()
    host, native = told["HostConfig"], service.profile == "native"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert set(host["CapAdd"] or ()) == (set(NATIVE_CAPS) if native else set())
    assert not host["Privileged"]
    assert not host["Devices"]
    assert (host["PidMode"], host["IpcMode"]) == ("", "private")
    assert told["Config"]["User"] == ("" if native else "65532:65532")
    assert host["MaskedPaths"]
    assert host["ReadonlyPaths"]
    options = {option.partition("{")[0] for option in host["SecurityOpt"]}
    extra = {"seccomp=", "apparmor=unconfined"} if native else set()
    assert options == {"no-new-privileges"} | extra


def test_the_kernel_says_so_too(service: Service) -> None:
    lines = service.inside("cat", "/proc/1/status").splitlines()
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    caps = NATIVE_CAPS.values() if service.profile == "native" else ()
    allowed = sum(1 << number for number in caps)
    assert {name: int(status[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {
        "CapPrm": allowed,
        "CapEff": allowed,
        "CapBnd": allowed,
    }
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


def test_nothing_of_the_host_is_mounted_but_what_is_named(service: Service) -> None:
    mounts = {mount["Destination"]: mount for mount in service.told()["Mounts"]}
    assert {name for name, mount in mounts.items() if mount["Type"] == "bind"} == (
        {"/sys/fs/cgroup"} if service.profile == "docker" else set()
    )
    assert "docker.sock" not in json.dumps(list(mounts.values()))
    assert service.inside("sh", "-c", "! test -e /var/run/docker.sock && echo none") == "none"


@pytest.mark.parametrize("path", ["/made", "/app/made", "/usr/made"])
def test_its_root_cannot_be_written(service: Service, path: str) -> None:
    assert "Read-only file system" in service.inside("sh", "-c", f"touch {path} 2>&1 || true")


def test_no_control_group_but_its_own_can_be_written(service: Service) -> None:
    """Of the native one's, those that hold sandboxes; devices are decided elsewhere."""
    attempt = "import os, sys\nfor at in sys.argv[1:]:\n try: os.mkdir(at); print(at)\n"
    attempt += " except OSError: pass"
    hierarchies = ("", "devices/", "freezer/", "cpuset/", "systemd/")
    paths = [f"/sys/fs/cgroup/{name}{at}made" for name in hierarchies for at in ("", "docker/")]
    if service.profile == "docker":
        paths += [f"/sys/fs/cgroup/{name}/docker/made" for name in ("memory", "pids", "cpuacct")]
    assert service.inside("python3", "-c", attempt, *paths) == ""


def test_what_is_prepared_ahead_can_yield_to_runs(service: Service) -> None:
    """Version 1 has a hierarchy of its own for that, version 2 one for all."""
    if service.profile == "native":
        made = "ls -d /sys/fs/cgroup/cpu/code-executor-* /sys/fs/cgroup/code-executor-*"
        assert "code-executor-" in service.inside("sh", "-c", f"{made} 2>/dev/null || true")


def test_the_door_is_held_and_lets_nothing_else_through(service: Service) -> None:
    if service.profile == "native":
        assert len(set(service.engine.containers()) - service.others) == 1
        return
    host = service.told("door")["HostConfig"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["SecurityOpt"] == ["no-new-privileges"]
    ask = (
        "import http.client, socket, sys; c = http.client.HTTPConnection('engine')\n"
        "c.sock = socket.socket(socket.AF_UNIX); c.sock.connect('/door/engine.sock')\n"
        "c.request(sys.argv[1], sys.argv[2], sys.argv[3]); print(c.getresponse().status)"
    )
    body = json.dumps({"Image": "code-executor/python:latest", "HostConfig": {"Privileged": True}})
    assert service.inside("python3", "-c", ask, "GET", "/version", "") == "200"
    assert service.inside("python3", "-c", ask, "POST", "/containers/create", body) == "403"
    own = f"/containers/{service.told()['Id']}/json"
    assert service.inside("python3", "-c", ask, "GET", own, "") == "403"


# ── how it ends ──


def test_a_killed_service_starts_again_and_cleans_up(service: Service) -> None:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        busy = [pool.submit(_run_until_killed, service) for _ in range(AT_ONCE)]
        try:
            _until(lambda: service.running() == AT_ONCE)
            if service.profile == "docker":
                _until(lambda: len(service.runners()) >= AT_ONCE)
            left = service.runners()
        finally:
            service.kill()
        _until(service.is_healthy_again)
    assert all(run.result() for run in busy)
    assert service.runners() & left == set()
    if service.profile == "native":
        found = "ls -d /sys/fs/cgroup/code-executor-* /sys/fs/cgroup/pids/code-executor-* || true"
        assert len(service.inside("sh", "-c", found).split()) == 1
    assert service.run("python", "print('again')")["stdout"] == "again\n"


def _run_until_killed(service: Service) -> bool:
    """Whether the service ended before its program did."""
    with suppress(httpx.HTTPError):
        service.run("python", "import time; time.sleep(999)", timeout_ms=1000 * WAIT_S)
        return False
    return True


def test_down_leaves_nothing_but_the_data(service: Service) -> None:
    done = service.make("compose-down")
    assert done.returncode == 0, done.stderr
    assert set(service.engine.containers()) <= service.others
    networks = service.engine.docker("network", "ls", "--format", "{{.Name}}")
    assert service.project not in networks
    assert f"{service.project}_data-{service.profile}" in _volumes(service)


def test_a_service_that_does_not_start_says_why(engine: Engine) -> None:
    one = _service(engine, "native")
    try:
        done = one.make("compose-up", WARM_POOL="many")
        assert done.returncode != 0
        assert "ends again and again" in done.stderr
        assert "WARM_POOL" in done.stderr
    finally:
        _remove(one)
