"""Reading a profile: what is understood, and what is refused with the place and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from code_executor.errors import HostUnfit
from code_executor.sandbox.seccomp_profile import (
    ALLOW,
    ARCHITECTURES,
    MAX_PROFILE_BYTES,
    Condition,
    Profile,
    Rule,
    default_path,
    kernel_version,
)
from code_executor.sandbox.seccomp_profile import (
    load as load_profile,
)

TOP = 1 << 63


def document(*groups: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A small profile that allows ``read`` and what ``groups`` say."""
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": []}],
        "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}, *groups],
        **changes,
    }


def allow(*args: dict[str, Any], name: str = "close", **more: Any) -> dict[str, Any]:
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": list(args), **more}


def compare(op: str, value: int, two: int = 0, index: int = 0) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{op}"}


def load(tmp_path: Path, content: dict[str, Any] | str | bytes) -> Profile:
    path = tmp_path / "profile.json"
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_profile(path)


@pytest.mark.parametrize(
    ("op", "below", "same", "above"),
    [
        ("NE", True, False, True),
        ("LT", True, False, False),
        ("LE", True, True, False),
        ("EQ", False, True, False),
        ("GE", False, True, True),
        ("GT", False, False, True),
    ],
)
def test_an_operator_compares_unsigned(op: str, below: bool, same: bool, above: bool) -> None:
    condition = Condition(2, op, TOP)
    assert [condition.holds([0, 0, TOP + step]) for step in (-1, 0, 1)] == [below, same, above]


def test_a_masked_comparison_sees_only_the_mask() -> None:
    condition = Condition(0, "MASKED_EQ", 0xFFFF_FFFF, 0x5412)
    assert [condition.holds([word]) for word in (0x5412, 1 << 32 | 0x5412, 0x5413)] == [
        True,
        True,
        False,
    ]
    assert (condition.target, Condition(0, "EQ", 7).target) == (0x5412, 7)


def test_conditions_on_different_arguments_must_all_hold(tmp_path: Path) -> None:
    profile = load(tmp_path, document(allow(compare("EQ", 1), compare("EQ", 2, index=1))))
    rule = profile.rules[1]
    assert [rule.matches(args) for args in ([1, 2], [1, 3], [2, 2])] == [True, False, False]


def test_conditions_on_one_argument_are_alternatives(tmp_path: Path) -> None:
    group = allow(compare("EQ", 1), compare("EQ", 2), compare("EQ", 9, index=1))
    rule = load(tmp_path, document(group)).rules[1]
    assert [rule.matches(args) for args in ([1, 0], [2, 0], [3, 0], [3, 9])] == [
        True,
        True,
        False,
        True,
    ]


def test_a_rule_without_conditions_matches_every_call(tmp_path: Path) -> None:
    assert load(tmp_path, document()).rules[0].matches([TOP] * 6)


def test_a_kernel_version_is_compared_as_numbers() -> None:
    rule = Rule(("read",), ALLOW, min_kernel=(4, 8))
    arch = ARCHITECTURES[0]
    assert [rule.applies(arch, kernel) for kernel in ((4, 7), (4, 8), (4, 10), (10, 0))] == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("release", "version"),
    [("6.1.0-18-amd64", (6, 1)), ("5.15.153.1-microsoft", (5, 15)), ("strange", (0, 0))],
)
def test_a_kernel_release_is_read(release: str, version: tuple[int, int]) -> None:
    assert kernel_version(release) == version


def test_the_shipped_profile_is_found_and_reads() -> None:
    profile = load_profile(default_path())
    assert profile.architectures == tuple(arch.token for arch in ARCHITECTURES)
    assert any("execve" in rule.names for rule in profile.rules)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "the document"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "defaultAction": "SCMP_ACT_ALLOW"}', "twice"),
        (document(defaultAction="SCMP_ACT_ALLOW"), "defaultAction"),
        (document(defaultAction="SCMP_ACT_LOG"), "defaultAction"),
        (document(defaultErrnoRet=0), "defaultErrnoRet"),
        (document(archMap=[]), "archMap"),
        (
            document(
                archMap=[
                    {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}
                ]
            ),
            "archMap.0.subArchitectures",
        ),
        (document(listenerPath="/run/agent.sock"), "listenerPath"),
        (document(allow(name="Read")), "syscalls.1.names.0"),
        (document({"names": [], "action": "SCMP_ACT_ALLOW"}), "syscalls.1.names"),
        (document({"name": "read", "action": "SCMP_ACT_ALLOW"}), "syscalls.1"),
        (document({"names": ["read"], "action": "SCMP_ACT_TRACE"}), "syscalls.1.action"),
        (document({"names": ["read"], "action": "SCMP_ACT_NOTIFY"}), "syscalls.1.action"),
        (document(allow(compare("ALMOST", 1))), "syscalls.1.args.0.op"),
        (document(allow(compare("EQ", 1, index=6))), "syscalls.1.args.0.index"),
        (document(allow(compare("MASKED_EQ", 1, 2))), "syscalls.1.args.0: "),
        (document(allow(compare("EQ", -1))), "syscalls.1.args.0.value"),
        (document(allow(compare("EQ", 1 << 64))), "syscalls.1.args.0.value"),
        (document(allow(includes={"minKernel": "new"})), "syscalls.1.includes.minKernel"),
        (document(allow(includes={"selinux": True})), "syscalls.1.includes.selinux"),
        ("[" + " " * MAX_PROFILE_BYTES, "is larger than"),
    ],
)
def test_a_bad_profile_is_refused_with_the_place(
    tmp_path: Path, content: dict[str, Any] | str | bytes, message: str
) -> None:
    with pytest.raises(HostUnfit) as raised:
        load(tmp_path, content)
    assert message in raised.value.message
    assert "profile.json" in raised.value.message
    assert "SECCOMP_PROFILE" in raised.value.fix


def test_a_profile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match="cannot be read"):
        load_profile(tmp_path / "absent.json")
