"""The OCI backends on this host: what a killed service leaves, what a missing runtime says."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.conftest import running_oci, runtime_dir
from tests.integration.host import processes, until

from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.model import RunStatus
from code_executor.sandbox import oci, oci_runtime
from code_executor.sandbox.cgroup import Tree
from code_executor.sandbox.conformance.bench import carry_out, plan
from code_executor.sandbox.oci import OciBackend
from code_executor.sandbox.oci_bundle import RuntimeKind
from code_executor.sandbox.oci_runtime import HOST_RUN, PREFIX, find_program

pytestmark = pytest.mark.sandbox
KINDS = ("runc", "gvisor")

SERVICE = """
import asyncio, sys
from pathlib import Path
from code_executor.compose import make_backend, make_languages
from code_executor.config import Settings
from code_executor.sandbox.conformance.bench import plan

async def main():
    name, data, runtimes = sys.argv[1:]
    settings = Settings.load(data_dir=data, runtime_dir=runtimes, sandbox_backend=name)
    backend = make_backend(settings, make_languages(settings))
    await backend.start()
    boxes = [await backend.prepare("python") for _ in range(4)]
    endless = asyncio.create_task(boxes[0].run(plan("python", "while True: pass")))
    print(backend._place.path, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@contextmanager
def service(name: str, data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process with four sandboxes, and where it keeps them."""
    command = [sys.executable, "-c", SERVICE, name, str(data_dir), str(runtime_dir())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = (line.strip() for line in process.stdout)
        try:
            yield process, Path(next(line for line in lines if line.startswith(str(HOST_RUN))))
        finally:
            process.kill()


def of(place: Path) -> list[int]:
    """The processes whose command line names a place."""
    return [each.pid for each in processes() if str(place).encode() in each.command]


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_killed_service_leaves_is_swept_by_the_next(kind: str, tmp_path: Path) -> None:
    async with running_oci(kind, tmp_path / "before"):
        pass  # skipped here where the runtime is missing
    with service(kind, tmp_path / "killed") as (process, place):
        assert place.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    async with running_oci(kind, tmp_path / "next") as backend:
        assert not place.exists()
        await until(lambda: of(place) == [])
        assert "root" not in Path("/proc/self/mounts").read_text().split(str(place))[1:]
        outcome = await carry_out(backend, plan("python", "print(1)"))
        assert outcome.stdout.data == b"1\n"


@pytest.mark.parametrize("kind", KINDS)
async def test_another_service_s_start_leaves_it_its_sandboxes(kind: str, tmp_path: Path) -> None:
    """A native one has the cpu hierarchy too, in which a runtime makes groups that hold no lock."""
    async with running_oci(kind, tmp_path) as backend:
        sandbox = await backend.prepare("python")
        Tree.open(yielding=True).close()
        outcome = await sandbox.run(plan("python", "print(1)"))
        assert outcome.stdout.data == b"1\n"
        await sandbox.destroy()


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_left_of_a_closed_backend(kind: str, tmp_path: Path) -> None:
    async with running_oci(kind, tmp_path) as backend:
        assert isinstance(backend, OciBackend)
        name = backend._tree.name if backend._tree else ""
        place = backend._place.path if backend._place else Path()
        sandbox = await backend.prepare("python")
        await sandbox.destroy()
        assert backend.live == 0
        assert list((place / "bundles").iterdir()) == []
        await backend.prepare("node")
    assert not place.exists()
    assert list(Path("/sys/fs/cgroup").glob(f"*/{name}")) == []
    assert list(Path("/sys/fs/cgroup").glob(name)) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_a_run_that_has_just_begun_goes_before_the_next_sandbox(
    kind: str, tmp_path: Path
) -> None:
    async with running_oci(kind, tmp_path) as backend:
        assert isinstance(backend, OciBackend)
        sandbox = await backend.prepare("python")
        run = asyncio.create_task(sandbox.run(plan("python", "print(1)")))
        await asyncio.sleep(0)
        preparing = asyncio.create_task(backend.prepare("python"))
        await asyncio.sleep(0)
        assert backend.live == 1
        assert (await run).stdout.data == b"1\n"
        second = await preparing
        assert backend.live == 2
        await asyncio.gather(sandbox.destroy(), second.destroy())


async def test_a_fork_bomb_in_gvisor_ends_as_a_run_and_leaves_nothing(tmp_path: Path) -> None:
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"
    async with running_oci("gvisor", tmp_path) as backend:
        assert isinstance(backend, OciBackend)
        bomb = plan("python", code, timeout_ms=2_000, cpu_ms=20_000)
        outcome = await carry_out(backend, bomb)
        assert outcome.status in {RunStatus.TIMEOUT, RunStatus.OOM, RunStatus.KILLED}
        assert backend._tree is not None
        assert backend._tree.names() == set()
        assert (await carry_out(backend, plan("python", "print(1)"))).stdout.data == b"1\n"


@pytest.mark.parametrize("kind", KINDS)
async def test_its_directory_may_be_on_a_mount_without_execution(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As /run is on Debian and Ubuntu."""
    async with running_oci(kind, tmp_path / "data"):
        pass  # skipped here where the runtime is missing
    monkeypatch.setenv("CODE_EXECUTOR_MUST_RUN", kind)  # and from here on a failure
    run = Path(tempfile.mkdtemp(dir="/run"))  # where sandboxes' user ids may look
    run.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec,mode=755", "none", run], check=True)
    try:
        monkeypatch.setattr(oci, "HOST_RUN", run)
        monkeypatch.setattr(oci_runtime, "HOST_RUN", run)
        async with running_oci(kind, tmp_path / "data") as backend:
            outcome = await carry_out(backend, plan("python", "print(1)"))
        assert outcome.stdout.data == b"1\n"
    finally:
        subprocess.run(["umount", run], check=True)
        run.rmdir()


async def test_a_runtime_that_refuses_says_why(tmp_path: Path) -> None:
    async with running_oci("runc", tmp_path) as backend:
        assert isinstance(backend, OciBackend)
        assert backend._place is not None
        (backend._place.path / "bundles").rename(backend._place.path / "gone")
        with pytest.raises(SandboxUnavailable):
            await backend.prepare("python")
        (backend._place.path / "gone").rename(backend._place.path / "bundles")
        assert backend.live == 0
        await (await backend.prepare("python")).destroy()


def test_a_missing_runtime_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(HostUnfit, match="runsc is not installed") as caught:
        find_program(RuntimeKind.GVISOR)
    assert caught.value.fix == "apt-get install runsc"
    assert not list(HOST_RUN.glob(f"{PREFIX}missing"))


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostUnfit, match="needs root"):
        find_program(RuntimeKind.RUNC)
