"""Compiled programs used again: what counts as the same, whose they are, how many there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from code_executor.builds import ENTRIES_MAX, Builds, Key
from code_executor.languages import by_name, load, resolve
from code_executor.model import InputFile, Phase, Plan, RunRequest, SourceFile, StagedFile, Step
from code_executor.plan import make_plan

LANGUAGES = by_name(resolve(load(), lambda _path: True))


def plan(code: str = "package main", language: str = "go", **fields: object) -> Plan:
    request = RunRequest(language, code, **fields)  # type: ignore[arg-type]  # the tests' own
    inputs = [file.content or b"" for file in request.files]
    return make_plan(request, LANGUAGES[language], inputs=inputs)


async def key(planned: Plan, tenant: str = "a") -> Key:
    found = await Builds(1).key(planned, tenant)
    assert found is not None
    return found


@pytest.mark.parametrize(
    "other",
    [
        plan("package main "),
        plan(sources=(SourceFile("b.go", b""),)),
        plan(sources=(SourceFile("go.mod", b"module m"),)),
        plan(files=(InputFile("embedded", content=b"1"),)),
        replace(plan(), builds="other"),
        replace(plan(), language="other"),
        replace(plan(), steps=(Step(Phase.COMPILE, ("/bin/true",)), plan().steps[1])),
    ],
)
async def test_another_program_has_another_key(other: Plan) -> None:
    assert await key(other) != await key(plan())


async def test_parts_do_not_run_into_each_other() -> None:
    ways = [(("ab", b"c"),), (("a", b"bc"),), (("a", b"b"), ("c", b"")), (("a", b""), ("b", b"c"))]
    keys = [
        await key(replace(plan(), files=tuple(StagedFile(*file) for file in files)))
        for files in ways
    ]
    assert len(set(keys)) == len(ways)


async def test_what_the_compiler_does_not_see_does_not_count() -> None:
    other = plan(args=("x",), stdin="y", env=(("A", "b"),))
    assert await key(other) == await key(plan())


async def test_large_files_count_as_small_ones_do() -> None:
    one, two = (plan(files=(InputFile("x", content=bytes(2**19) + end),)) for end in (b"1", b"2"))
    assert await key(one) == await key(one) != await key(two)


async def test_nothing_is_kept_where_nothing_is_built_or_there_is_no_room() -> None:
    assert await Builds(1).key(plan("x", "python"), "a") is None
    assert await Builds(0).key(plan(), "a") is None


async def test_a_kept_binary_is_staged_instead_of_compiled() -> None:
    builds = Builds(100)
    planned = plan(args=("x",))
    builds.keep(await key(planned), b"ELF")
    reusing = builds.reuse(await key(planned), planned)
    assert reusing is not None
    assert [step.phase for step in reusing.steps] == [Phase.RUN]
    assert reusing.files == (*planned.files, StagedFile(".bin/main", b"ELF", executable=True))
    assert (reusing.builds, reusing.args) == ("", ("x",))
    assert (planned.flavour, planned.warm) == ("go", True)
    assert (reusing.flavour, reusing.warm) == ("go-built", False)  # nothing waits for sources there


async def test_it_is_its_tenants_alone() -> None:
    builds = Builds(100)
    builds.keep(await key(plan(), "a"), b"ELF")
    assert builds.reuse(await key(plan(), "b"), plan()) is None


async def test_what_was_used_longest_ago_goes_first() -> None:
    builds = Builds(2)
    keys = [Key("a", b"%d" % n) for n in range(3)]
    builds.keep(keys[0], b"0")
    builds.keep(keys[1], b"1")
    builds.reuse(keys[0], plan())
    builds.keep(keys[2], b"2")
    assert [builds.reuse(each, plan()) is not None for each in keys] == [True, False, True]


async def test_who_fills_the_cache_displaces_himself() -> None:
    builds = Builds(10)
    builds.keep(Key("quiet", b"k"), b"x")
    for n in range(30):
        builds.keep(Key("loud", b"%d" % n), b"xxx")
    assert builds.reuse(Key("quiet", b"k"), plan()) is not None
    assert builds.size == 10


async def test_a_binary_that_is_too_large_is_not_kept() -> None:
    builds = Builds(3)
    builds.keep(Key("a", b"k"), b"xx")
    builds.keep(Key("a", b"l"), b"xxxx")
    assert (len(builds), builds.size) == (1, 2)


async def test_the_number_of_entries_is_bounded() -> None:
    builds = Builds(10 * ENTRIES_MAX)
    for n in range(ENTRIES_MAX + 5):
        builds.keep(Key(f"t{n % 7}", b"%d" % n), b"")
    assert len(builds) == ENTRIES_MAX


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 5), st.integers(0, 12)), max_size=60)
)
def test_the_books_are_right(kept: list[tuple[str, int, int]]) -> None:
    builds = Builds(20)
    for tenant, name, size in kept:
        builds.keep(Key(tenant, b"%d" % name), bytes(size))
        found = builds.reuse(Key(tenant, b"%d" % name), plan())
        assert found is not None
        assert len(found.files[-1].content) == size
        assert builds.size <= 20
