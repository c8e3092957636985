import re
from typing import Any

import httpx
import pytest

from code_executor.api.schemas import LanguageList, ReadyObject
from code_executor.model import Promise
from code_executor.readiness import Readiness


async def test_languages_say_what_they_are(acme: httpx.AsyncClient) -> None:
    languages = (await acme.get("/v1/languages")).json()
    LanguageList.model_validate(languages)
    by_id = {language["id"]: language for language in languages["data"]}
    assert set(by_id) >= {"python", "node", "ruby", "php", "go"}
    python = by_id["python"]
    assert (python["file_name"], python["available"]) == ("main.py", True)
    assert python["limits"]["default"]["timeout_ms"] == 5000
    assert python["limits"]["maximum"]["timeout_ms"] == 10000


async def test_health_is_only_that_the_process_answers(nobody: httpx.AsyncClient) -> None:
    assert (await nobody.get("/v1/health")).json() == {"status": "ok"}


async def test_ready_shows_the_promises(acme: httpx.AsyncClient) -> None:
    answer = await acme.get("/v1/ready")
    ready = ReadyObject.model_validate(answer.json())
    assert (ready.backend, ready.waived) == ("fake", [])
    assert [promise.id for promise in ready.promises] == ["P1"]


async def test_not_ready_is_503_with_the_reason(
    acme: httpx.AsyncClient, service: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise = Promise("P1", "No network", kept=False, evidence="seen", fix="do", waived=True)

    async def ready() -> Readiness:
        return Readiness(False, "No probe has run.", [promise], "native")

    monkeypatch.setattr(service, "ready", ready)
    answer = await acme.get("/v1/ready")
    assert answer.status_code == 503
    body = answer.json()
    assert body["error"]["code"] == "not_ready"
    assert body["error"]["message"] == "No probe has run."
    assert (body["status"], body["waived"]) == ("not_ready", ["P1"])


@pytest.mark.parametrize("path", ["/models", "/v1/models"])
async def test_there_are_no_models(acme: httpx.AsyncClient, path: str) -> None:
    assert (await acme.get(path)).json() == {"object": "list", "data": []}


async def test_the_docs_load_nothing_from_elsewhere(nobody: httpx.AsyncClient) -> None:
    for path in ("/", "/docs"):
        page = await nobody.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        assert not re.search(r"(src|href)=\"(?!/)", page.text)
        for asset in re.findall(r'(?:src|href)="(/docs/[^"]+)"', page.text):
            assert (await nobody.get(asset)).status_code == 200
    script = (await nobody.get("/docs/docs.js")).text
    assert "innerHTML" not in script


@pytest.fixture
async def spec(nobody: httpx.AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await nobody.get("/openapi.json")).json()
    return document


def operations(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method.upper()} {path}": operation
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
    }


async def test_the_document_names_every_operation(spec: dict[str, Any]) -> None:
    assert spec["openapi"].startswith("3.1")
    ids = [operation["operationId"] for operation in operations(spec).values()]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in ids)
    assert {"createRun", "getRun", "listRuns", "createFile", "getReady"} <= set(ids)


async def test_the_document_has_every_error_and_never_422(spec: dict[str, Any]) -> None:
    for name, operation in operations(spec).items():
        assert "422" not in operation["responses"]
        for status, response in operation["responses"].items():
            if status != "200":
                example = response["content"]["application/json"]["example"]
                assert set(example["error"]) == {"type", "code", "message", "param", "request_id"}
        needs_key = {"bearer": []} in operation["security"]
        assert needs_key is ("401" in operation["responses"]), name
    create = operations(spec)["POST /v1/runs"]["responses"]
    assert set(create) == {"200", "400", "401", "408", "409", "413", "415", "429", "500", "503"}


async def test_the_document_says_that_a_signed_link_needs_no_key(spec: dict[str, Any]) -> None:
    read = operations(spec)["GET /v1/files/{file_id}"]
    assert read["security"] == [{"bearer": []}, {}]
    kinds = set(read["responses"]["200"]["content"])
    assert kinds == {"application/json", "application/octet-stream"}


async def test_the_document_has_bodies_with_examples(spec: dict[str, Any]) -> None:
    create = operations(spec)["POST /v1/runs"]
    content = create["requestBody"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/RunBody"}
    assert content["examples"]["hello"]["value"]["language"] == "python"
    assert spec["components"]["schemas"]["RunBody"]["required"] == ["language", "code"]
    upload = operations(spec)["POST /v1/files"]["requestBody"]["content"]
    assert set(upload) == {"multipart/form-data"}


async def test_the_examples_run(spec: dict[str, Any], acme: httpx.AsyncClient) -> None:
    content = operations(spec)["POST /v1/runs"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        assert (await acme.post("/v1/runs", json=example["value"])).status_code == 200


async def test_every_reference_resolves(spec: dict[str, Any]) -> None:
    references = set(re.findall(r"#/components/schemas/(\w+)", str(spec)))
    assert references <= set(spec["components"]["schemas"])
