"""The system-call filter: a profile compiled to the kernel's BPF.

Theory of operation. ``load`` (of ``seccomp_profile``) reads a profile in the format Docker
reads; ``compile`` turns it into the bytes of a ``struct sock_filter`` array, which the init and
the zygote install as the last thing before the first byte of user code, with
``seccomp(SECCOMP_SET_MODE_FILTER)``. One file serves every backend: here libseccomp compiles
it, under Docker the container runtime does.

The program has two parts::

    prologue (ours)       a number that no rule and no table knows          -> ENOSYS
    body (libseccomp's)   foreign architecture, x32                         -> kill the process
                          a named call, a binary tree over the numbers      -> the rule's action
                          anything else                                     -> the default action

The prologue is what runc puts before a profile, too: a libc that tries a call newer than the
profile has to read ENOSYS to fall back on the old one; EPERM would stop it.

libseccomp is not believed. What it does in silence is refused beforehand (a call with rules of
two different actions: an unconditional rule swallows a conditional one), and the finished
program is run, on a BPF machine, against the profile before it is given out: ``_verify``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice, pairwise, product
from types import ModuleType
from typing import Any

from code_executor.errors import HostUnfit
from code_executor.sandbox import bpf
from code_executor.sandbox.seccomp_profile import (
    ALLOW,
    ARCHITECTURES,
    ENOSYS,
    ERRNO,
    KILL_PROCESS,
    Architecture,
    Condition,
    Profile,
    Rule,
    default_path,
    kernel_version,
    load,
)

__all__ = ["compile", "default_path", "known_calls", "load", "number"]

log = logging.getLogger(__name__)

MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
MAX_CASES = 100_000
"""Combinations of arguments tried for one call; the shipped profile has 2,500 at most."""


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
    kernel = kernel_version(os.uname().release)
    rules = [rule for rule in profile.rules if rule.applies(arch, kernel)]
    _refuse_mixed_actions(profile, rules)
    unknown = _unknown_numbers(arch, _highest(lib, arch, profile))
    try:
        body = _export(_build(lib, profile, arch, rules))
    except OSError as error:
        raise profile.unfit(f"cannot be compiled: {error.strerror}") from error
    code = [*_prologue(arch, unknown), *bpf.decode(body)]
    if len(code) > MAX_INSTRUCTIONS:
        raise profile.unfit(f"compiles to more than {MAX_INSTRUCTIONS} instructions")
    _verify(profile, arch, rules, code)
    return bpf.encode(code)


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
        raise profile.unfit(f"archMap: {arch.token} is not in it")
    return arch


def _refuse_mixed_actions(profile: Profile, rules: Sequence[Rule]) -> None:
    seen: dict[str, int] = {}
    for rule in rules:
        for name in rule.names:
            if seen.setdefault(name, rule.action) != rule.action:
                raise profile.unfit(f"{name}: rules of two different actions")


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
        raise profile.unfit(f"{name}: unknown to this libseccomp, so it cannot be refused")
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


def _prologue(arch: Architecture, ranges: Sequence[tuple[int, int]]) -> list[bpf.Instruction]:
    """Answer ENOSYS for a number in one of ``ranges`` (ascending); fall through otherwise.

    A number below the first range, as nearly every call has, leaves after one comparison.
    """
    size = 3 + 2 * len(ranges) + 2
    code = [(bpf.LOAD, 0, 0, bpf.ARCH_OFFSET), (bpf.JUMP_EQ, 0, size - 2, arch.audit)]
    code.append((bpf.LOAD, 0, 0, bpf.NR_OFFSET))
    for first, last in ranges:
        code.append((bpf.JUMP_GE, 0, size - len(code) - 1, first))  # below it: to the body
        code.append((bpf.JUMP_GE, 0, size - len(code) - 2, last + 1))  # within it: to the return
    code.append((bpf.JUMP, 0, 0, 1))  # past all of them (x32, -1): to the body
    code.append((bpf.RETURN, 0, 0, ERRNO | ENOSYS))
    return code


# ---- verifying ----------------------------------------------------------------------------


def _verify(
    profile: Profile, arch: Architecture, rules: Sequence[Rule], code: Sequence[bpf.Instruction]
) -> None:
    """Run the program on every call, with every combination of arguments that a rule is near.

    libseccomp shares equal pieces of code between calls, and at times forgets which argument
    such a piece expects to be loaded: a rule for one call then judges by another's argument.
    """
    by_name: dict[str, list[Rule]] = {}
    for rule in rules:
        for name in rule.names:
            by_name.setdefault(name, []).append(rule)
    for nr, name in _table(arch.audit).items():
        own = by_name.get(name, [])
        for args in _cases(own):
            want = next((rule.action for rule in own if rule.matches(args)), profile.default_action)
            got = bpf.execute(code, arch.audit, nr, args)
            # Numbers above all that the profile names are the prologue's, and never allowed.
            if got != want and (own or got == ALLOW):
                call = f"{name}({', '.join(map(hex, args))})"
                raise profile.unfit(f"libseccomp compiles {call} to {got:#x} instead of {want:#x}")


def _cases(rules: Sequence[Rule]) -> Iterator[tuple[int, ...]]:
    """Six arguments at a time: each value that a condition names, one less, one more, one bit up.

    An argument that no condition looks at is 0. A profile may compare so much that not every
    combination can be tried before the service starts; ours is far from it.
    """
    values: list[set[int]] = [set() for _ in range(6)]
    for rule in rules:
        for condition in chain.from_iterable(rule.alternatives):
            near = (condition.target, condition.target - 1, condition.target + 1)
            values[condition.index].update(value % (1 << 64) for value in near)
            values[condition.index].add(condition.target ^ (1 << 32))
    return islice(product(*(sorted(near) or (0,) for near in values)), MAX_CASES)
