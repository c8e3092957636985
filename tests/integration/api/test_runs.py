import asyncio
import json
from datetime import datetime

import httpx
import pytest

from code_executor.api.schemas import RunList, RunObject
from code_executor.errors import SandboxUnavailable
from code_executor.model import (
    ArtifactFile,
    LimitHit,
    Outcome,
    Output,
    RunStatus,
    Skipped,
    Usage,
)
from code_executor.sandbox.fake import FakeBackend, said

HELLO = {"language": "python", "code": "print(1 + 1)"}


async def test_a_program_runs(acme: httpx.AsyncClient, scripts: dict[str, Outcome]) -> None:
    scripts["print(1 + 1)"] = said("2\n")
    answer = await acme.post("/v1/runs", json={**HELLO, "metadata": {"who": "me"}})
    assert answer.status_code == 200
    run = answer.json()
    RunObject.model_validate(run)
    assert run["id"].startswith("run_")
    assert (run["status"], run["exit_code"], run["stdout"]) == ("succeeded", 0, "2\n")
    assert (run["phase"], run["signal"], run["limit_hit"]) == ("run", None, None)
    assert run["metadata"] == {"who": "me"}
    assert run["limits"]["timeout_ms"] == 5000
    for name in ("created_at", "started_at", "finished_at"):
        assert run[name].endswith("Z")
        assert datetime.fromisoformat(run[name])


async def test_the_whole_outcome_is_told(
    acme: httpx.AsyncClient, scripts: dict[str, Outcome]
) -> None:
    scripts["boom"] = Outcome(
        RunStatus.TIMEOUT,
        signal="SIGKILL",
        limit_hit=LimitHit.CPU,
        reason=None,
        stdout=Output(b"caf\xc3\xa9 \xff", 6, truncated=True),
        usage=Usage(wall_ms=5, cpu_ms=6, max_rss_mb=7, output_bytes=6),
        artifacts=(ArtifactFile("dir/plot.png", b"png"),),
        skipped=(Skipped("link", "not a regular file"),),
    )
    run = (await acme.post("/v1/runs", json={"language": "python", "code": "boom"})).json()
    assert (run["status"], run["signal"], run["limit_hit"]) == ("timeout", "SIGKILL", "cpu_ms")
    assert run["stdout"].startswith("café ")
    assert run["stdout_truncated"] is True
    assert run["usage"]["cpu_ms"] == 6
    (artifact,) = run["artifacts"]
    assert (artifact["name"], artifact["size"]) == ("dir/plot.png", 3)
    assert artifact["content_type"] == "image/png"
    assert run["artifacts_skipped"] == [
        {"name": "link", "reason": "not a regular file", "size": None}
    ]


async def test_a_run_can_be_read_again_by_its_owner_alone(
    acme: httpx.AsyncClient, beta: httpx.AsyncClient
) -> None:
    run = (await acme.post("/v1/runs", json=HELLO)).json()
    assert (await acme.get(f"/v1/runs/{run['id']}")).json() == run
    theirs = await beta.get(f"/v1/runs/{run['id']}", headers={"X-Request-Id": "x"})
    absent = await beta.get("/v1/runs/run_000000000000000000000000", headers={"X-Request-Id": "x"})
    assert theirs.status_code == absent.status_code == 404
    assert theirs.content == absent.content


async def test_an_alias_of_a_language_is_its_id(acme: httpx.AsyncClient) -> None:
    run = (await acme.post("/v1/runs", json={**HELLO, "language": "py"})).json()
    assert run["language"] == "python"


async def test_runs_are_listed_newest_first_page_by_page(acme: httpx.AsyncClient) -> None:
    ids = [(await acme.post("/v1/runs", json=HELLO)).json()["id"] for _ in range(3)]
    first = (await acme.get("/v1/runs", params={"limit": 2})).json()
    RunList.model_validate(first)
    assert [run["id"] for run in first["data"]] == ids[:0:-1]
    assert (first["has_more"], first["first_id"], first["last_id"]) == (True, ids[2], ids[1])
    second = (await acme.get("/v1/runs", params={"after": first["last_id"]})).json()
    assert [run["id"] for run in second["data"]] == ids[:1]
    assert second["has_more"] is False
    none = (await acme.get("/v1/runs", params={"status": "failed"})).json()
    assert (none["data"], none["first_id"]) == ([], None)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("status=done", "status"),
        ("after=../x", "after"),
        ("sort=asc", "sort"),
    ],
)
async def test_a_bad_query_is_refused(acme: httpx.AsyncClient, query: str, param: str) -> None:
    answer = await acme.get(f"/v1/runs?{query}")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_cancelling_a_finished_run_changes_nothing(acme: httpx.AsyncClient) -> None:
    run = (await acme.post("/v1/runs", json=HELLO)).json()
    for _ in range(2):
        assert (await acme.post(f"/v1/runs/{run['id']}/cancel")).json() == run
    assert (await acme.post("/v1/runs/run_x/cancel")).status_code == 404


async def test_a_run_can_be_forgotten(acme: httpx.AsyncClient, beta: httpx.AsyncClient) -> None:
    run_id = (await acme.post("/v1/runs", json=HELLO)).json()["id"]
    assert (await beta.delete(f"/v1/runs/{run_id}")).status_code == 404
    gone = await acme.delete(f"/v1/runs/{run_id}")
    assert gone.json() == {"id": run_id, "object": "run", "deleted": True}
    assert (await acme.delete(f"/v1/runs/{run_id}")).status_code == 404


async def test_a_limit_too_high_is_the_contract_s_example(acme: httpx.AsyncClient) -> None:
    body = {**HELLO, "limits": {"timeout_ms": 60_000}}
    answer = await acme.post("/v1/runs", json=body, headers={"X-Request-Id": "mine-1"})
    assert answer.status_code == 400
    assert answer.json() == {
        "error": {
            "type": "invalid_request_error",
            "code": "limit_too_high",
            "message": "limits.timeout_ms is 60000; the maximum is 10000.",
            "param": "limits.timeout_ms",
            "request_id": "mine-1",
        }
    }


async def test_an_uploaded_file_that_is_not_there_is_named(acme: httpx.AsyncClient) -> None:
    files = [{"path": "a", "content": ""}, {"path": "b", "id": "file_absent"}]
    answer = await acme.post("/v1/runs", json={**HELLO, "files": files})
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["param"].startswith("files[1]")


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "text/plain",
        "application/json; charset=utf-16",
        "application/jsonx",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ],
)
async def test_only_json_is_taken(acme: httpx.AsyncClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    answer = await acme.post("/v1/runs", content=json.dumps(HELLO), headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_media_type"


@pytest.mark.parametrize("kind", ["application/json", 'Application/JSON; charset="UTF-8"'])
async def test_json_has_no_case(acme: httpx.AsyncClient, kind: str) -> None:
    answer = await acme.post("/v1/runs", content=json.dumps(HELLO), headers={"Content-Type": kind})
    assert answer.status_code == 200


async def test_the_same_key_and_body_is_the_same_run(
    acme: httpx.AsyncClient, beta: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": "k-1"}
    posts = [acme.post("/v1/runs", json=HELLO, headers=headers) for _ in range(3)]
    answers = await asyncio.gather(*posts)
    assert len({answer.json()["id"] for answer in answers}) == 1
    other_tenant = await beta.post("/v1/runs", json=HELLO, headers=headers)
    assert other_tenant.json()["id"] != answers[0].json()["id"]
    other_body = await acme.post("/v1/runs", json={**HELLO, "args": ["x"]}, headers=headers)
    assert other_body.status_code == 409
    assert other_body.json()["error"]["type"] == "conflict_error"


@pytest.mark.parametrize("key", ["", " ", "é", "a" * 256])
async def test_a_bad_idempotency_key_is_refused(acme: httpx.AsyncClient, key: str) -> None:
    headers = {b"Idempotency-Key": key.encode()}
    answer = await acme.post("/v1/runs", json=HELLO, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "Idempotency-Key"


async def test_a_broken_machinery_is_503_and_not_the_program_s_fault(
    acme: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.run_failures.append(SandboxUnavailable("The sandbox went away.", step="run"))
    answer = await acme.post("/v1/runs", json=HELLO)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "sandbox_unavailable"


async def test_a_full_queue_is_503_with_a_time_to_return(
    acme: httpx.AsyncClient, backend: FakeBackend
) -> None:
    backend.run_s = 0.2
    posts = [acme.post("/v1/runs", json=HELLO) for _ in range(12)]
    answers = await asyncio.gather(*posts)
    full = [answer for answer in answers if answer.status_code == 503]
    assert 200 in {answer.status_code for answer in answers}
    assert full
    assert all(answer.json()["error"]["code"] == "queue_full" for answer in full)
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in full)
