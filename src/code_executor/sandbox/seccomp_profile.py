"""A system-call profile, in the format Docker reads: what it says, read and judged.

What the format leaves open is decided as runc and crun decide it: conditions on different
arguments of one group must all hold; as soon as one argument appears twice in a group, any
single condition suffices. The capabilities of a sandboxed program are the empty set, so a group
that includes a capability never applies, and one that excludes it always does.

Refused, because the promise could not be kept: a profile that is not an allow-list, a second
calling convention beside the native one, an action that asks somebody else (trace, notify), and
any key that is not known here.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from code_executor.errors import HostUnfit

# SECCOMP_RET_* of <linux/seccomp.h>
KILL_PROCESS = 0x8000_0000
KILL_THREAD = 0x0000_0000
ERRNO = 0x0005_0000
ALLOW = 0x7FFF_0000

EPERM = 1
ENOSYS = 38
MAX_PROFILE_BYTES = 1 << 20
X32_BIT = 0x4000_0000

_ACTIONS = {
    "SCMP_ACT_ALLOW": ALLOW,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
}
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "EQ": operator.eq,
    "GE": operator.ge,
    "GT": operator.gt,
}
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

    def holds(self, args: Sequence[int]) -> bool:
        """Whether the argument compares as it must."""
        argument = args[self.index]
        if self.operator == "MASKED_EQ":
            return argument & self.value == self.value_two
        return _COMPARE[self.operator](argument, self.value)

    @property
    def target(self) -> int:
        """The value that the argument is held against."""
        return self.value_two if self.operator == "MASKED_EQ" else self.value


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

    def matches(self, args: Sequence[int]) -> bool:
        """Whether a call with these six arguments falls under the rule."""
        ways = self.alternatives or ((),)
        return any(all(condition.holds(args) for condition in way) for way in ways)


@dataclass(frozen=True, slots=True)
class Profile:
    """A judged profile. ``source`` is the path it was read from, for messages."""

    source: str
    default_action: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]

    def unfit(self, what: str) -> HostUnfit:
        """The error that says what is wrong with this profile."""
        return _unfit(self.source, what)


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
    op: Annotated[str, Field(pattern=r"^SCMP_CMP_(NE|LT|LE|EQ|GE|GT|MASKED_EQ)$")]

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
        min_kernel=kernel_version(includes.minKernel) if includes.minKernel else None,
        before_kernel=kernel_version(excludes.minKernel) if excludes.minKernel else None,
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


def kernel_version(release: str) -> tuple[int, int]:
    """Major and minor of a release as ``uname -r`` gives it; (0, 0) when it gives none."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


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
