"""The list of differences names checks that exist, and gives a reason for each."""

from __future__ import annotations

from code_executor.sandbox.conformance import CHECKS
from code_executor.sandbox.differs import DIFFERS, reasons


def test_every_difference_is_of_a_check_and_has_a_reason() -> None:
    names = {check.name for check in CHECKS}
    for differences in DIFFERS.values():
        assert differences.keys() <= names
        assert all(len(reason) > 20 for reason in differences.values())


def test_native_and_runc_differ_in_nothing() -> None:
    assert reasons("native") == reasons("runc") == {}
