from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from code_executor.api.schemas import FileList, FileObject
from code_executor.model import MIB, ArtifactFile, Outcome, RunStatus
from code_executor.sandbox.fake import FakeBackend


async def upload(
    client: httpx.AsyncClient, name: str = "a.txt", content: bytes = b"hello", kind: str = ""
) -> httpx.Response:
    return await client.post("/v1/files", files={"file": (name, content, kind)})


async def artifact(
    client: httpx.AsyncClient, scripts: dict[str, Outcome], name: str, content: bytes = b"data"
) -> str:
    """The signed link of a file that a run made, as path and query."""
    scripts["make"] = Outcome(
        RunStatus.SUCCEEDED, exit_code=0, artifacts=(ArtifactFile(name, content),)
    )
    run = (await client.post("/v1/runs", json={"language": "python", "code": "make"})).json()
    url: str = run["artifacts"][0]["url"]
    assert url.startswith("https://run.example/v1/files/file_")
    return url.removeprefix("https://run.example")


async def test_a_file_goes_in_and_comes_out(acme: httpx.AsyncClient) -> None:
    answer = await upload(acme, "data.csv", b"a,b\n", "text/csv")
    assert answer.status_code == 200
    file = answer.json()
    FileObject.model_validate(file)
    assert (file["name"], file["filename"]) == ("data.csv", "data.csv")
    assert (file["size"], file["bytes"]) == (4, 4)
    assert (file["content_type"], file["purpose"]) == ("text/csv", "user_data")
    assert (await acme.get(f"/v1/files/{file['id']}")).json() == file
    content = await acme.get(f"/v1/files/{file['id']}/content")
    assert content.content == b"a,b\n"
    assert content.headers["content-length"] == "4"


async def test_an_upload_is_staged_for_a_run(acme: httpx.AsyncClient, backend: FakeBackend) -> None:
    file = (await upload(acme)).json()
    body = {"language": "python", "code": "x", "files": [{"path": "in.txt", "id": file["id"]}]}
    assert (await acme.post("/v1/runs", json=body)).json()["status"] == "succeeded"
    staged = {entry.path: entry.content for entry in backend.plans[-1].files}
    assert staged["inputs/in.txt"] == b"hello"


async def test_files_are_listed_and_deleted_by_their_owner_alone(
    acme: httpx.AsyncClient, beta: httpx.AsyncClient
) -> None:
    file = (await upload(acme)).json()
    page = (await acme.get("/v1/files")).json()
    FileList.model_validate(page)
    assert [entry["id"] for entry in page["data"]] == [file["id"]]
    assert (await beta.get("/v1/files")).json()["data"] == []
    for path in (f"/v1/files/{file['id']}", f"/v1/files/{file['id']}/content"):
        theirs = await beta.get(path, headers={"X-Request-Id": "x"})
        absent = await beta.get(path.replace(file["id"], "file_0"), headers={"X-Request-Id": "x"})
        assert theirs.status_code == 404
        assert theirs.content == absent.content
    assert (await beta.delete(f"/v1/files/{file['id']}")).status_code == 404
    gone = await acme.delete(f"/v1/files/{file['id']}")
    assert gone.json() == {"id": file["id"], "object": "file", "deleted": True}
    assert (await acme.get(f"/v1/files/{file['id']}")).status_code == 404


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Users\\me\\data.csv", "data.csv"),
        ("/abs/olute", "olute"),
        ("ä ö.txt", "ä ö.txt"),
    ],
)
async def test_a_name_is_data(acme: httpx.AsyncClient, name: str, kept: str) -> None:
    assert (await upload(acme, name)).json()["name"] == kept


@pytest.mark.parametrize("name", ["..", "a/", "a" * 256])
async def test_a_name_that_is_none_is_refused(acme: httpx.AsyncClient, name: str) -> None:
    answer = await upload(acme, name)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "file"


async def test_what_is_too_large_is_413(acme: httpx.AsyncClient) -> None:
    assert (await upload(acme, content=b"x" * MIB)).status_code == 200
    over = await upload(acme, content=b"x" * (MIB + 1))
    far_over = await upload(acme, content=b"x" * 2 * MIB)
    for answer in (over, far_over):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "payload_too_large"


@pytest.mark.parametrize(
    ("form", "param"),
    [
        ({"files": {"other": ("a", b"")}}, "other"),
        ({"files": [("file", ("a", b"")), ("file", ("b", b""))]}, None),
        ({"files": {"file": ("a", b"")}, "data": {"purpose": "a b"}}, "purpose"),
        ({"files": {"file": ("a", b"")}, "data": {"purpose": "x" * 2_000}}, None),
        ({"files": {"file": ("a", b"")}, "data": {"extra": "1"}}, "extra"),
        ({"files": {"file": (None, b"text")}}, "file"),
        ({"files": {"purpose": ("a", b"")}}, "file"),
    ],
)
async def test_a_bad_form_is_400(
    acme: httpx.AsyncClient, form: dict[str, object], param: str | None
) -> None:
    answer = await acme.post("/v1/files", **form)  # type: ignore[arg-type]  # parametrized
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 415),
        ("multipart/form-data", 400),
        ("multipart/form-data; boundary=x; charset=idna", 415),
        ("multipart/form-data; boundary=x", 400),
        ("multipart/form-data; boundary=" + "x" * 500, 400),
    ],
)
async def test_a_body_that_is_no_form_is_refused(
    acme: httpx.AsyncClient, kind: str, status: int
) -> None:
    body = b"--x\r\nContent-Disposition: form-data\r\n\r\nabc\r\n--x--\r\n"
    answer = await acme.post("/v1/files", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert "error" in answer.json()


async def test_a_part_s_headers_are_bounded(acme: httpx.AsyncClient) -> None:
    for header in (b"X: " + b"y" * 60_000, b"\r\n".join(b"X-%d: y" % n for n in range(100))):
        body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n'
        body += header + b"\r\n\r\nabc\r\n--x--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        assert (await acme.post("/v1/files", content=body, headers=kind)).status_code == 400


async def test_a_signed_link_needs_no_key(
    acme: httpx.AsyncClient, nobody: httpx.AsyncClient, scripts: dict[str, Outcome]
) -> None:
    link = await artifact(acme, scripts, "plot.png", b"\x89PNG")
    answer = await nobody.get(link)
    assert (answer.status_code, answer.content) == (200, b"\x89PNG")
    without = await nobody.get(urlsplit(link).path)
    assert without.status_code == 401


async def test_every_bad_link_is_the_same_403(
    acme: httpx.AsyncClient, nobody: httpx.AsyncClient, scripts: dict[str, Outcome]
) -> None:
    link = await artifact(acme, scripts, "a.txt")
    other = urlsplit(await artifact(acme, scripts, "b.txt"))
    path, query = urlsplit(link).path, parse_qs(urlsplit(link).query)
    payload, sig = query["payload"][0], query["sig"][0]
    bad = [
        f"{path}?payload={payload}",
        f"{path}?sig={sig}",
        f"{path}?payload=&sig=",
        f"{path}?payload={payload}&sig={sig[:-2]}",
        f"{path}?payload={payload}&sig={sig}&x=1",
        f"{path}?payload={payload}&payload={payload}&sig={sig}",
        f"{path}?payload={payload}&sig={sig}&sig={sig}",
        f"{path}?payload={payload[:-1]}&sig={sig}",
        f"{other.path}?payload={payload}&sig={sig}",
        f"/v1/files/file_absent?payload={payload}&sig={sig}",
    ]
    answers = [await nobody.get(url, headers={"X-Request-Id": "x"}) for url in bad]
    assert [answer.status_code for answer in answers] == [403] * len(bad)
    assert len({answer.content for answer in answers}) == 1


async def test_a_link_is_for_its_path_and_method_alone(
    acme: httpx.AsyncClient, nobody: httpx.AsyncClient, scripts: dict[str, Outcome]
) -> None:
    parts = urlsplit(await artifact(acme, scripts, "a.txt"))
    assert (await nobody.delete(f"{parts.path}?{parts.query}")).status_code == 401
    assert (await nobody.get(f"{parts.path}/content?{parts.query}")).status_code == 401
    assert (await nobody.get(f"/v1/runs?{parts.query}")).status_code == 401


async def test_a_link_to_what_was_deleted_finds_nothing(
    acme: httpx.AsyncClient, nobody: httpx.AsyncClient, scripts: dict[str, Outcome]
) -> None:
    link = await artifact(acme, scripts, "a.txt")
    await acme.delete(urlsplit(link).path)
    assert (await nobody.get(link)).status_code == 404


@pytest.mark.parametrize(
    ("name", "shown", "kind"),
    [
        ("a.png", True, "image/png"),
        ("a.txt", True, "text/plain; charset=utf-8"),
        ("a.pdf", True, "application/pdf"),
        ("a.svg", False, "image/svg+xml"),
        ("a.html", False, "text/html"),
        ("a.json", False, "application/json"),
        ("a.unknown", False, "application/octet-stream"),
    ],
)
async def test_a_download_never_runs_here(
    nobody: httpx.AsyncClient,
    acme: httpx.AsyncClient,
    scripts: dict[str, Outcome],
    name: str,
    shown: bool,
    kind: str,
) -> None:
    headers = (await nobody.get(await artifact(acme, scripts, name))).headers
    assert headers["content-disposition"].startswith("inline" if shown else "attachment")
    assert headers["content-type"] == kind
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"].startswith("sandbox")
    assert headers["cache-control"] == "private, no-store"
    assert headers["referrer-policy"] == "no-referrer"


async def test_a_hostile_name_stays_in_its_header(
    nobody: httpx.AsyncClient, acme: httpx.AsyncClient, scripts: dict[str, Outcome]
) -> None:
    link = await artifact(acme, scripts, 'dir/é";\r\nX-Evil: 1 %41.txt')
    answer = await nobody.get(link)
    assert answer.status_code == 200
    assert "x-evil" not in answer.headers
    disposition = answer.headers["content-disposition"]
    assert disposition.isascii()
    assert "filename*=UTF-8''%C3%A9%22%3B%0D%0AX-Evil%3A%201%20%2541.txt" in disposition
    assert 'filename="' + "_" in disposition


async def test_an_empty_file_downloads(acme: httpx.AsyncClient) -> None:
    file = (await upload(acme, content=b"")).json()
    answer = await acme.get(f"/v1/files/{file['id']}/content")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_bytes_that_are_lost_are_404_and_not_half_an_answer(
    acme: httpx.AsyncClient, tmp_path: Path
) -> None:
    file = (await upload(acme)).json()
    for path in (tmp_path / "objects").rglob("*"):
        if path.is_file():
            path.unlink()
    answer = await acme.get(f"/v1/files/{file['id']}/content")
    assert answer.status_code == 404
