"""The system-call filter: a profile in the format Docker reads, compiled to the kernel's BPF.

Theory of operation. ``load`` reads and judges a profile; ``compile`` turns it into the bytes of
a ``struct sock_filter`` array, which the init and the zygote install as the last thing before
the first byte of user code, with ``seccomp(SECCOMP_SET_MODE_FILTER)``. One file serves every
backend: here libseccomp compiles it, under Docker the container runtime does.

The program has two parts::

    prologue (ours)       a number that no rule and no table knows          -> ENOSYS
    body (libseccomp's)   foreign architecture, x32                         -> kill the process
                          a named call, a binary tree over the numbers      -> the rule's action
                          anything else                                     -> the default action

The prologue is what runc puts before a profile, too: a libc that tries a call newer than the
profile has to read ENOSYS to fall back on the old one; EPERM would stop it.

What Docker's format leaves open is decided here as runc and crun decide it: conditions on
different arguments of one group must all hold; as soon as one argument appears twice in a
group, any single condition suffices. The capabilities of a sandboxed program are the empty
set, so a group that includes a capability never applies, and one that excludes it always does.

What libseccomp would do in silence is refused instead: a call with rules of two different
actions (an unconditional rule swallows a conditional one), a profile that is not an allow-list,
a second architecture beside the native one.
"""

from __future__ import annotations

import json
import logging
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from code_executor.errors import HostUnfit

log = logging.getLogger(__name__)

# SECCOMP_RET_* of <linux/seccomp.h>
KILL_PROCESS = 0x8000_0000
KILL_THREAD = 0x0000_0000
ERRNO = 0x0005_0000
ALLOW = 0x7FFF_0000

EPERM = 1
ENOSYS = 38

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
MAX_PROFILE_BYTES = 1 << 20
X32_BIT = 0x4000_0000

_ACTIONS = {
    "SCMP_ACT_ALLOW": ALLOW,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
}
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_REPAIR = "Correct the profile, or unset SECCOMP_PROFILE to use the one that is shipped."


@dataclass(frozen=True, slots=True)
class Architecture:
    """One machine by its four names; ``audit`` is AUDIT_ARCH_* of <linux/audit.h>."""

    machine: str
    docker: str
    token: str
    audit: int
    last_number: int
    """The largest number a call may have: x32's come after it; -1 is never a call."""


ARCHITECTURES = (
    Architecture("x86_64", "amd64", "SCMP_ARCH_X86_64", 0xC000_003E, X32_BIT - 1),
    Architecture("aarch64", "arm64", "SCMP_ARCH_AARCH64", 0xC000_00B7, 0xFFFF_FFFE),
)


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of argument ``index`` (0-5): ``operator`` is one of NE LT LE EQ GE GT MASKED_EQ.

    All arithmetic is on unsigned 64 bits. For MASKED_EQ ``value`` is the mask and ``value_two``
    what the masked argument must be; otherwise ``value_two`` is not used.
    """

    index: int
    operator: str
    value: int
    value_two: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """One group of a profile: the calls it names, its conditions, the kernel's action word.

    ``alternatives``: any of these conjunctions suffices; empty: the rule is unconditional.
    """

    names: tuple[str, ...]
    action: int
    alternatives: tuple[tuple[Condition, ...], ...] = ()
    arches: tuple[str, ...] = ()
    not_arches: tuple[str, ...] = ()
    needs_capability: bool = False
    min_kernel: tuple[int, int] | None = None
    before_kernel: tuple[int, int] | None = None
    comment: str = ""

    def applies(self, arch: Architecture, kernel: tuple[int, int]) -> bool:
        """Whether the group counts on ``arch`` under Linux ``kernel`` (major, minor)."""
        if self.needs_capability or arch.docker in self.not_arches:
            return False
        if self.arches and arch.docker not in self.arches:
            return False
        if self.min_kernel is not None and kernel < self.min_kernel:
            return False
        return self.before_kernel is None or kernel < self.before_kernel


@dataclass(frozen=True, slots=True)
class Profile:
    """A judged profile. ``source`` is the path it was read from, for messages."""

    source: str
    default_action: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]


# ---- reading ------------------------------------------------------------------------------


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


_Uint64 = Annotated[int, Field(ge=0, lt=1 << 64)]
_Errno = Annotated[int, Field(ge=1, lt=4096)]
_Action = Literal[
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_KILL_PROCESS",
]


class _ArgumentJson(_Strict):
    index: Annotated[int, Field(ge=0, le=5)]
    value: _Uint64
    valueTwo: _Uint64 = 0
    op: Annotated[str, Field(pattern=rf"^SCMP_CMP_({'|'.join(_OPERATORS)})$")]

    @model_validator(mode="after")
    def _within_mask(self) -> Self:
        # Such a condition never holds; libseccomp would drop the bits and make one that does.
        if self.op == "SCMP_CMP_MASKED_EQ" and self.valueTwo & ~self.value:
            raise ValueError("valueTwo has bits outside the mask in value")
        return self


class _FilterJson(_Strict):
    arches: list[str] | None = None
    caps: list[str] | None = None
    minKernel: Annotated[str, Field(pattern=r"^\d+\.\d+$")] | None = None


class _GroupJson(_Strict):
    names: Annotated[list[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]], Field(min_length=1)]
    action: _Action
    errnoRet: _Errno | None = None
    args: list[_ArgumentJson] | None = None
    comment: str | None = None
    includes: _FilterJson | None = None
    excludes: _FilterJson | None = None


class _ArchJson(_Strict):
    architecture: str
    # The other calling conventions that x86-64 and arm64 kernels answer to. None is let in: a
    # filter that has to hold on three tables of numbers is three filters.
    subArchitectures: Annotated[list[str], Field(max_length=0)] | None = None


class _ProfileJson(_Strict):
    defaultAction: Literal["SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS"]
    defaultErrnoRet: _Errno | None = None
    archMap: Annotated[list[_ArchJson], Field(min_length=1)]
    syscalls: list[_GroupJson]


def default_path() -> Path:
    """The shipped profile: inside an installed package, or in the source tree beside ``src``."""
    package = Path(__file__).parents[1]
    installed = package / "seccomp_profiles" / "default.json"
    return installed if installed.exists() else package.parents[1] / "seccomp" / "default.json"


def load(path: Path | str) -> Profile:
    """Read and judge the profile at ``path``.

    Raises:
        HostUnfit: unreadable, not JSON, not Docker's format, or something in it that this
            module does not support; the message says where and what.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_PROFILE_BYTES + 1)
    except OSError as error:
        raise _unfit(path, f"cannot be read: {error.strerror}") from error
    if len(text) > MAX_PROFILE_BYTES:
        raise _unfit(path, f"is larger than {MAX_PROFILE_BYTES} bytes")
    try:
        raw = _ProfileJson.model_validate(json.loads(text, object_pairs_hook=_no_duplicates))
    except ValidationError as error:
        raise _unfit(path, _describe(error)) from error
    except (ValueError, RecursionError) as error:
        raise _unfit(path, f"is not JSON: {error}") from error
    return _judge(str(path), raw)


def _judge(source: str, raw: _ProfileJson) -> Profile:
    return Profile(
        source=source,
        default_action=_action(raw.defaultAction, raw.defaultErrnoRet, EPERM),
        architectures=tuple(entry.architecture for entry in raw.archMap),
        rules=tuple(_rule(group, raw.defaultErrnoRet or EPERM) for group in raw.syscalls),
    )


def _rule(group: _GroupJson, default_errno: int) -> Rule:
    includes = group.includes or _FilterJson()
    excludes = group.excludes or _FilterJson()
    return Rule(
        names=tuple(group.names),
        action=_action(group.action, group.errnoRet, default_errno),
        alternatives=_alternatives(group.args or []),
        arches=tuple(includes.arches or ()),
        not_arches=tuple(excludes.arches or ()),
        needs_capability=bool(includes.caps),
        min_kernel=_kernel(includes.minKernel) if includes.minKernel else None,
        before_kernel=_kernel(excludes.minKernel) if excludes.minKernel else None,
        comment=group.comment or "",
    )


def _alternatives(args: Sequence[_ArgumentJson]) -> tuple[tuple[Condition, ...], ...]:
    conditions = tuple(
        Condition(arg.index, arg.op.removeprefix("SCMP_CMP_"), arg.value, arg.valueTwo)
        for arg in args
    )
    if len({condition.index for condition in conditions}) < len(conditions):
        return tuple((condition,) for condition in conditions)
    return (conditions,) if conditions else ()


def _action(name: str, errno: int | None, default_errno: int) -> int:
    action = _ACTIONS[name]
    return action | (errno or default_errno) if action == ERRNO else action


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {max(names, key=names.count)!r} appears twice in one object")
    return found


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the document"
    return f"{place}: {first['msg']}"


def _unfit(source: Path | str, what: str) -> HostUnfit:
    return HostUnfit(f"Seccomp profile {source}: {what}", fix=_REPAIR)


# ---- compiling ----------------------------------------------------------------------------


def compile(profile: Profile, machine: str | None = None) -> bytes:
    """The filter program as an array of ``struct sock_filter`` (8 bytes each, native order).

    ``machine`` is a name as ``uname -m`` gives it; this host's when absent. The same profile,
    machine, kernel version and libseccomp give the same bytes.

    Raises:
        HostUnfit: libseccomp is missing or too old, the machine is not in the profile, or the
            profile asks for what cannot be kept.
    """
    lib = _libseccomp()
    arch = _architecture(profile, machine or os.uname().machine)
    kernel = _kernel(os.uname().release)
    rules = [rule for rule in profile.rules if rule.applies(arch, kernel)]
    _refuse_mixed_actions(profile, rules)
    try:
        body = _export(_build(lib, profile, arch, rules))
    except OSError as error:
        raise _unfit(profile.source, f"cannot be compiled: {error.strerror}") from error
    program = _prologue(arch, _unknown_numbers(arch, _highest(lib, arch, profile))) + body
    if len(program) > MAX_INSTRUCTIONS * 8:
        raise _unfit(profile.source, f"compiles to more than {MAX_INSTRUCTIONS} instructions")
    return program


def number(name: str, machine: str | None = None) -> int | None:
    """The number of the call ``name`` on ``machine``; ``None`` when it has no such call."""
    lib = _libseccomp()
    resolved: int = lib.resolve_syscall(_by_machine(machine or os.uname().machine).audit, name)
    return resolved if resolved >= 0 else None


def known_calls(machine: str | None = None) -> dict[int, str]:
    """Every call that libseccomp can name on ``machine``, by number."""
    return dict(_table(_by_machine(machine or os.uname().machine).audit))


@lru_cache(maxsize=2)
def _table(audit: int) -> dict[int, str]:
    lib = _libseccomp()
    table = {}
    for nr in range(1024):
        try:
            table[nr] = lib.resolve_syscall(audit, nr).decode()
        except ValueError:
            continue
    return table


def _libseccomp() -> ModuleType:
    """pyseccomp, imported late: it looks for the library when it is imported."""
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        raise HostUnfit("libseccomp is not installed", fix="apt-get install libseccomp2") from error
    library: ModuleType = pyseccomp
    return library


def _by_machine(machine: str) -> Architecture:
    for arch in ARCHITECTURES:
        if arch.machine == machine:
            return arch
    supported = ", ".join(arch.machine for arch in ARCHITECTURES)
    raise HostUnfit(f"No seccomp filter for {machine}", fix=f"Use one of: {supported}.")


def _architecture(profile: Profile, machine: str) -> Architecture:
    arch = _by_machine(machine)
    if arch.token not in profile.architectures:
        raise _unfit(profile.source, f"archMap: {arch.token} is not in it")
    return arch


def _kernel(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _refuse_mixed_actions(profile: Profile, rules: Sequence[Rule]) -> None:
    seen: dict[str, int] = {}
    for rule in rules:
        for name in rule.names:
            if seen.setdefault(name, rule.action) != rule.action:
                raise _unfit(profile.source, f"{name}: rules of two different actions")


def _build(lib: ModuleType, profile: Profile, arch: Architecture, rules: Sequence[Rule]) -> Any:
    built = lib.SyscallFilter(profile.default_action)
    built.set_attr(lib.Attr.ACT_BADARCH, KILL_PROCESS)
    built.set_attr(lib.Attr.CTL_OPTIMIZE, 2)  # a binary tree instead of a chain
    if lib.system_arch() != arch.audit:
        built.remove_arch(lib.system_arch())
        built.add_arch(arch.audit)
    added = ((name, _add(lib, built, profile, rule, name)) for rule in rules for name in rule.names)
    if skipped := [name for name, known in added if not known]:
        log.info("seccomp: allowed calls that this libseccomp does not know: %s", skipped)
    return built


def _add(lib: ModuleType, built: Any, profile: Profile, rule: Rule, name: str) -> bool:
    """Add ``rule`` for one call; false when libseccomp has never heard of an allowed one."""
    # Rules are given in the native numbering; libseccomp translates them to the filter's.
    native = lib.resolve_syscall(lib.Arch.NATIVE, name)
    if native == -1:
        if rule.action == ALLOW:
            return False
        raise _unfit(profile.source, f"{name}: unknown to this libseccomp, so it cannot be refused")
    if rule.action != profile.default_action:  # which libseccomp would not take
        for conjunction in rule.alternatives or ((),):
            built.add_rule(rule.action, native, *(_argument(lib, part) for part in conjunction))
    return True


def _argument(lib: ModuleType, condition: Condition) -> Any:
    operator = getattr(lib, condition.operator)
    return lib.Arg(condition.index, operator, condition.value, condition.value_two)


def _highest(lib: ModuleType, arch: Architecture, profile: Profile) -> int:
    """The largest number that any group names, whether it applies here or not."""
    named = {name for rule in profile.rules for name in rule.names}
    return max((lib.resolve_syscall(arch.audit, name) for name in named), default=-1)


def _export(built: Any) -> bytes:
    with os.fdopen(os.memfd_create("seccomp"), "r+b") as file:
        built.export_bpf(file)
        file.seek(0)
        return file.read()


def _unknown_numbers(arch: Architecture, highest: int) -> list[tuple[int, int]]:
    """Ranges (first, last) of numbers without a name, up to the end of the architecture's.

    What comes after ``highest`` is newer than the profile, whether this libseccomp has a name
    for it or not.
    """
    known = sorted(nr for nr in _table(arch.audit) if nr <= highest)
    holes = [(low + 1, high - 1) for low, high in pairwise(known) if high > low + 1]
    return [*holes, (highest + 1, arch.last_number)]


_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_JUMP = 0x05  # BPF_JMP | BPF_JA
_JUMP_EQ = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_GE = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K
_NR_OFFSET = 0  # offsetof(struct seccomp_data, nr)
_ARCH_OFFSET = 4  # offsetof(struct seccomp_data, arch)


def _prologue(arch: Architecture, ranges: Sequence[tuple[int, int]]) -> bytes:
    """Answer ENOSYS for a number in one of ``ranges`` (ascending); fall through otherwise.

    A number below the first range, as nearly every call has, leaves after one comparison.
    """
    size = 3 + 2 * len(ranges) + 2
    code = [(_LOAD, 0, 0, _ARCH_OFFSET), (_JUMP_EQ, 0, size - 2, arch.audit)]
    code.append((_LOAD, 0, 0, _NR_OFFSET))
    for first, last in ranges:
        code.append((_JUMP_GE, 0, size - len(code) - 1, first))  # below it: to the body
        code.append((_JUMP_GE, 0, size - len(code) - 2, last + 1))  # within it: to the return
    code.append((_JUMP, 0, 0, 1))  # past all of them (x32, -1): to the body
    code.append((_RETURN, 0, 0, ERRNO | ENOSYS))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
