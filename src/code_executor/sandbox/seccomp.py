"""The system-call filter: a profile compiled to the kernel's BPF.

Theory of operation. ``load`` (of ``seccomp_profile``) reads a profile in the format Docker
reads; ``compile`` turns it into the bytes of a ``struct sock_filter`` array, which the init and
the zygote install as the last thing before the first byte of user code, with
``seccomp(SECCOMP_SET_MODE_FILTER)``. One file serves every backend: here libseccomp compiles
it, under Docker the container runtime does.

The program has two parts::

    dispatch (ours)       a binary search over ranges of numbers:
                            a call whose rule looks at no argument          -> the rule's action
                            a call that no rule names                       -> the default action
                            a number that no rule and no table knows        -> ENOSYS
    body (libseccomp's)   foreign architecture, x32                         -> kill the process
                          a call whose rule looks at arguments              -> the rule's action

A libc that tries a call newer than the profile has to read ENOSYS to fall back on the old one;
EPERM would stop it (runc does the same). Ranges, because neighbours mostly share their answer: the
kernel translates the program, and tries it on every number, each time it is installed, which is
once a run; a third of the instructions is half of the time (``design/seccomp.md``).

libseccomp is not believed. What it does in silence is refused beforehand (a call with rules of
two different actions: an unconditional rule swallows a conditional one), and the finished
program is run, on a BPF machine, against the profile before it is given out: ``_verify``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
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
MAX_RANGES = 240  # a jump skips 255 instructions at most; the shipped profile has 90
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
    ranges = _ranges(profile, arch, rules, _highest(lib, arch, profile))
    if len(ranges) > MAX_RANGES:
        raise profile.unfit(f"its calls lie in more than {MAX_RANGES} ranges of numbers")
    try:
        body = _export(_build(lib, profile, arch, rules))
    except OSError as error:
        raise profile.unfit(f"cannot be compiled: {error.strerror}") from error
    code = [*_dispatch(arch, ranges), *bpf.decode(body)]
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
    """Add ``rule`` for one call; false when libseccomp has never heard of an allowed one.

    Rules that look at no argument are the dispatch's.
    """
    # Rules are given in the native numbering; libseccomp translates them to the filter's.
    native = lib.resolve_syscall(lib.Arch.NATIVE, name)
    if native == -1:
        if rule.action == ALLOW:
            return False
        raise profile.unfit(f"{name}: unknown to this libseccomp, so it cannot be refused")
    if rule.action != profile.default_action:  # which libseccomp would not take
        for conjunction in rule.alternatives:
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


def _ranges(
    profile: Profile, arch: Architecture, rules: Sequence[Rule], highest: int
) -> list[tuple[int, int | None]]:
    """Where the answer changes: (first number, action), ascending; ``None``: the body judges.

    What comes after ``highest`` is newer than the profile, whether this libseccomp has a name
    for it or not.
    """
    looked_at = {name for rule in rules if rule.alternatives for name in rule.names}
    plain = {name: rule.action for rule in rules if not rule.alternatives for name in rule.names}
    table = _table(arch.audit)

    def answer(nr: int) -> int | None:
        name = table.get(nr)
        if name is None:
            return ERRNO | ENOSYS
        return plain.get(name, None if name in looked_at else profile.default_action)

    answers = [*((nr, answer(nr)) for nr in range(highest + 1)), (highest + 1, ERRNO | ENOSYS)]
    answers.append((arch.last_number + 1, None))  # x32, -1
    return [each for before, each in pairwise([(-1, -1), *answers]) if before[1] != each[1]]


def _dispatch(
    arch: Architecture, ranges: Sequence[tuple[int, int | None]]
) -> list[bpf.Instruction]:
    """Answer by the range that the number is in; on to the body for ``None``, or a foreign call."""
    answers = list(dict.fromkeys(answer for _, answer in ranges if answer is not None))
    first_exit = 3 + len(ranges) - 1
    exits: dict[int | None, int] = {each: first_exit + i for i, each in enumerate(answers)}
    body = exits[None] = first_exit + len(answers)
    return [
        (bpf.LOAD, 0, 0, bpf.ARCH_OFFSET),
        (bpf.JUMP_EQ, 0, body - 2, arch.audit),
        (bpf.LOAD, 0, 0, bpf.NR_OFFSET),
        *_search(ranges, 3, exits),
        *((bpf.RETURN, 0, 0, each) for each in answers),
    ]


def _search(
    ranges: Sequence[tuple[int, int | None]], at: int, exits: Mapping[int | None, int]
) -> list[bpf.Instruction]:
    """Comparisons that lead from ``at``, where they begin, to the exit of the number's range."""
    if len(ranges) == 1:
        return []
    middle = len(ranges) // 2
    lower, upper = ranges[:middle], ranges[middle:]
    below = _search(lower, at + 1, exits)
    beyond = at + 1 + len(below)
    above = _search(upper, beyond, exits)
    if_less = at + 1 if below else exits[lower[0][1]]
    if_not = beyond if above else exits[upper[0][1]]
    return [(bpf.JUMP_GE, if_not - at - 1, if_less - at - 1, upper[0][0]), *below, *above]


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
