"""What an exception says of itself."""

from __future__ import annotations

from code_executor.errors import SandboxUnavailable, words


def test_an_exception_without_words_is_named() -> None:
    assert words(TimeoutError()) == "TimeoutError"
    assert words(OSError("no such thing")) == "no such thing"
    assert words(SandboxUnavailable("refused", step="exec")).startswith("refused")
