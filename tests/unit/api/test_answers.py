"""Who does not read what he asked for fills his own share, and nobody else's."""

import asyncio

import pytest
from starlette.types import Message, Receive, Scope, Send

from code_executor.api.answers import SMALL_BYTES, AnswerGuard
from code_executor.api.middleware import RequestState
from code_executor.errors import QueueFull
from code_executor.model import Principal

LARGE = SMALL_BYTES + 1


class Client:
    """Takes the first body message, and the next only when it reads."""

    def __init__(self) -> None:
        self.reads = asyncio.Event()
        self.got: list[Message] = []

    async def send(self, message: Message) -> None:
        if len(self.got) == 2:
            await self.reads.wait()
        self.got.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.got)


def answering(*pieces: bytes) -> AnswerGuard:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for at, piece in enumerate(pieces, 1):
            more = at < len(pieces)
            await send({"type": "http.response.body", "body": piece, "more_body": more})

    return AnswerGuard(app, max_waiting=2 * LARGE)


async def ask(guard: AnswerGuard, client: Client, tenant: str | None = "acme") -> None:
    state = RequestState("req_1")
    state.principal = None if tenant is None else Principal(tenant, 1.0, 1, key_id="k")

    async def receive() -> Message:
        raise AssertionError("nobody reads the body")

    await guard({"type": "http", "state": {"request": state}}, receive, client.send)


async def begun(guard: AnswerGuard, client: Client, tenant: str = "acme") -> asyncio.Task[None]:
    task = asyncio.create_task(ask(guard, client, tenant))
    while len(client.got) < 2:
        await asyncio.sleep(0)
    return task


async def test_unread_answers_of_a_tenant_are_bounded() -> None:
    guard = answering(b"x" * LARGE)
    clients = [Client() for _ in range(2)]
    tasks = [await begun(guard, client) for client in clients]
    refused = Client()
    with pytest.raises(QueueFull):
        await ask(guard, refused)
    assert refused.got == []
    other = await begun(guard, Client(), "beta")
    for client in clients:
        client.reads.set()
    await asyncio.gather(*tasks)
    assert clients[0].body == b"x" * LARGE
    assert guard.waiting["acme"] == 0
    again = Client()
    again.reads.set()
    await ask(guard, again)
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert guard.waiting["beta"] == 0


async def test_one_answer_is_let_through_however_large() -> None:
    client = Client()
    client.reads.set()
    await ask(answering(b"x" * 5 * LARGE), client)
    assert len(client.body) == 5 * LARGE


@pytest.mark.parametrize("pieces", [[b"small"], [b"x" * LARGE, b"y" * LARGE, b""]])
async def test_small_answers_and_streams_pass_as_they_are(pieces: list[bytes]) -> None:
    guard, client = answering(*pieces), Client()
    client.reads.set()
    guard.waiting["acme"] = 2 * LARGE
    await ask(guard, client)
    assert [message.get("body") for message in client.got[1:]] == pieces


async def test_nobody_s_answers_are_not_counted() -> None:
    client = Client()
    client.reads.set()
    await ask(answering(b"x" * LARGE), client, tenant=None)
    assert client.body == b"x" * LARGE
