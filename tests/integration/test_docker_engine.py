"""The docker backend and its engine: how a container is held, and what a crash leaves."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import running_docker
from tests.engine.rig import Engine

from code_executor.compose import make_backend, make_languages
from code_executor.config import Settings
from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.model import RunStatus
from code_executor.sandbox.conformance.bench import plan
from code_executor.sandbox.docker import DockerBackend
from code_executor.sandbox.probes import run_once

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="session")]

SERVICE = """
import asyncio, sys
from pathlib import Path
from code_executor.compose import make_backend, make_languages
from code_executor.config import Settings
from code_executor.sandbox.conformance.bench import plan

async def main():
    settings = Settings(data_dir=Path(sys.argv[1]), sandbox_backend="docker",
                        docker_host=sys.argv[2])
    backend = make_backend(settings, make_languages(settings))
    await backend.start()
    sandboxes = await asyncio.gather(*(backend.prepare("python") for _ in range(20)))
    endless = plan("python", "import time\\nwhile True: time.sleep(1)", timeout_ms=10_000)
    runs = asyncio.gather(*(sandbox.run(endless) for sandbox in sandboxes))
    await asyncio.sleep(0.2)
    print("running", flush=True)
    await runs

asyncio.run(main())
"""


async def test_a_start_removes_what_a_killed_service_left(engine: Engine, tmp_path: Path) -> None:
    others = set(engine.containers())
    argv = [sys.executable, "-c", SERVICE, str(tmp_path), engine.address]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        line = await asyncio.to_thread(service.stdout.readline)
        assert line == "running\n"
        left = set(engine.containers()) - others
        service.send_signal(signal.SIGKILL)
    assert len(left) == 20
    async with running_docker(engine, tmp_path) as backend:
        assert set(engine.containers()) & left == set()
        assert (await run_once(backend, plan("python", "print(1)"))).stdout.data == b"1\n"
    assert set(engine.containers()) <= others


async def test_containers_of_a_living_service_stay(engine: Engine, tmp_path: Path) -> None:
    async with running_docker(engine, tmp_path) as first:
        sandbox = await first.prepare("python")
        async with running_docker(engine, tmp_path):
            assert sandbox.alive()
        outcome = await sandbox.run(plan("python", "print('still')"))
        await sandbox.destroy()
    assert outcome.stdout.data == b"still\n"


async def test_a_container_is_held_as_it_should_be(engine: Engine, docker: DockerBackend) -> None:
    sandbox = await docker.prepare("python")
    try:
        (told,) = json.loads(engine.docker("inspect", sandbox.name))
    finally:
        await sandbox.destroy()
    host = told["HostConfig"]
    assert host["NetworkMode"] == "none"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["Memory"] == host["MemorySwap"] > 0
    assert 0 < host["PidsLimit"] <= 65
    assert "no-new-privileges" in host["SecurityOpt"]
    assert any(option.startswith("seccomp={") for option in host["SecurityOpt"])
    assert told["Config"]["User"] == "1000:1000"
    assert sandbox.name not in engine.containers()


async def test_the_kernel_holds_a_container_to_its_limits(docker: DockerBackend) -> None:
    """Read from the control group itself: an engine's word is not the kernel's."""
    sandbox = await docker.prepare("python")
    try:
        assert sandbox._group is not None
        paths = sandbox._group._paths
        assert docker._mounts is not None
        if docker._mounts.version == 2:
            names = ("memory.max", "memory.swap.max", "pids.max", "cpu.weight")
            told = [Path(paths["memory"], name).read_text().strip() for name in names]
            memory, swap, pids, weight = map(int, told)
            assert swap == 0
            assert weight < 100
        else:
            memory = int(Path(paths["memory"], "memory.limit_in_bytes").read_text())
            pids = int(Path(paths["pids"], "pids.max").read_text())
    finally:
        await sandbox.destroy()
    assert memory == 256 << 20
    assert 0 < pids <= 65


async def test_a_limit_below_what_waits_is_out_of_memory(docker: DockerBackend) -> None:
    outcome = await run_once(docker, plan("python", "import pandas", memory_mb=16))
    assert outcome.status is RunStatus.OOM


@pytest.mark.parametrize("memory", ["", "x = bytearray(500 << 20)"], ids=["in time", "for memory"])
async def test_the_end_of_the_first_process_is_told_truly(
    engine: Engine, docker: DockerBackend, memory: str
) -> None:
    sandbox = await docker.prepare("python")
    run = asyncio.ensure_future(
        sandbox.run(plan("python", f"{memory}\nimport time; time.sleep(9)"))
    )
    try:
        if memory:
            assert (await run).status is RunStatus.OOM
            return
        await asyncio.sleep(0.2)
        engine.docker("kill", sandbox.name)
        with pytest.raises(SandboxUnavailable):
            await run
    finally:
        await sandbox.destroy()


async def test_an_image_without_init_gets_it_from_the_host(engine: Engine, tmp_path: Path) -> None:
    async with running_docker(engine, tmp_path, runner_image_python="debian:bookworm-slim") as own:
        outcome = await run_once(own, plan("python", "print('mounted')"))
    assert outcome.stdout.data == b"mounted\n"


async def test_a_switched_off_filter_is_a_broken_promise(engine: Engine, tmp_path: Path) -> None:
    async with running_docker(engine, tmp_path, disable_sandbox_security=True) as loose:
        rows = {row.id: row for row in await loose.probe()}
    assert not rows["P1"].kept
    assert "DISABLE_SANDBOX_SECURITY" in rows["P1"].evidence


async def test_a_missing_image_is_named(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match="no-such-image"):
        async with running_docker(engine, tmp_path, runner_image_go="no-such-image:1"):
            pass


async def test_a_language_without_an_image_says_what_makes_one(
    engine: Engine, tmp_path: Path
) -> None:
    engine.docker("tag", "code-executor/ruby", "kept-for-a-moment")
    engine.docker("rmi", "code-executor/ruby")
    try:
        async with running_docker(engine, tmp_path) as without:
            reasons = {status.id: status.reason for status in await without.languages()}
    finally:
        engine.docker("tag", "kept-for-a-moment", "code-executor/ruby")
        engine.docker("rmi", "kept-for-a-moment")
    ruby = str(reasons.pop("ruby"))
    assert "no image code-executor/ruby:latest" in ruby
    assert ruby.endswith("where it is missing: make images")
    assert set(reasons.values()) == {None}


async def test_an_image_of_ones_own_without_the_language_is_told_as_that(
    engine: Engine, tmp_path: Path
) -> None:
    (tmp_path / "Dockerfile").write_text("FROM code-executor/ruby\nUSER 0\nRUN rm /usr/bin/ruby*\n")
    image = engine.docker("build", "--quiet", "--network=none", str(tmp_path))
    async with running_docker(engine, tmp_path, runner_image_ruby=image) as wrong:
        reasons = {status.id: status.reason for status in await wrong.languages()}
    engine.docker("rmi", image)
    assert "make images" not in str(reasons["ruby"])
    assert "RUNNER_IMAGE_RUBY" in str(reasons["ruby"])


async def test_no_engine_is_told_with_what_to_do(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, sandbox_backend="docker", docker_host=f"unix://{tmp_path}/nothing"
    )
    backend = make_backend(settings, make_languages(settings))
    with pytest.raises(HostUnfit, match="no Docker engine answers") as caught:
        await backend.start()
    await backend.close()
    assert "DOCKER_HOST" in caught.value.fix


async def test_a_run_that_has_just_begun_goes_before_the_next_container(
    docker: DockerBackend,
) -> None:
    sandbox = await docker.prepare("python")
    before = docker.live
    run = asyncio.create_task(sandbox.run(plan("python", "print(1)")))
    await asyncio.sleep(0)
    preparing = asyncio.create_task(docker.prepare("python"))
    await asyncio.sleep(0)
    assert docker.live == before
    assert (await run).stdout.data == b"1\n"
    second = await preparing
    await asyncio.gather(sandbox.destroy(), second.destroy())


async def test_an_unknown_flavour_is_refused(docker: DockerBackend) -> None:
    with pytest.raises(SandboxUnavailable, match="no flavour"):
        await docker.prepare("cobol")
