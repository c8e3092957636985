"""The native backend: sandboxes made of namespaces, cgroups and a filter, without a daemon.

Theory of operation. The processes::

    service ── launcher (C, in the sandboxes' root) ─┬─ init (PID 1 of a sandbox) ── program
       │                                             ├─ init …
       │                                             └─ zygote (a warm interpreter)
       └── frames to each init (session.py)               └─ program, forked into a sandbox

``prepare`` takes two user ids, makes the cgroup, has the launcher clone init into fresh namespaces
and, where the flavour has a zygote, has that fork an interpreter into them. ``run`` hands the plan
to init and keeps the clock, the counters and the verdict on this side (watch.py). ``destroy`` kills
PID 1, with which the kernel ends everything in the pid namespace, waits until it is gone, removes
the cgroup and gives the user ids back.

A launcher or a zygote that died is noticed by its socket and started anew by the next ``prepare``.
Everything ends with the service: each helper dies when its channel does.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from code_executor.errors import HostUnfit, SandboxUnavailable
from code_executor.languages import Flavour, Language, Warm
from code_executor.model import (
    MIB,
    ArtifactFile,
    LanguageStatus,
    Limits,
    Outcome,
    Phase,
    Plan,
    Promise,
    RunStatus,
    Skipped,
    Usage,
)
from code_executor.plan import default_env
from code_executor.sandbox import launcher as launching
from code_executor.sandbox import probes, seccomp
from code_executor.sandbox.artifacts import choose
from code_executor.sandbox.build import binaries
from code_executor.sandbox.cgroup import Group, Tree
from code_executor.sandbox.frames import Ended, Kind
from code_executor.sandbox.ground import Instructions
from code_executor.sandbox.launcher import Launcher, SandboxRequest, Spawned, Zygote, environment
from code_executor.sandbox.root import root_operations
from code_executor.sandbox.session import Session
from code_executor.sandbox.uids import UidPairs, subordinate
from code_executor.sandbox.watch import FLOOD, Verdict, Watch

OLDEST_KERNEL = (5, 12)
PREPARE_TIMEOUT_S = 20.0
KILL_GRACE_S = 0.5
COLLECT_TIMEOUT_S = 10.0
REMOVE_TIMEOUT_S = 10.0
OWN_PROCESSES = 1  # init counts in the pids controller too
log = structlog.get_logger(__name__)
BOOTSTRAP = Path(__file__).parent / "bootstrap"
AHEAD = ("node.js", "ruby.rb", "php.php")
HOST_RUN = Path("/run/code-executor")


class NativeSandbox:
    """One sandbox: its init, its cgroup, its user ids."""

    def __init__(
        self, backend: NativeBackend, flavour: str, group: Group, uids: tuple[int, int], name: str
    ) -> None:
        self._backend = backend
        self._flavour = flavour
        self._group = group
        self._uids = uids
        self._destroyed = False
        self._spawned: Spawned | None = None
        self._session: Session | None = None
        self._hard_kill: asyncio.TimerHandle | None = None
        self._warm = False
        self.name = name

    @property
    def flavour(self) -> str:
        """The flavour it was prepared as."""
        return self._flavour

    def alive(self) -> bool:
        """Whether init, and with it what waits inside, is still there."""
        return self._session is not None and not self._session.closed and not self._destroyed

    # ── preparing ──

    async def start(self, request: SandboxRequest, zygote: Zygote | None, memory: int) -> None:
        """Make it all, until init says READY.

        Raises:
            SandboxUnavailable: a step failed; the caller destroys what there is.
        """
        self._warm = request.warm != launching.WARM_NONE
        self._group.make(memory_bytes=memory, processes=request.processes + OWN_PROCESSES)
        procs = self._group.procs()
        try:
            spawned = await self._backend.launcher.sandbox(request, procs)
            self._spawned = spawned
            if zygote is not None:
                await _hand_over(spawned, zygote, request.processes, procs)
        finally:
            for fd in procs:
                os.close(fd)
        self._session = Session(spawned.control)
        async with asyncio.timeout(PREPARE_TIMEOUT_S):
            await self._session.ready()

    # ── running ──

    async def run(self, plan: Plan) -> Outcome:
        """Execute the plan; see ``ports.Sandbox.run``."""
        session = self._session
        if session is None or session.closed:
            raise SandboxUnavailable("the sandbox died before its run", step="start")
        self._group.limit(
            memory_bytes=plan.limits.memory_mb * MIB, processes=plan.processes + OWN_PROCESSES
        )
        watch = Watch(self._group, plan.limits, self._stop)
        session.on_began = watch.began
        session.on_ended = watch.ended
        session.on_flood = lambda: watch.decide(FLOOD)
        progress = _Progress()
        try:
            await self._programs(session, plan, watch, progress)
        except SandboxUnavailable:
            watch.ended()
            if watch.final() is None:
                raise
        finally:
            watch.ended()
            self._disarm()
        artifacts, skipped = await self._collect(session, plan.limits)
        return self._outcome(session, watch, progress, artifacts, skipped)

    async def _programs(
        self, session: Session, plan: Plan, watch: Watch, progress: _Progress
    ) -> None:
        before = session.stage(plan)
        env = environment(dict(plan.env))
        for step in plan.steps:
            last = step is plan.steps[-1]
            warm = plan.warm and last and self._warm
            argv = plan.args if warm else (*step.argv, *(plan.args if last else ()))
            progress.phase = step.phase
            progress.ended = None
            progress.ended = await session.execute(argv, env, warm=warm, before=before)
            before = b""
            if step.phase is Phase.COMPILE:
                progress.compile_ms = round(watch.wall_s * 1000)
            if progress.ended.wait_status != 0 or watch.final() is not None:
                return

    def _stop(self, verdict: Verdict) -> None:
        """The watch has decided: end the program, tidily if init still answers."""
        del verdict
        assert self._session is not None
        self._session.kill()
        loop = asyncio.get_running_loop()
        self._hard_kill = loop.call_later(KILL_GRACE_S, self._kill_hard)

    def _disarm(self) -> None:
        if self._hard_kill is not None:
            self._hard_kill.cancel()
            self._hard_kill = None

    def _kill_hard(self) -> None:
        log.warning("init_did_not_answer", sandbox=self.name)
        self._kill()

    def _kill(self) -> None:
        """SIGKILL to PID 1: the kernel ends the whole pid namespace."""
        if self._spawned is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._spawned.pidfd, signal.SIGKILL)
            self._group.kill()

    async def _collect(
        self, session: Session, limits: Limits
    ) -> tuple[list[ArtifactFile], list[Skipped]]:
        """The files the program left; a sandbox that is gone by now left none."""
        choice = choose(session.entries, limits, truncated=session.entries_truncated)
        files: list[ArtifactFile] = []
        skipped = list(choice.skipped)
        try:
            async with asyncio.timeout(COLLECT_TIMEOUT_S):
                for path, name, size in choice.fetch:
                    content = await session.get(path, limits.max_artifact_bytes)
                    if content is None:
                        skipped.append(Skipped(name, "it could not be read", size))
                    else:
                        files.append(ArtifactFile(name, content))
        except (SandboxUnavailable, TimeoutError):
            lost = choice.fetch[len(files) :]
            skipped += [Skipped(name, "the sandbox ended before", size) for _, name, size in lost]
        return files, skipped

    def _outcome(
        self,
        session: Session,
        watch: Watch,
        progress: _Progress,
        artifacts: Sequence[ArtifactFile],
        skipped: Sequence[Skipped],
    ) -> Outcome:
        verdict = watch.final()
        exit_code, signal_name = _exit_facts(progress.ended, verdict)
        status = RunStatus.SUCCEEDED if exit_code == 0 else RunStatus.FAILED
        stdout, stderr = session.stdout.output(), session.stderr.output()
        return Outcome(
            status=verdict.status if verdict else status,
            exit_code=exit_code,
            signal=signal_name,
            phase=progress.phase,
            limit_hit=verdict.limit_hit if verdict else None,
            reason=verdict.reason if verdict else None,
            stdout=stdout,
            stderr=stderr,
            usage=Usage(
                wall_ms=round(watch.wall_s * 1000),
                cpu_ms=round(watch.cpu_us() / 1000),
                max_rss_mb=self._peak_mb(progress),
                compile_ms=progress.compile_ms,
                output_bytes=stdout.total_bytes + stderr.total_bytes,
            ),
            artifacts=tuple(artifacts),
            skipped=tuple(skipped),
        )

    def _peak_mb(self, progress: _Progress) -> int:
        peak = self._group.peak_bytes()
        if peak is None:
            peak = progress.ended.maxrss_kb * 1024 if progress.ended else 0
        return -(-peak // MIB)

    # ── ending ──

    async def destroy(self) -> None:
        """Leave nothing; see ``ports.Sandbox.destroy``."""
        if self._destroyed:
            return
        self._destroyed = True
        self._disarm()
        if self._session is not None:
            self._session.close()
        if self._spawned is not None:
            await self._end_processes(self._spawned)
        if await self._remove_group():
            self._backend.forget(self, self._uids)
        else:  # its user ids are never given to another run
            self._backend.forget(self, None)

    async def _end_processes(self, spawned: Spawned) -> None:
        self._kill()
        if self._session is None:
            spawned.control.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(REMOVE_TIMEOUT_S):
                await _readable(spawned.pidfd)
        os.close(spawned.pidfd)
        self._spawned = None

    async def _remove_group(self) -> bool:
        """The cgroup empties a moment after the last process is reaped."""
        deadline = time.monotonic() + REMOVE_TIMEOUT_S
        pause = 0.001
        while not self._group.remove():
            if time.monotonic() > deadline:
                return False
            self._group.kill()
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.1)
        return True


class _Progress:
    """How far a plan has come; what is known when it stops there."""

    def __init__(self) -> None:
        self.phase = Phase.RUN
        self.ended: Ended | None = None
        self.compile_ms: int | None = None


def _exit_facts(ended: Ended | None, verdict: Verdict | None) -> tuple[int | None, str | None]:
    """Exit code and signal name from the wait status; neither when the service ended it."""
    if ended is None or verdict is not None:
        return None, None
    if os.WIFSIGNALED(ended.wait_status):
        number = os.WTERMSIG(ended.wait_status)
        with contextlib.suppress(ValueError):
            return None, signal.Signals(number).name
        return None, f"SIG{number}"
    return os.WEXITSTATUS(ended.wait_status), None


async def _readable(fd: int) -> None:
    """Until ``fd`` can be read; for a pidfd, until its process has ended."""
    loop = asyncio.get_running_loop()
    event = asyncio.Event()
    loop.add_reader(fd, event.set)
    try:
        await event.wait()
    finally:
        loop.remove_reader(fd)


async def _hand_over(
    spawned: Spawned, zygote: Zygote, processes: int, procs: Sequence[int]
) -> None:
    """Take the program's pipe ends from init's HELLO and give them to a zygote's child."""
    async with asyncio.timeout(PREPARE_TIMEOUT_S):
        await _readable(spawned.control.fileno())
    data, fds, _, _ = socket.recv_fds(spawned.control, 5, 8)
    try:
        if len(data) != 5 or data[0] != Kind.HELLO or len(fds) != 5:
            raise SandboxUnavailable("init did not come up", step="hello")
        zygote.fork(processes, [spawned.pidfd, *fds, *procs])
    finally:
        for fd in fds:
            os.close(fd)


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
        self._live: dict[str, NativeSandbox] = {}
        self._count = 0
        self._statuses: Sequence[LanguageStatus] | None = None
        self._launcher: Launcher | None = None
        self._tree: Tree | None = None
        self._uids: UidPairs | None = None

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
        self._tree = Tree.open()
        async with self._lock:
            await self._start_launcher()

    async def _start_launcher(self) -> None:
        """A launcher and its zygotes; what an earlier one had is gone with it."""
        self._drop_zygotes()
        self._workdir.mkdir(parents=True, exist_ok=True)
        staging = tempfile.mkdtemp(prefix="root-", dir=self._workdir)
        try:
            self._launcher = await Launcher.start(self._instructions(staging), self._filter)
        finally:
            os.rmdir(staging)  # only the mount point: the mount lives in the launcher's namespace
        for name, (language, flavour) in self._flavours.items():
            if flavour.warm is Warm.ZYGOTE:
                await self._start_zygote(name, language, flavour)

    def _instructions(self, staging: str) -> Instructions:
        built = binaries()
        present = {path: source for path, source in self._mounts.items() if source.is_dir()}
        texts = launching.zygote_files(built.zygote, BOOTSTRAP) | {
            f"opt/ahead/{name}": BOOTSTRAP / name for name in AHEAD
        }
        root = os.geteuid() == 0
        user = str(os.getuid()) if root else getpass.getuser()
        return Instructions(
            operations=root_operations(present, texts),
            staging=staging,
            launcher=str(built.launcher),
            subuids=None if root else subordinate(Path("/etc/subuid"), user, os.getuid()),
            subgids=None if root else subordinate(Path("/etc/subgid"), user, os.getuid()),
        )

    async def _start_zygote(self, name: str, language: Language, flavour: Flavour) -> None:
        """One warm interpreter; a language that is not installed has none."""
        env = {
            **default_env(language),
            "PYTHONPATH": f"/{launching.ZYGOTE_HOME}",
            "CE_PRELOAD": ",".join(flavour.preload),
        }
        try:
            self._zygotes[name] = await Zygote.start(
                self.launcher, name, language.run, environment(env)
            )
        except SandboxUnavailable as error:
            log.warning("zygote_failed", flavour=name, error=error.message)

    async def prepare(self, flavour: str) -> NativeSandbox:
        """See ``ports.Backend.prepare``."""
        if flavour not in self._flavours:
            raise SandboxUnavailable(f"there is no flavour {flavour}", step="flavour")
        if not self.launcher.alive:
            async with self._lock:
                if not self.launcher.alive:
                    await self._start_launcher()
        try:
            return await self._prepare(flavour)
        except SandboxUnavailable as error:
            if error.step != "zygote":
                raise
            await self._restart_zygote(flavour)
            return await self._prepare(flavour)

    async def _restart_zygote(self, name: str) -> None:
        async with self._lock:
            old = self._zygotes.pop(name, None)
            if old is not None:
                old.close()
            await self._start_zygote(name, *self._flavours[name])

    async def _prepare(self, name: str) -> NativeSandbox:
        assert self._tree is not None
        assert self._uids is not None
        zygote = self._zygotes.get(name)
        uids = self._uids.take()
        self._count += 1
        sandbox_name = f"sandbox-{self._count}"
        group = self._tree.group(sandbox_name)
        sandbox = NativeSandbox(self, name, group, uids, sandbox_name)
        self._live[sandbox_name] = sandbox
        request = self._request(name, uids, zygote)
        try:
            await sandbox.start(request, zygote, self._memory)
        except BaseException as error:
            await sandbox.destroy()
            if isinstance(error, SandboxUnavailable | asyncio.CancelledError):
                raise
            raise SandboxUnavailable(f"no sandbox: {error}", step="prepare") from error
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

    def forget(self, sandbox: NativeSandbox, uids: tuple[int, int] | None) -> None:
        """Called by a sandbox when nothing of it is left (``uids`` to be used again)."""
        self._live.pop(sandbox.name, None)
        if uids is not None and self._uids is not None:
            self._uids.give_back(uids)

    def _drop_zygotes(self) -> None:
        for zygote in self._zygotes.values():
            zygote.close()
        self._zygotes.clear()

    async def close(self) -> None:
        """See ``ports.Backend.close``."""
        await asyncio.gather(*(sandbox.destroy() for sandbox in list(self._live.values())))
        self._drop_zygotes()
        if self._launcher is not None:
            await self._launcher.close()
        if self._tree is not None:
            self._tree.close()
        if self._uids is not None:
            self._uids.close()


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
    user = getpass.getuser()
    subuids = subordinate(Path("/etc/subuid"), user, os.getuid())
    subgids = subordinate(Path("/etc/subgid"), user, os.getuid())
    if subuids is None or subgids is None:
        raise HostUnfit(
            f"{user} has no subordinate user ids",
            fix=f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}",
        )
    return UidPairs(1, min(subuids.count, subgids.count))
