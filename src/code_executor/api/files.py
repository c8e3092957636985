"""The endpoints under ``/v1/files``: uploads in, bytes out.

A file's name is data: it is cut to its last component, kept, and given back; no path is ever
made of it. A download never runs in the service's origin: whatever its type, the browser is
told not to guess it, not to run it, and to save rather than show all but a few plain types.
"""

from __future__ import annotations

import mimetypes
import re
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from code_executor.api.config import EdgeConfig
from code_executor.api.endpoint import Endpoint, query_parameter
from code_executor.api.errors import json_answer
from code_executor.api.links import Links
from code_executor.api.middleware import is_signed, principal_of
from code_executor.api.query import MAX_PAGE, after_id, page_size, read_query
from code_executor.api.schemas import DeletedObject, FileList, FileObject
from code_executor.api.service_port import ServicePort
from code_executor.api.views import deleted_view, file_view, list_view
from code_executor.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from code_executor.model import StoredFile

DEFAULT_PURPOSE = "user_data"
MAX_FIELD_BYTES = 1_024
FORM_OVERHEAD_BYTES = 64 * 1024
"""What a multipart body may be larger than its file."""

_FIELDS = frozenset({"file", "purpose"})
_LIST_PARAMETERS = frozenset({"limit", "after", "purpose", "order"})
_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}")
_PURPOSE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_UNKNOWN_TYPE = "application/octet-stream"
_MAX_NAME_BYTES = 255
_DOWNLOAD_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'",
    "Cache-Control": "private, no-store",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "cross-origin",
}


class Files:
    """Upload, read, list, download and delete files."""

    def __init__(self, service: ServicePort, config: EdgeConfig, links: Links) -> None:
        self._service = service
        self._max_bytes = config.max_file_bytes
        self._links = links

    async def upload(self, request: Request) -> Response:
        """Keep a file until it is deleted."""
        _require_multipart(request)
        async with request.form(max_files=1, max_fields=4, max_part_size=MAX_FIELD_BYTES) as form:
            upload, purpose = _read_form(form)
            content = await upload.read(self._max_bytes + 1)
            if len(content) > self._max_bytes:
                raise PayloadTooLarge(
                    f"The file is too large; the maximum is {self._max_bytes} bytes.", param="file"
                )
            name = clean_name(upload.filename or "")
            file = await self._service.upload(
                principal_of(request.scope),
                name=name,
                content=content,
                content_type=clean_type(upload.content_type, name),
                purpose=purpose,
            )
        return json_answer(file_view(file))

    async def read(self, request: Request, file_id: str) -> Response:
        """A file's metadata; or, with a signed link, its bytes."""
        if is_signed(request.scope):
            tenant = self._links.check(file_id, request.scope["query_string"])
            return await self._download(await self._service.signed_file(file_id, tenant))
        read_query(request.query_params, frozenset())
        return json_answer(
            file_view(await self._service.get_file(principal_of(request.scope), file_id))
        )

    async def content(self, request: Request, file_id: str) -> Response:
        """A file's bytes."""
        read_query(request.query_params, frozenset())
        file = await self._service.get_file(principal_of(request.scope), file_id)
        return await self._download(file)

    async def browse(self, request: Request) -> Response:
        """Own files, newest first."""
        query = read_query(request.query_params, _LIST_PARAMETERS)
        if query.get("order", "desc") != "desc":
            raise InvalidRequest("order can only be desc: newest first.", param="order")
        files, has_more = await self._service.list_files(
            principal_of(request.scope),
            limit=page_size(query),
            after=after_id(query),
            purpose=query.get("purpose"),
        )
        return json_answer(list_view([file_view(file) for file in files], has_more=has_more))

    async def delete(self, request: Request, file_id: str) -> Response:
        """Delete a file."""
        await self._service.delete_file(principal_of(request.scope), file_id)
        return json_answer(deleted_view("file", file_id))

    async def _download(self, file: StoredFile) -> Response:
        """The bytes; the first piece is fetched first, so that a missing object is still a 404."""
        pieces = self._service.content(file)
        first = await anext(pieces, b"")
        headers = {**_DOWNLOAD_HEADERS, "Content-Length": str(file.size)}
        headers["Content-Disposition"] = disposition(file.name, file.content_type)
        headers["Content-Type"] = _sent_type(file.content_type)
        return StreamingResponse(_chain(first, pieces), headers=headers)

    def endpoints(self) -> list[Endpoint]:
        """The list of this module's endpoints."""
        upload = {"requestBody": _request_body()}
        page = {"parameters": _PAGE_PARAMETERS}
        one = "/v1/files/{file_id}"
        # fmt: off
        return [
            Endpoint("POST", "/v1/files", self.upload, "createFile", "Upload a file", "files",
                     FileObject, (400, 408, 413, 415, 429, 503), extra=upload),
            Endpoint("GET", "/v1/files", self.browse, "listFiles", "List own files", "files",
                     FileList, (400,), extra=page),
            Endpoint("GET", one, self.read, "getFile",
                     "Read a file's metadata, or its bytes through a signed link", "files",
                     FileObject, (400, 403, 404), extra=_SIGNED),
            Endpoint("GET", one + "/content", self.content, "getFileContent",
                     "Download a file", "files", None, (404,), extra=_BYTES),
            Endpoint("DELETE", one, self.delete, "deleteFile", "Delete a file", "files",
                     DeletedObject, (404,)),
        ]
        # fmt: on


def clean_name(name: str) -> str:
    """A client's file name as data: its last component.

    Raises:
        InvalidRequest: nothing is left, control characters, or over 255 bytes.
    """
    last = re.split(r"[/\\]", name)[-1]
    if last in ("", ".", "..") or not last.isprintable():
        raise InvalidRequest("The file needs a printable name.", param="file")
    if len(last.encode()) > _MAX_NAME_BYTES:
        raise InvalidRequest(f"The file's name is over {_MAX_NAME_BYTES} bytes.", param="file")
    return last


def clean_type(declared: str | None, name: str) -> str:
    """The type the client declared if it is one, else what the name suggests; no parameters."""
    kind = (declared or "").partition(";")[0].strip().lower()
    if _TYPE.fullmatch(kind) and kind != _UNKNOWN_TYPE:
        return kind
    return mimetypes.guess_type(name, strict=False)[0] or _UNKNOWN_TYPE


def disposition(name: str, content_type: str) -> str:
    """``Content-Disposition`` as RFC 6266 has it: shown for plain types, saved otherwise."""
    last = name.rsplit("/", 1)[-1]
    plain = "".join(char if char.isascii() and char.isprintable() else "_" for char in last)
    plain = re.sub(r'["\\%]', "_", plain)
    encoded = quote(last.encode("utf-8", "replace"), safe="")
    kind = "inline" if _may_be_shown(content_type) else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def _may_be_shown(content_type: str) -> bool:
    if content_type in ("text/plain", "application/pdf"):
        return True
    return content_type.startswith("image/") and "svg" not in content_type


def _sent_type(content_type: str) -> str:
    if not _TYPE.fullmatch(content_type):
        return _UNKNOWN_TYPE
    return f"{content_type}; charset=utf-8" if content_type == "text/plain" else content_type


def _require_multipart(request: Request) -> None:
    kind, _, parameters = request.headers.get("content-type", "").partition(";")
    if kind.strip().lower() != "multipart/form-data":
        raise UnsupportedMedia("The body must be multipart/form-data.")
    if "charset" in parameters.lower():
        raise UnsupportedMedia("multipart/form-data takes no charset; field names are UTF-8.")


def _read_form(form: FormData) -> tuple[UploadFile, str]:
    """The file and its purpose; every other field, and every repetition, is refused."""
    for name, _ in form.multi_items():
        if name not in _FIELDS:
            shown = name[:64]
            raise InvalidRequest(
                f"{shown} is not a known form field; known here: file, purpose.", param=shown
            )
        if len(form.getlist(name)) > 1:
            raise InvalidRequest(f"{name} is there twice.", param=name)
    upload, purpose = form.get("file"), form.get("purpose", DEFAULT_PURPOSE)
    if not isinstance(upload, UploadFile):
        raise InvalidRequest("file is required, and must be a file.", param="file")
    if not isinstance(purpose, str) or not _PURPOSE.fullmatch(purpose):
        raise InvalidRequest(
            "purpose must be 1-64 letters, digits, '.', '_' or '-'.", param="purpose"
        )
    return upload, purpose


async def _chain(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _request_body() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/UploadBody"}
    return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}


_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BYTES = {"responses": {"200": {"description": "The bytes.", "content": _BINARY}}}
_SIGNED = {
    "parameters": [
        query_parameter("payload", "Of a signed link.", {"type": "string"}),
        query_parameter("sig", "Of a signed link.", {"type": "string"}),
    ],
    "security": [{"bearer": []}, {}],  # a signed link needs no key
    "responses": {
        "200": {"description": "The metadata; of a signed link, the bytes.", "content": _BINARY}
    },
}
_PAGE_PARAMETERS = [
    query_parameter(
        "limit", "How many.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": 20}
    ),
    query_parameter("after", "The last id of the page before.", {"type": "string"}),
    query_parameter("purpose", "Only these.", {"type": "string"}),
    query_parameter("order", "Newest first.", {"type": "string", "enum": ["desc"]}),
]
