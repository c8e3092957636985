"""The native backend: sandboxes made of namespaces, cgroups and a filter, without a daemon.

Theory of operation. The processes::

    service ── launcher (C, in the sandboxes' root) ─┬─ init (PID 1 of a sandbox) ── program
       │                                             ├─ init …
       │                                             └─ zygote (a warm interpreter)
       └── frames to each init (session.py)               └─ program, forked into a sandbox

``prepare`` takes two user ids, makes the cgroup, has the launcher clone init into fresh namespaces
and, where the flavour has a zygote, has that fork an interpreter into them. ``run`` hands the plan
to init and keeps the clock, the counters and the verdict on this side (watch.py). ``destroy`` kills
PID 1, with which the kernel ends everything in the pid namespace, waits until it is gone, and gives
the user ids, the network namespace and the cgroup back; the latter two serve again if they are as
good as new.

A launcher or a zygote that died is noticed by its socket and started anew by the next ``prepare``,
the zygote in the background: that and those that follow do without until it is warm. What was
prepared without one is then not given out any more (``NativeSandbox.supersede``): it would be slow,
and spend its run's CPU time on imports. One that stands still is killed by the first preparation
that has waited for it for long. Everything ends with the service: each helper dies when its channel
does.
"""

from __future__ import annotations

import asyncio
import getpass
import math
import os
import re
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from code_executor.errors import HostUnfit, SandboxUnavailable, words
from code_executor.languages import Flavour, Language, Warm
from code_executor.model import MIB, LanguageStatus, Promise
from code_executor.plan import default_env
from code_executor.ports import Haste
from code_executor.sandbox import launcher as launching
from code_executor.sandbox import probes, seccomp
from code_executor.sandbox.build import binaries
from code_executor.sandbox.cgroup import Tree
from code_executor.sandbox.ground import Instructions
from code_executor.sandbox.group import Group
from code_executor.sandbox.launcher import Launcher, SandboxRequest, environment
from code_executor.sandbox.native_sandbox import NativeSandbox
from code_executor.sandbox.root import root_operations
from code_executor.sandbox.turns import Leaving, Readers
from code_executor.sandbox.uids import UidPairs, subordinate
from code_executor.sandbox.zygote import ZYGOTE_HOME, Zygote, warm_files

log = structlog.get_logger(__name__)

DEATH_S = 0.1  # from a helper's closed descriptors to its end
ZYGOTE_RETRY_S = 30.0  # without it sandboxes are prepared as without a zygote: slower
ZYGOTE_REST_S = 2.0  # from one's start to the next one's, if it dies at once
SPARE_OPEN_MAX = 32  # groups kept so with their files open
OLDEST_KERNEL = (5, 12)
HOST_RUN = Path("/run/code-executor")


class NativeBackend:
    """Sandboxes of this host's kernel; see the module's docstring.

    ``languages`` are resolved ones. ``mounts`` maps paths inside the sandboxes' root to host
    directories (the interpreters' runtimes). ``workdir`` is only a mount point's parent.
    ``default_memory_mb`` is what a prepared sandbox may use before its run is known,
    ``scratch_mb`` the size of its file systems (its memory limit bounds them as well).
    """

    name = "native"

    def __init__(
        self,
        *,
        languages: Sequence[Language],
        mounts: Mapping[str, Path],
        seccomp_profile: Path,
        workdir: Path,
        default_memory_mb: int = 256,
        scratch_mb: int = 512,
    ) -> None:
        self._languages = {language.id: language for language in languages}
        self._flavours = {
            flavour.name: (language, flavour)
            for language in languages
            for flavour in language.flavours
        }
        self._mounts = dict(mounts)
        self._profile = seccomp_profile
        self._workdir = workdir
        self._memory = default_memory_mb * MIB
        self._scratch_mb = scratch_mb
        self._lock = asyncio.Lock()
        self._zygotes: dict[str, Zygote] = {}
        self._again: dict[str, float] = {}  # when a zygote that could not be started is tried again
        self._starting: set[asyncio.Task[None]] = set()
        self._live: dict[str, NativeSandbox] = {}
        self._groups: deque[Group] = deque()
        self._count = 0
        self._preparing = 0
        self._quiet = asyncio.Event()  # nothing is being prepared
        self._closing = False
        self._statuses: Sequence[LanguageStatus] | None = None
        self._launcher: Launcher | None = None
        self._tree: Tree | None = None
        self._uids: UidPairs | None = None
        self._readers: Readers | None = None
        self._leaving: Leaving | None = None

    @property
    def launcher(self) -> Launcher:
        """The running launcher."""
        if self._launcher is None:
            raise SandboxUnavailable("the backend is not started", step="launcher")
        return self._launcher

    @property
    def live(self) -> int:
        """How many sandboxes exist now."""
        return len(self._live)

    async def start(self) -> None:
        """See ``ports.Backend.start``."""
        _check_kernel()
        binaries()
        self._filter = seccomp.compile(seccomp.load(self._profile))
        self._uids = _user_ids()
        self._tree = Tree.open(yielding=True)
        self._readers, self._leaving = Readers(), Leaving()
        async with self._lock:
            await self._start_launcher()

    async def _start_launcher(self) -> None:
        """A launcher and its zygotes; what an earlier one had is gone with it."""
        self._drop_zygotes()
        if self._launcher is not None:
            await self._launcher.close()
        self._workdir.mkdir(parents=True, exist_ok=True)
        staging = tempfile.mkdtemp(prefix="root-", dir=self._workdir)
        try:
            self._launcher = await Launcher.start(self._instructions(staging), self._filter)
        finally:
            os.rmdir(staging)  # only the mount point: the mount lives in the launcher's namespace
        for name, (language, flavour) in self._flavours.items():
            if flavour.warm is Warm.ZYGOTE and not self._closing:
                await self._start_zygote(name, language, flavour)

    def _instructions(self, staging: str) -> Instructions:
        built = binaries()
        present = {path: source for path, source in self._mounts.items() if source.is_dir()}
        root = os.geteuid() == 0
        user = _user_name()
        return Instructions(
            operations=root_operations(present, warm_files(built)),
            staging=staging,
            launcher=str(built.launcher),
            subuids=None if root else subordinate(Path("/etc/subuid"), user, os.getuid()),
            subgids=None if root else subordinate(Path("/etc/subgid"), user, os.getuid()),
        )

    async def _start_zygote(self, name: str, language: Language, flavour: Flavour) -> None:
        """One warm interpreter; a language that is not installed has none."""
        env = {
            **default_env(language),
            "PYTHONPATH": f"/{ZYGOTE_HOME}",
            "CE_PRELOAD": ",".join(flavour.preload),
            # A profile of the operator's own may refuse what a zygote needs (init/ahead.c).
            **({} if self._profile == seccomp.default_path() else {"CE_OWN_FILTER": "1"}),
        }
        try:
            self._zygotes[name] = await Zygote.start(
                self.launcher, name, language.run, environment(env)
            )
        except (SandboxUnavailable, OSError) as error:
            self._again[name] = asyncio.get_running_loop().time() + ZYGOTE_RETRY_S
            log.warning("zygote_failed", flavour=name, error=str(error))
            return
        for sandbox in self._live.values():
            if sandbox.flavour == name:
                sandbox.supersede()

    async def prepare(self, flavour: str, haste: Haste | None = None) -> NativeSandbox:
        """See ``ports.Backend.prepare``."""
        haste = haste or Haste()
        if flavour not in self._flavours:
            raise SandboxUnavailable(f"there is no flavour {flavour}", step="flavour")
        if self._closing:
            raise _closed()
        self._preparing += 1
        try:
            return await self._prepare_surely(flavour, haste)
        finally:
            self._preparing -= 1
            if not self._preparing:
                self._quiet.set()

    async def _prepare_surely(self, flavour: str, haste: Haste) -> NativeSandbox:
        await self._ensure_launcher()
        if self._again:
            self._try_again(flavour)
        launcher, zygote = self.launcher, self._zygotes.get(flavour)
        try:
            return await self._prepare(flavour, zygote, haste)
        except SandboxUnavailable:
            if not launcher.ended() and (zygote is None or not await zygote.ended(DEATH_S)):
                raise
        # A helper has died, and this request was the one to notice: once more.
        await self._ensure_launcher()
        if zygote is not None:
            self._replace_zygote(flavour, zygote)
        return await self._prepare(flavour, self._zygotes.get(flavour), haste)

    async def _ensure_launcher(self) -> None:
        if self.launcher.alive:
            return
        async with self._lock:
            if self._closing:
                raise _closed()
            if not self.launcher.alive:
                await self._start_launcher()

    def _try_again(self, name: str, pause_s: float = 0.0) -> None:
        """Where there is no zygote, one may be started now: in the background, since whoever asks
        can do without one, and that takes less time."""
        now = asyncio.get_running_loop().time()
        if self._again.get(name, math.inf) <= now and not self._closing:
            self._again[name] = now + ZYGOTE_RETRY_S
            starting = asyncio.create_task(self._start_missing(name, pause_s))
            self._starting.add(starting)
            starting.add_done_callback(self._started)

    async def _start_missing(self, name: str, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        async with self._lock:
            if name not in self._zygotes:
                await self._start_zygote(name, *self._flavours[name])
            if name in self._zygotes:
                self._again.pop(name, None)

    def _started(self, starting: asyncio.Task[None]) -> None:
        self._starting.discard(starting)
        if not starting.cancelled() and (error := starting.exception()) is not None:
            log.error("zygote_failed", error=words(error))

    def _replace_zygote(self, name: str, dead: Zygote) -> None:
        """Start a zygote anew, unless another request that met the dead one has done so."""
        if self._zygotes.get(name) is dead:
            del self._zygotes[name]
            log.warning("zygote_died", flavour=name, error=dead.words())
            dead.close()
            lived = asyncio.get_running_loop().time() - dead.since
            self._again[name] = 0.0
            self._try_again(name, max(0.0, ZYGOTE_REST_S - lived))

    async def _prepare(self, name: str, zygote: Zygote | None, haste: Haste) -> NativeSandbox:
        assert self._tree is not None
        assert self._uids is not None
        assert self._readers is not None
        assert self._leaving is not None
        self._leaving.look()
        launcher = self.launcher
        uids = self._uids.take()
        self._count += 1
        sandbox_name = f"sandbox-{self._count}"
        group = self._groups.popleft() if self._groups else self._tree.group(sandbox_name)
        sandbox = NativeSandbox(
            name,
            group,
            sandbox_name,
            partial(self._forget, uids, launcher),
            readers=self._readers,
            leaving=self._leaving,
        )
        self._live[sandbox_name] = sandbox
        request = self._request(name, uids, zygote)
        try:
            await sandbox.start(launcher, request, zygote, self._memory, haste)
        except BaseException as error:
            await sandbox.destroy()
            if isinstance(error, SandboxUnavailable | asyncio.CancelledError):
                raise
            raise SandboxUnavailable(f"no sandbox: {words(error)}", step="prepare") from error
        return sandbox

    def _request(self, name: str, uids: tuple[int, int], zygote: Zygote | None) -> SandboxRequest:
        """How the launcher starts a sandbox of this flavour."""
        language, flavour = self._flavours[name]
        base = SandboxRequest(
            warm=launching.WARM_ZYGOTE if zygote else launching.WARM_NONE,
            init_uid=uids[0],
            program_uid=uids[1],
            processes=language.processes,
            scratch_mb=self._scratch_mb,
        )
        if flavour.warm is not Warm.EXEC:
            return base
        return replace(
            base,
            warm=launching.WARM_EXEC,
            source=language.source,
            argv=language.ahead,
            env=environment(default_env(language)),
        )

    async def probe(self) -> Sequence[Promise]:
        """See ``ports.Backend.probe``."""
        return await probes.probe(self, self._languages.get("python"))

    async def languages(self) -> Sequence[LanguageStatus]:
        """See ``ports.Backend.languages``."""
        if self._statuses is None:
            asked = (probes.language_status(self, each) for each in self._languages.values())
            self._statuses = await asyncio.gather(*asked)
        return self._statuses

    def _forget(
        self, uids: tuple[int, int], launcher: Launcher, sandbox: NativeSandbox, clean: bool
    ) -> None:
        """A sandbox is gone. Where something of it is left, no other run ever gets its ids."""
        self._live.pop(sandbox.name, None)
        if clean and sandbox.network != launching.NO_NETWORK:
            launcher.networks.append(sandbox.network)
        if sandbox.group.made and clean:
            self._groups.appendleft(sandbox.group)  # the next one's: its files are open
            if len(self._groups) > SPARE_OPEN_MAX:
                self._groups[SPARE_OPEN_MAX].close_most()
        if clean and self._uids is not None:
            self._uids.give_back(uids)

    def _drop_zygotes(self) -> None:
        for zygote in self._zygotes.values():
            zygote.close()
        self._zygotes.clear()
        self._again.clear()

    async def close(self) -> None:
        """See ``ports.Backend.close``."""
        self._closing = True
        for starting in self._starting:
            starting.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for sandbox in self._live.values():
            sandbox.abandon()
        if self._preparing:
            self._quiet.clear()
            await self._quiet.wait()
        await asyncio.gather(*(sandbox.destroy() for sandbox in list(self._live.values())))
        self._drop_zygotes()
        if self._readers is not None:
            self._readers.close()
        if self._launcher is not None:
            await self._launcher.close()
        while self._groups:
            self._groups.pop().remove()
        if self._tree is not None:
            self._tree.close()
        if self._uids is not None:
            self._uids.close()


def _closed() -> SandboxUnavailable:
    return SandboxUnavailable("the backend is closed", step="launcher")


def _check_kernel() -> None:
    release = os.uname().release
    match = re.match(r"(\d+)\.(\d+)", release)
    if os.uname().sysname != "Linux" or match is None:
        raise HostUnfit("the native backend needs Linux", fix="SANDBOX_BACKEND=docker")
    if (int(match[1]), int(match[2])) < OLDEST_KERNEL:
        raise HostUnfit(f"Linux {release} is too old", fix="boot Linux 5.12 or newer")


def _user_ids() -> UidPairs:
    """Ids for sandboxes: a block of the host's as root, else the user's subordinate ones."""
    if os.geteuid() == 0:
        return UidPairs.of_root(HOST_RUN)
    user = _user_name()
    subuids = subordinate(Path("/etc/subuid"), user, os.getuid())
    subgids = subordinate(Path("/etc/subgid"), user, os.getuid())
    if subuids is None or subgids is None:
        raise HostUnfit(
            f"{user} has no subordinate user ids",
            fix=f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )
    return UidPairs(1, min(subuids.count, subgids.count))


def _user_name() -> str:
    """The user's name, or its number where it has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
