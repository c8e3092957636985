"""The OCI backend: sandboxes that ``runsc`` (gVisor) or ``runc`` makes of bundles.

Theory of operation. The processes::

    service ── runtime run --detach (ends when the sandbox has started)
       │           └─ init (PID 1 of the sandbox; contained.py) ── interpreter, started ahead
       └── frames to each init (session.py), over the socket that was the runtime's stdin and stdout

``prepare`` makes the cgroup, writes a bundle (:mod:`.oci_bundle`), has the runtime start it and
waits for init's READY: all that costs is over before a request comes. ``run`` is the native one
(:mod:`.running`): the same init, plan, clock, counters and verdict. ``destroy`` kills the cgroup,
has the runtime forget the sandbox (``delete --force``) and removes cgroup and bundle.

gVisor puts a kernel of its own between the program and the host: a program's system calls end
there, and the host's kernel sees only what that one asks for. Its processes (kernel and file
server) are started in the sandbox's cgroup, so memory, CPU time and the last kill are the host's
business as ever. runc shares the host's kernel and has the same measures as the native backend; it
is here because it is what other people's containers are made of, and drives the same bundle.

What a crashed service left is swept by the next start: cgroups with the processes in them
(:mod:`.cgroup`), then the runtime's state and the bundles (:mod:`.oci_runtime`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog

from code_executor.errors import HostUnfit, SandboxUnavailable, words
from code_executor.languages import Language, Warm
from code_executor.model import MIB, LanguageStatus, Promise
from code_executor.ports import Haste
from code_executor.sandbox import probes, seccomp
from code_executor.sandbox.build import binaries
from code_executor.sandbox.cgroup import Tree, remove_empty
from code_executor.sandbox.contained import ahead_files, init_command
from code_executor.sandbox.lead import Lead
from code_executor.sandbox.oci_bundle import Box, RuntimeKind, config, write_root
from code_executor.sandbox.oci_runtime import (
    PLATFORMS,
    Place,
    Runtime,
    find_program,
    may_lift,
    sweep,
)
from code_executor.sandbox.oci_sandbox import OciSandbox
from code_executor.sandbox.root import root_operations
from code_executor.sandbox.uids import UidPairs

log = structlog.get_logger(__name__)

HOST_RUN = Path("/run/code-executor")
PREPARING_MAX = 4  # a runtime takes a core for a while; more at once only make all of them late


class OciBackend:
    """Sandboxes of an OCI runtime; see the module's docstring.

    The arguments are the native backend's.
    """

    def __init__(
        self,
        kind: RuntimeKind,
        *,
        languages: Sequence[Language],
        mounts: Mapping[str, Path],
        seccomp_profile: Path,
        default_memory_mb: int = 256,
        scratch_mb: int = 512,
    ) -> None:
        self.name = str(kind)
        self._kind = kind
        self._languages = {language.id: language for language in languages}
        self._flavours = {
            flavour.name: (language, flavour)
            for language in languages
            for flavour in language.flavours
        }
        self._mounts = dict(mounts)
        self._profile = seccomp_profile
        self._memory = default_memory_mb * MIB
        self._scratch_mb = scratch_mb
        self._live: dict[str, OciSandbox] = {}
        self._lead = Lead()
        self._preparing = asyncio.Semaphore(PREPARING_MAX)
        self._count = 0
        self._statuses: Sequence[LanguageStatus] | None = None
        self._tree: Tree | None = None
        self._uids: UidPairs | None = None
        self._place: Place | None = None
        self._runtime: Runtime | None = None

    @property
    def live(self) -> int:
        """How many sandboxes exist now."""
        return len(self._live)

    async def start(self) -> None:
        """See ``ports.Backend.start``."""
        program = find_program(self._kind)
        built = binaries()
        filter_program = seccomp.compile(seccomp.load(self._profile))
        self._tree = Tree.open()
        await asyncio.to_thread(sweep)
        self._place = Place.make(self._tree.name, program)
        if self._kind is RuntimeKind.RUNC:
            self._uids = UidPairs.of_root(HOST_RUN)
        present = {path: source for path, source in self._mounts.items() if source.is_dir()}
        self._operations = root_operations(present, ahead_files(built))
        await asyncio.to_thread(write_root, self._place.root, self._operations, filter_program)
        self._place.lock_root()
        lifted = self._kind is RuntimeKind.RUNC and may_lift()
        self._runtime = Runtime(self._kind, program, self._place.state, lifted=lifted)
        await self._choose_platform()

    async def _choose_platform(self) -> None:
        """The first platform with which a sandbox comes up; runc has none to choose.

        Raises:
            HostUnfit: none does; the runtime's words are in the message.
        """
        assert self._runtime is not None
        problem: SandboxUnavailable | None = None
        flavour = next(iter(self._flavours), None)
        for platform in PLATFORMS if self._kind is RuntimeKind.GVISOR else ("",):
            self._runtime = replace(self._runtime, platform=platform)
            try:
                if flavour is not None:
                    await (await self._prepare(flavour, warm=False)).destroy()
            except SandboxUnavailable as error:
                problem = error
                continue
            log.info("oci_runtime", program=self._runtime.program, platform=platform or None)
            return
        raise HostUnfit(f"{problem}", fix="SANDBOX_BACKEND=native")

    async def prepare(self, flavour: str, haste: Haste | None = None) -> OciSandbox:
        """See ``ports.Backend.prepare``; it yields to nothing here."""
        del haste
        if flavour not in self._flavours:
            raise SandboxUnavailable(f"there is no flavour {flavour}", step="flavour")
        await self._lead.over()
        async with self._preparing:
            return await self._prepare(flavour, warm=True)

    async def _prepare(self, name: str, *, warm: bool) -> OciSandbox:
        if self._tree is None or self._runtime is None:
            raise SandboxUnavailable("the backend is not started", step="runtime")
        self._count += 1
        # gVisor's sockets are found by this name, by every service of the host.
        sandbox_name = f"{self._tree.name}-{self._count}"
        group = self._tree.group(sandbox_name)
        uids = self._uids.take() if self._uids is not None else None
        gone = partial(self._forget, uids)
        sandbox = OciSandbox(name, self._runtime, group, sandbox_name, gone, self._lead)
        self._live[sandbox_name] = sandbox
        language, flavour = self._flavours[name]
        if not warm:
            flavour = replace(flavour, warm=Warm.NONE)
        processes = language.processes
        box = Box(
            kind=self._kind,
            root=self._bundles.root,
            operations=self._operations,
            command=init_command(language, flavour, processes=processes, filtered=True),
            scratch_mb=self._scratch_mb,
            uids=uids,
            cgroup=group.path if self._kind is RuntimeKind.RUNC else None,
            shared_account=self._kind is RuntimeKind.RUNC and not self._runtime.lifted,
        )
        bundle = partial(self._bundles.bundle, sandbox_name, config(box))
        started_ahead = flavour.warm is not Warm.NONE
        try:
            await sandbox.start(
                bundle, memory=self._memory, processes=processes, warm=started_ahead
            )
        except BaseException as error:
            await sandbox.destroy()
            if isinstance(error, SandboxUnavailable | asyncio.CancelledError):
                raise
            raise SandboxUnavailable(f"no sandbox: {words(error)}", step="prepare") from error
        return sandbox

    @property
    def _bundles(self) -> Place:
        assert self._place is not None
        return self._place

    def _forget(self, uids: tuple[int, int] | None, sandbox: OciSandbox, clean: bool) -> None:
        """A sandbox is gone. Where something of it is left, no other run ever gets its ids."""
        self._live.pop(sandbox.name, None)
        if clean and uids is not None and self._uids is not None:
            self._uids.give_back(uids)

    async def probe(self) -> Sequence[Promise]:
        """See ``ports.Backend.probe``."""
        python = self._languages.get("python")
        return await probes.probe(self, python, host_ids=self._kind is RuntimeKind.RUNC)

    async def languages(self) -> Sequence[LanguageStatus]:
        """See ``ports.Backend.languages``."""
        if self._statuses is None:
            asked = (probes.language_status(self, each) for each in self._languages.values())
            self._statuses = await asyncio.gather(*asked)
        return self._statuses

    async def close(self) -> None:
        """See ``ports.Backend.close``."""
        await asyncio.gather(*(sandbox.destroy() for sandbox in list(self._live.values())))
        if self._tree is not None:
            self._tree.close()
            remove_empty(self._tree.name)
        if self._place is not None:
            self._place.close()
        if self._uids is not None:
            self._uids.close()
