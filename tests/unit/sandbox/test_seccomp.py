"""The filter, rule by rule, without a kernel: the BPF machine runs the compiled program.

What a call must get is worked out from the profile file itself (``verdict``), so a rule added
there is tested by being there.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from code_executor.errors import HostUnfit
from code_executor.sandbox import bpf, seccomp
from code_executor.sandbox.seccomp_probes import MUST_ALLOW, MUST_REFUSE
from code_executor.sandbox.seccomp_profile import (
    ALLOW,
    ARCHITECTURES,
    ENOSYS,
    EPERM,
    ERRNO,
    KILL_PROCESS,
    KILL_THREAD,
    X32_BIT,
    Architecture,
    Condition,
    Profile,
    Rule,
)

WORD = (1 << 64) - 1
REFUSED = ERRNO | EPERM
NO_SUCH_CALL = ERRNO | ENOSYS
I386 = 0x4000_0003
KERNEL = (6, 1)

PROFILE = seccomp.load(seccomp.default_path())
PROGRAMS = {arch.machine: seccomp.compile(PROFILE, arch.machine) for arch in ARCHITECTURES}
NUMBERS = {
    arch.machine: {name: nr for nr, name in seccomp.known_calls(arch.machine).items()}
    for arch in ARCHITECTURES
}
each_architecture = pytest.mark.parametrize(
    "arch", ARCHITECTURES, ids=[arch.machine for arch in ARCHITECTURES]
)


# ---- what the rules say -----------------------------------------------------------------------


def execute(program: bytes, audit: int, nr: int, args: Sequence[int] = ()) -> int:
    return bpf.execute(bpf.decode(program), audit, nr, args)


def verdict(profile: Profile, arch: Architecture, name: str, args: Sequence[int]) -> int:
    """What the profile says of one call that it could name."""
    for rule in profile.rules:
        if name in rule.names and rule.applies(arch, KERNEL) and rule.matches(args):
            return rule.action
    return profile.default_action


def fitting(way: Sequence[Condition]) -> list[int]:
    """Arguments for which every condition of ``way`` holds."""
    args = [0] * 6
    for part in way:
        args[part.index] = part.value_two if part.operator == "MASKED_EQ" else part.value
    return args


def neighbours(way: Sequence[Condition]) -> Iterator[list[int]]:
    """Fitting arguments with one compared argument off by one, or by any single bit."""
    for part in way:
        fit = fitting(way)
        for changed in [fit[part.index] + 1, fit[part.index] - 1, *_bits(fit[part.index])]:
            yield [*fit[: part.index], changed & WORD, *fit[part.index + 1 :]]


def _bits(word: int) -> Iterator[int]:
    return (word ^ (1 << bit) for bit in range(64))


def calls(arch: Architecture) -> Iterator[tuple[Rule, str, int]]:
    """Every (rule, call, number) of the shipped profile that exists on ``arch``."""
    for rule in PROFILE.rules:
        if rule.applies(arch, KERNEL):
            for name in rule.names:
                if name in NUMBERS[arch.machine]:
                    yield rule, name, NUMBERS[arch.machine][name]


# ---- the shipped profile ----------------------------------------------------------------------


@each_architecture
def test_every_rule_gives_its_action(arch: Architecture) -> None:
    for rule, name, nr in calls(arch):
        for way in rule.alternatives or ((),):
            got = execute(PROGRAMS[arch.machine], arch.audit, nr, fitting(way))
            assert got == rule.action, (name, way)


@each_architecture
def test_an_unconditional_rule_does_not_look_at_arguments(arch: Architecture) -> None:
    for rule, name, nr in calls(arch):
        if not rule.alternatives:
            got = execute(PROGRAMS[arch.machine], arch.audit, nr, [WORD] * 6)
            assert got == rule.action, name


@each_architecture
def test_every_argument_changed_by_one_gets_what_the_profile_says(arch: Architecture) -> None:
    for rule, name, nr in calls(arch):
        for way in rule.alternatives:
            outcomes = set()
            for args in neighbours(way):
                got = execute(PROGRAMS[arch.machine], arch.audit, nr, args)
                assert got == verdict(PROFILE, arch, name, args), (name, args)
                outcomes.add(got)
            assert PROFILE.default_action in outcomes, f"{name}: nothing near {way} is refused"


@each_architecture
def test_every_call_that_is_not_named_is_refused(arch: Architecture) -> None:
    named = {name for _, name, _ in calls(arch)}
    highest = max(NUMBERS[arch.machine][name] for name in named)
    for name, nr in NUMBERS[arch.machine].items():
        if name not in named and nr <= highest:
            assert execute(PROGRAMS[arch.machine], arch.audit, nr) == REFUSED, name


@each_architecture
def test_a_number_nobody_knows_is_no_such_call(arch: Architecture) -> None:
    highest = max(nr for _, _, nr in calls(arch))
    known = {nr for nr in NUMBERS[arch.machine].values() if nr <= highest}
    for nr in [*range(2000), 0x3FFF_FFFF]:
        if nr not in known:
            assert execute(PROGRAMS[arch.machine], arch.audit, nr) == NO_SUCH_CALL, nr
    assert 400 not in known, "the hole below 424 is what this test is about"


@each_architecture
def test_minus_one_is_refused_not_run(arch: Architecture) -> None:
    assert execute(PROGRAMS[arch.machine], arch.audit, -1) == REFUSED


@each_architecture
def test_a_foreign_architecture_is_killed(arch: Architecture) -> None:
    audits = {I386, *(other.audit for other in ARCHITECTURES)} - {arch.audit}
    for audit in audits:
        for nr in [0, 1, 11, 59, 400, 1000, 0x3FFF_FFFF]:
            assert execute(PROGRAMS[arch.machine], audit, nr) == KILL_PROCESS


def test_x32_calls_are_killed() -> None:
    arch = ARCHITECTURES[0]
    for nr in range(600):
        got = execute(PROGRAMS[arch.machine], arch.audit, X32_BIT | nr)
        assert got == KILL_PROCESS, nr


@each_architecture
def test_the_probes_get_what_they_ask_for(arch: Architecture) -> None:
    for probe in (*MUST_REFUSE, *MUST_ALLOW):
        nr = NUMBERS[arch.machine].get(probe.name, 1000 if probe.name == "unknown" else None)
        if nr is not None:
            got = execute(PROGRAMS[arch.machine], arch.audit, nr, probe.args)
            assert got == (ERRNO | probe.errno if probe.errno else ALLOW), probe


_INTERESTING = st.one_of(
    st.sampled_from(
        sorted(
            {
                number
                for rule in PROFILE.rules
                for way in rule.alternatives
                for part in way
                for number in (part.value, part.value_two, part.value + 1)
            }
        )
    ),
    st.integers(0, 64),
    st.integers(0, WORD),
)


@each_architecture
@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted({name for rule in PROFILE.rules for name in rule.names})),
    args=st.lists(_INTERESTING, min_size=6, max_size=6),
)
def test_any_arguments_get_what_the_profile_says(
    arch: Architecture, name: str, args: list[int]
) -> None:
    nr = NUMBERS[arch.machine].get(name)
    if nr is not None:
        got = execute(PROGRAMS[arch.machine], arch.audit, nr, args)
        assert got == verdict(PROFILE, arch, name, args)


def test_every_name_is_a_system_call_and_every_group_explains_itself() -> None:
    anywhere = set().union(*NUMBERS.values())
    newer_than_debian_12 = {"mseal", "map_shadow_stack", "fchmodat2"}
    newer_than_debian_12 |= {"futex_wait", "futex_wake", "futex_requeue"}
    for rule in PROFILE.rules:
        assert set(rule.names) <= anywhere | newer_than_debian_12
        assert list(rule.names) == sorted(set(rule.names))
        assert rule.comment


def test_rules_of_one_call_all_compare_one_argument_or_all_several() -> None:
    # The shape that libseccomp compiles wrongly: see design/seccomp.md.
    shapes: dict[str, set[bool]] = {}
    for rule in PROFILE.rules:
        for name in rule.names:
            shapes.setdefault(name, set()).update(len(way) > 1 for way in rule.alternatives)
    assert [name for name, several in shapes.items() if len(several) > 1] == []


def test_the_program_is_small_and_the_same_every_time() -> None:
    for machine, program in PROGRAMS.items():
        assert program == seccomp.compile(PROFILE, machine)
        assert len(program) // 8 < 700, "installing it costs every run: see design/seccomp.md"


# ---- other profiles ----------------------------------------------------------------------------


def document(*groups: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A small profile that allows ``read`` and what ``groups`` say."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}, *groups],
        **changes,
    }


def load(tmp_path: Path, content: dict[str, Any] | str | bytes) -> Profile:
    path = tmp_path / "profile.json"
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return seccomp.load(path)


def run(profile: Profile, name: str, *args: int) -> int:
    program = seccomp.compile(profile, "x86_64")
    number = NUMBERS["x86_64"][name]
    return execute(program, ARCHITECTURES[0].audit, number, args)


def compare(op: str, value: int, two: int = 0, index: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}


def allow(*args: dict[str, Any], name: str = "close", **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(args), **more}


@pytest.mark.parametrize("op", ["NE", "LT", "LE", "EQ", "GE", "GT"])
def test_every_operator_compares_64_unsigned_bits(tmp_path: Path, op: str) -> None:
    pivot = (5 << 32) | 7
    profile = load(tmp_path, document(allow(compare(op, pivot))))
    for arg in [0, 7, 8, pivot - 1, pivot, pivot + 1, pivot ^ (1 << 32), pivot | 1 << 63, WORD]:
        expected = verdict(profile, ARCHITECTURES[0], "close", [arg])
        assert run(profile, "close", arg) == expected, hex(arg)


def test_conditions_on_different_arguments_must_all_hold(tmp_path: Path) -> None:
    group = allow(compare("EQ", 1), compare("EQ", 2, index=1))
    profile = load(tmp_path, document(group))
    assert run(profile, "close", 1, 2) == ALLOW
    assert run(profile, "close", 1, 3) == REFUSED
    assert run(profile, "close", 2, 2) == REFUSED


def test_conditions_on_one_argument_are_alternatives(tmp_path: Path) -> None:
    group = allow(compare("EQ", 1), compare("EQ", 2), compare("EQ", 9, index=1))
    profile = load(tmp_path, document(group))
    assert [run(profile, "close", first, 0) for first in (1, 2, 3)] == [ALLOW, ALLOW, REFUSED]
    assert run(profile, "close", 3, 9) == ALLOW


@pytest.mark.parametrize(
    ("changes", "action"),
    [
        ({"defaultErrnoRet": 13}, ERRNO | 13),
        ({"defaultAction": "SCMP_ACT_KILL_PROCESS"}, KILL_PROCESS),
        ({"defaultAction": "SCMP_ACT_KILL"}, KILL_THREAD),
    ],
)
def test_the_default_action_is_the_profile_s(
    tmp_path: Path, changes: dict[str, Any], action: int
) -> None:
    group = {"names": ["write"], "action": "SCMP_ACT_ALLOW"}
    profile = load(tmp_path, document(group, **changes))
    assert run(profile, "read") == ALLOW
    assert execute(seccomp.compile(profile, "x86_64"), 0xC000_003E, 1) == ALLOW
    unnamed = load(tmp_path, document({"names": ["getpid"], "action": "SCMP_ACT_ALLOW"}, **changes))
    assert run(unnamed, "write") == action


def test_a_refusal_may_have_its_own_errno(tmp_path: Path) -> None:
    group = {"names": ["close"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22}
    assert run(load(tmp_path, document(group)), "close") == ERRNO | 22


def test_a_refusal_equal_to_the_default_is_taken(tmp_path: Path) -> None:
    group = {"names": ["close"], "action": "SCMP_ACT_ERRNO"}
    assert run(load(tmp_path, document(group)), "close") == REFUSED


@pytest.mark.parametrize(
    ("selection", "applies"),
    [
        ({"includes": {"arches": ["amd64"]}}, True),
        ({"includes": {"arches": ["arm64"]}}, False),
        ({"excludes": {"arches": ["amd64"]}}, False),
        ({"includes": {"caps": ["CAP_SYS_ADMIN"]}}, False),
        ({"excludes": {"caps": ["CAP_SYS_ADMIN"]}}, True),
        ({"includes": {"minKernel": "3.0"}}, True),
        ({"includes": {"minKernel": "99.0"}}, False),
        ({"excludes": {"minKernel": "3.0"}}, False),
        ({"includes": None, "excludes": {}, "args": None, "comment": ""}, True),
    ],
)
def test_a_group_applies_where_it_says(
    tmp_path: Path, selection: dict[str, Any], applies: bool
) -> None:
    group = {**allow(), **selection}
    assert run(load(tmp_path, document(group)), "close") == (ALLOW if applies else REFUSED)


def test_an_allowed_call_nobody_knows_is_left_out_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profile = load(tmp_path, document(allow(name="call_of_the_future")))
    with caplog.at_level(logging.INFO):
        assert run(profile, "read") == ALLOW
    assert "call_of_the_future" in caplog.text


def test_a_refused_call_nobody_knows_cannot_be_promised(tmp_path: Path) -> None:
    group = {"names": ["call_of_the_future"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}
    with pytest.raises(HostUnfit, match=r"call_of_the_future.*cannot be refused"):
        seccomp.compile(load(tmp_path, document(group)), "x86_64")


def test_two_actions_for_one_call_are_refused(tmp_path: Path) -> None:
    # libseccomp would let the unconditional rule swallow the other, and say nothing.
    tiocsti = {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [compare("EQ", 1)]}
    profile = load(tmp_path, document(tiocsti, allow(name="ioctl")))
    with pytest.raises(HostUnfit, match="ioctl: rules of two different actions"):
        seccomp.compile(profile, "x86_64")


def test_a_failure_while_compiling_names_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(name: str) -> int:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "memfd_create", no_memory)
    with pytest.raises(HostUnfit, match=r"default\.json: cannot be compiled: Cannot allocate"):
        seccomp.compile(PROFILE)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda code: [(bpf.RETURN, 0, 0, ALLOW)],
        lambda code: [(*line[:3], 0x5412) if line[3] == 0x5413 else line for line in code],
        lambda code: [line for line in code if line[3] != 0xFFF7_F7FF],
    ],
    ids=["allows everything", "another ioctl", "a mask left out"],
)
def test_a_wrong_program_of_libseccomp_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
    tamper: Callable[[list[bpf.Instruction]], list[bpf.Instruction]],
) -> None:
    right = seccomp._export
    monkeypatch.setattr(
        seccomp, "_export", lambda built: bpf.encode(tamper(bpf.decode(right(built))))
    )
    with pytest.raises(HostUnfit, match="libseccomp compiles"):
        seccomp.compile(PROFILE, "x86_64")


def test_a_program_too_long_for_the_kernel_is_refused(tmp_path: Path) -> None:
    many = [compare("EQ", value << 33 | value) for value in range(2000)]
    with pytest.raises(HostUnfit, match="more than 4096"):
        seccomp.compile(load(tmp_path, document(allow(*many))), "x86_64")


def test_a_machine_without_a_filter_is_refused(tmp_path: Path) -> None:
    profile = load(tmp_path, document())
    with pytest.raises(HostUnfit, match="SCMP_ARCH_AARCH64 is not in it"):
        seccomp.compile(profile, "aarch64")
    with pytest.raises(HostUnfit, match="riscv64"):
        seccomp.compile(profile, "riscv64")


def test_without_libseccomp_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyseccomp", None)
    with pytest.raises(HostUnfit) as raised:
        seccomp.compile(PROFILE, "x86_64")
    assert "libseccomp2" in raised.value.fix


def test_numbers_are_the_machine_s_own() -> None:
    assert seccomp.number("openat", "x86_64") == 257
    assert seccomp.number("openat", "aarch64") == 56
    assert seccomp.number("open", "aarch64") is None
    assert seccomp.number("no_such_call") is None
    assert seccomp.known_calls()[seccomp.number("getpid") or -1] == "getpid"


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    seccomp.compile(PROFILE)
    assert len(os.listdir("/proc/self/fd")) == before
