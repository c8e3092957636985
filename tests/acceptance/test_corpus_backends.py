"""The corpus through the other backends: byte for byte as the bare interpreters.

Each takes a part of it, spread over all families and the same in every run; ``CORPUS=whole`` takes
all of it. Docker is compared with the interpreters of its images, the others with the host's. The
sandboxes come from a pool, which prepares one while the program before runs.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Any

import pytest
import pytest_asyncio
from tests.acceptance.cases import LANGUAGES, cases, plan_of
from tests.acceptance.comparing import References, difference, end_of, has_module
from tests.acceptance.corpus import Case
from tests.acceptance.differing import BACKENDS

from code_executor import languages
from code_executor.model import Outcome, Plan
from code_executor.pool import Pool
from code_executor.ports import Backend
from code_executor.shelf import Size

pytestmark = [pytest.mark.sandbox, pytest.mark.asyncio(loop_scope="session")]
EVERY = 1 if os.environ.get("CORPUS") == "whole" else 24
"""One in so many of each family."""
ALWAYS = {"node/process/package-json-module-type"}
"""What depends on an interpreter's version: the images' may be others than the host's."""


def _chosen(backend: str) -> Iterator[Any]:
    """The cases of a backend as parameters; its known differences are always among them."""
    known = BACKENDS[backend]
    for language in LANGUAGES:
        for _, family in groupby(cases(language), lambda case: case.id.partition("/")[0]):
            for number, case in enumerate(family):
                name = f"{language}/{case.id}"
                reason = known.get(name)
                marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
                if reason or name in ALWAYS or number % EVERY == 0:
                    yield pytest.param(case, id=name, marks=marks)


@asynccontextmanager
async def pooled(backend: Backend) -> AsyncIterator[Pool]:
    """A pool that has learnt, after a language's first program, to keep a sandbox ready."""
    flavours = {flavour.name for each in languages.load() for flavour in each.flavours}
    pool = Pool(backend, {name: Size(0, 1) for name in flavours})
    pool.start()
    yield pool
    await pool.close()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def runc_pool(runc: Backend) -> AsyncIterator[Pool]:
    async with pooled(runc) as pool:
        yield pool


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def gvisor_pool(gvisor: Backend) -> AsyncIterator[Pool]:
    async with pooled(gvisor) as pool:
        yield pool


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def docker_pool(docker: Backend) -> AsyncIterator[Pool]:
    async with pooled(docker) as pool:
        yield pool


@pytest.mark.parametrize("case", [*_chosen("runc")])
async def test_runc(runc_pool: Pool, case: Case, references: References) -> None:
    await same_as_the_interpreter(runc_pool, case, references)


@pytest.mark.parametrize("case", [*_chosen("gvisor")])
async def test_gvisor(gvisor_pool: Pool, case: Case, references: References) -> None:
    await same_as_the_interpreter(gvisor_pool, case, references)


@pytest.mark.docker
@pytest.mark.parametrize("case", [*_chosen("docker")])
async def test_docker(docker_pool: Pool, case: Case, image_references: References) -> None:
    await same_as_the_interpreter(docker_pool, case, image_references)


async def same_as_the_interpreter(pool: Pool, case: Case, references: References) -> None:
    if case.needs and not has_module(case.needs):
        pytest.skip(f"{case.needs} is not installed in the runtime")
    bare, ours = await asyncio.gather(
        asyncio.to_thread(references.of, case), carry_out(pool, plan_of(case))
    )
    found = difference(bare, end_of(ours))
    assert not found, f"{case.language}/{case.id} ({ours.status}):\n{found}"


async def carry_out(pool: Pool, plan: Plan) -> Outcome:
    """Run ``plan`` in the pool's next sandbox."""
    sandbox = await pool.take(plan.flavour)
    try:
        return await sandbox.run(plan)
    finally:
        pool.retire(sandbox)


@pytest.mark.parametrize("backend", [*BACKENDS])
async def test_every_difference_is_a_case(backend: str) -> None:
    assert set(BACKENDS[backend]) <= {
        f"{name}/{each.id}" for name in LANGUAGES for each in cases(name)
    }
