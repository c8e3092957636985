"""The Docker backend: a single-use container per run, made by an engine through its API.

Theory of operation. ``start`` asks the engine what it is, removes what a dead service left
(:mod:`.docker_owner`) and looks for the languages' images. ``prepare`` has the engine make and
start one container (:mod:`.docker_spec` says how it is held) whose PID 1 is our init in its
contained form (:mod:`.contained`), attached through a hijacked connection
(:mod:`.docker_sandbox`); an interpreter is started ahead in it. That takes the engine some tenths
of a second, so the pool does it before a run comes. The run itself is frames over that connection,
as with every other backend.

The engine runs as root and does what it is told: whoever can speak to it owns the host. Programs
cannot; the service can. ``docs/docker.md`` says what follows from that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from aiodocker.docker import Docker
from aiodocker.exceptions import DockerError

from code_executor.errors import HostUnfit, SandboxUnavailable, words
from code_executor.languages import Flavour, Language, Warm
from code_executor.model import MIB, LanguageStatus, Promise
from code_executor.ports import Haste
from code_executor.sandbox import probes
from code_executor.sandbox.build import binaries
from code_executor.sandbox.cgroup import find_mounts
from code_executor.sandbox.contained import ahead_files, init_command
from code_executor.sandbox.docker_owner import HOME_LABEL, Owner
from code_executor.sandbox.docker_sandbox import ENGINE_ERRORS, DockerSandbox, remove
from code_executor.sandbox.docker_spec import APPARMOR, Confinement, container, read_profile
from code_executor.sandbox.group import Mounts
from code_executor.sandbox.lead import Lead

log = structlog.get_logger(__name__)

INIT_LABEL = "code-executor.init"
INIT_VERSION = "2"
"""What an image's label must say for its own init to be used: the frames it speaks, and how the
bootstraps beside it are started."""
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
IMAGES = "make images"
"""What makes every image that nobody has chosen another for."""
UNBOUNDED_SOCKETS = (
    "what waits in sockets has no limit: cgroup v1, whose files cannot be written here"
)
BOUND_SOCKETS = "boot with cgroup v2, or let the service write the host's /sys/fs/cgroup"
SHARED_USER = "containers have one user id on the host: what the kernel counts by user, they share"


class DockerBackend:
    """Containers of one engine; see the module's docstring.

    ``images`` names a language's image where it is not ``code-executor/ID``. ``workdir`` holds the
    owners' locks and the copy of init for images without one; ``host_workdir`` is what the engine's
    host calls that directory. ``apparmor`` is empty for the shipped profile.
    """

    name = "docker"

    def __init__(
        self,
        *,
        languages: Sequence[Language],
        images: Mapping[str, str],
        seccomp_profile: Path,
        workdir: Path,
        engine: str = "",
        host_workdir: str = "",
        apparmor: str = "",
        default_memory_mb: int = 256,
        scratch_mb: int = 512,
        waived: bool = False,
    ) -> None:
        self._languages = {language.id: language for language in languages}
        self._flavours = {
            flavour.name: (language, flavour)
            for language in languages
            for flavour in language.flavours
        }
        self._chosen = {name: image for name, image in images.items() if image}
        self._profile = seccomp_profile
        self._workdir = workdir / "docker"
        self._address = engine or DEFAULT_SOCKET
        self._host_workdir = host_workdir
        self._apparmor = apparmor
        self._memory = default_memory_mb * MIB
        self._scratch_mb = scratch_mb
        self._waived = waived
        self._engine: Docker | None = None
        self._owner: Owner | None = None
        self._held: Confinement | None = None
        self._mounts: Mounts | None = None
        self._own_init: dict[str, bool] = {}  # of each language whose image is there
        self._live: set[DockerSandbox] = set()
        self._lead = Lead()
        self._sockets_limited = True  # in every container so far
        self._statuses: Sequence[LanguageStatus] | None = None

    @property
    def live(self) -> int:
        """How many containers exist now."""
        return len(self._live)

    # ── starting ──

    async def start(self) -> None:
        """See ``ports.Backend.start``."""
        self._mounts = find_mounts()
        self._engine = _connect(self._address)
        info = await self._ask_engine(self._engine)
        self._held = self._confinement(info)
        self._owner = Owner(self._workdir)
        await self._sweep(self._engine, self._owner)
        await self._look_for_images(self._engine)
        if not all(self._own_init.values()):
            self._copy_init()
        await self._try_containers()
        if self._waived:
            log.warning("DISABLE_SANDBOX_SECURITY is set: no system call filter, no AppArmor")

    async def _ask_engine(self, engine: Docker) -> Mapping[str, Any]:
        try:
            async with asyncio.timeout(10):
                info: Mapping[str, Any] = await engine.system.info()
        except (*ENGINE_ERRORS, ValueError) as error:
            raise HostUnfit(
                f"no Docker engine answers at {self._address}: {words(error)}",
                fix="systemctl start docker, or set DOCKER_HOST; the service's user must be "
                "allowed to use the socket",
            ) from error
        return info

    def _confinement(self, info: Mapping[str, Any]) -> Confinement:
        """How containers are held on this engine.

        Raises:
            HostUnfit: the engine cannot filter system calls, and nobody has waived that.
        """
        options = {option.split(",")[0] for option in info.get("SecurityOptions") or ()}
        if "name=seccomp" not in options and not self._waived:
            raise HostUnfit(
                "the engine does not filter system calls", fix="a kernel with CONFIG_SECCOMP_FILTER"
            )
        return Confinement(
            seccomp=read_profile(self._profile),
            apparmor=(self._apparmor or APPARMOR) if "name=apparmor" in options else None,
            scratch_mb=self._scratch_mb,
            limits_sockets=bool(info.get("KernelMemoryTCP")),
            waived=self._waived,
        )

    async def _sweep(self, engine: Docker, owner: Owner) -> None:
        """Remove the containers of services of this work directory that are no more."""
        label = json.dumps({"label": [f"{HOME_LABEL}={owner.home}"]})
        found = await engine.containers.list(all=True, filters=label)
        labelled = {each.id: each for each in found}
        orphans = owner.orphans((each.id, each["Labels"]) for each in found)
        await asyncio.gather(*(remove(labelled[name]) for name in orphans))
        if orphans:
            log.info("orphans_removed", count=len(orphans))

    async def _look_for_images(self, engine: Docker) -> None:
        for name in self._languages:
            try:
                image = await engine.images.inspect(self._image(name))
            except DockerError as error:
                if name in self._chosen:
                    raise HostUnfit(
                        f"the image {self._image(name)} is missing: {error.message}",
                        fix=f"docker pull {self._image(name)}",
                    ) from error
                continue
            labels = image["Config"].get("Labels") or {}
            self._own_init[name] = labels.get(INIT_LABEL) == INIT_VERSION
        if not self._own_init:
            raise HostUnfit("the engine has no image of any language", fix=IMAGES)

    async def _try_containers(self) -> None:
        """What the engine refuses to every container is told now, not run by run.

        Raises:
            HostUnfit: it makes none of any language; the engine's words are in the message.
        """
        problem: SandboxUnavailable | None = None
        for language, flavour in self._flavours.values():
            if language.id not in self._own_init:
                continue
            try:
                # Only init: an interpreter that does not start is its language's matter.
                await (await self._prepare(language, replace(flavour, warm=Warm.NONE))).destroy()
            except HostUnfit:
                raise
            except SandboxUnavailable as error:
                problem = problem or error
                continue
            return
        raise HostUnfit(f"no container can be made: {problem}", fix=self._fix_of(str(problem)))

    def _fix_of(self, problem: str) -> str:
        if "apparmor" not in problem or self._held is None:
            return "docs/docker.md"
        if self._held.apparmor == APPARMOR:
            return "apparmor_parser --replace apparmor/code-executor (docs/docker.md)"
        return f"load the AppArmor profile {self._held.apparmor} on the engine's host"

    def _image(self, language: str) -> str:
        return self._chosen.get(language) or f"code-executor/{language}:latest"

    def _copy_init(self) -> None:
        """For images without our init: its files, to be mounted from the host."""
        target = self._workdir / "ahead"
        for path, source in ahead_files(binaries()).items():
            file = target / path.removeprefix("opt/ahead/")
            file.parent.mkdir(parents=True, exist_ok=True)
            fresh = file.with_name(f"{file.name}.new")
            shutil.copyfile(source, fresh)
            fresh.chmod(0o755)
            fresh.replace(file)
        for directory in (target, target / "python"):
            directory.chmod(0o755)

    def _ahead(self, language: str) -> str | None:
        if self._own_init[language]:
            return None
        base = Path(self._host_workdir) / "docker" if self._host_workdir else self._workdir
        return str(base / "ahead")

    # ── containers ──

    async def prepare(self, flavour: str, haste: Haste | None = None) -> DockerSandbox:
        """See ``ports.Backend.prepare``; it yields to nothing here."""
        del haste
        if flavour not in self._flavours:
            raise SandboxUnavailable(f"there is no flavour {flavour}", step="flavour")
        language, kind = self._flavours[flavour]
        if language.id not in self._own_init:
            reason = f"there is no image {self._image(language.id)}"
            raise SandboxUnavailable(reason, step="image")
        await self._lead.over()
        return await self._prepare(language, kind)

    async def _prepare(self, language: Language, flavour: Flavour) -> DockerSandbox:
        if self._engine is None or self._mounts is None:
            raise SandboxUnavailable("the backend is not started", step="start")
        warm = flavour.warm is not Warm.NONE
        sandbox = DockerSandbox(self._engine, flavour.name, warm, self._live.discard, self._lead)
        self._live.add(sandbox)
        try:
            await sandbox.start(self._spec(language, flavour), self._mounts)
        except BaseException:
            await sandbox.destroy()
            raise
        self._sockets_limited = self._sockets_limited and sandbox.sockets_limited
        return sandbox

    def _spec(self, language: Language, flavour: Flavour) -> dict[str, Any]:
        assert self._held is not None
        assert self._owner is not None
        return container(
            self._image(language.id),
            init_command(language, flavour),
            self._held,
            memory_bytes=self._memory,
            processes=language.processes,
            labels={**self._owner.labels, "code-executor.flavour": flavour.name},
            ahead=self._ahead(language.id),
        )

    async def probe(self) -> Sequence[Promise]:
        """See ``ports.Backend.probe``."""
        python = self._languages.get("python")
        rows = await probes.probe(self, python, host_ids=False)
        return [self._told(row) for row in rows]

    def _told(self, row: Promise) -> Promise:
        """With what is only known here."""
        if row.id == "P4" and not self._sockets_limited:
            return replace(row, kept=False, evidence=UNBOUNDED_SOCKETS, fix=BOUND_SOCKETS)
        if row.id == "P6":
            return replace(row, evidence=f"{row.evidence}; {SHARED_USER}")
        if row.id != "P1":
            return row
        if not self._waived:
            profile = self._held.apparmor if self._held is not None else None
            told = f"AppArmor profile {profile}" if profile else "the engine has no AppArmor"
            return replace(row, evidence=f"{row.evidence}; {told}")
        evidence = f"DISABLE_SANDBOX_SECURITY is set; {row.evidence}"
        return replace(row, kept=False, evidence=evidence, fix="unset DISABLE_SANDBOX_SECURITY")

    async def languages(self) -> Sequence[LanguageStatus]:
        """See ``ports.Backend.languages``."""
        if self._statuses is None:
            asked = (
                probes.language_status(self, each, install=self._install(each.id))
                for each in self._languages.values()
            )
            self._statuses = await asyncio.gather(*asked)
        return self._statuses

    def _install(self, language: str) -> str:
        """What brings a language that an image has or has not, whatever the host has installed."""
        if language in self._chosen:
            return f"an image with it as RUNNER_IMAGE_{language.upper()}"
        return IMAGES

    async def close(self) -> None:
        """See ``ports.Backend.close``."""
        await asyncio.gather(*(sandbox.destroy() for sandbox in list(self._live)))
        if self._owner is not None:
            self._owner.close()
        if self._engine is not None:
            with contextlib.suppress(*ENGINE_ERRORS):
                await self._engine.close()
            await self._engine.connector.close()


def _connect(address: str) -> Docker:
    """A client of the engine. Every container holds a connection, so their number has no limit."""
    try:
        if address.startswith("unix://"):
            path = address.removeprefix("unix://")
            connector = aiohttp.UnixConnector(path, limit=0)
            return Docker(url="unix://localhost", connector=connector)
        return Docker(url=address)
    except (ValueError, OSError) as error:
        raise HostUnfit(
            f"DOCKER_HOST {address} cannot be used: {error}", fix="DOCKER_HOST=unix:///PATH"
        ) from error
