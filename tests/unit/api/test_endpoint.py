from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from code_executor.api.endpoint import DirectRoute, Endpoint, ExactPaths, error_example
from code_executor.api.errors import TYPES
from code_executor.api.schemas import ErrorObject, HealthObject


async def echo(request: Request, name: str) -> Response:
    return Response(f"{request.method} {name}")


def app_with(endpoint: Endpoint) -> FastAPI:
    app = FastAPI()
    app.router.route_class = DirectRoute
    endpoint.add_to(app)
    return app


ENDPOINT = Endpoint("GET", "/x/{name}", echo, "getX", "An x", "xs", HealthObject, (404,))


def test_the_handler_gets_the_request_and_its_path() -> None:
    with TestClient(app_with(ENDPOINT)) as client:
        assert client.get("/x/a%20b").text == "GET a b"
        assert client.post("/x/a").status_code == 405


def test_a_path_without_parameters_is_looked_up() -> None:
    async def here(request: Request) -> Response:
        return Response(request.scope["route"].path)

    app = app_with(ENDPOINT)
    Endpoint("GET", "/x", here, "here", "Here", "xs").add_to(app)
    exact = ExactPaths(app.router)
    assert set(exact.routes) == {("GET", "/x")}
    with TestClient(exact) as client:
        assert client.get("/x").text == "/x"
        assert client.get("/x/a").text == "GET a"  # the router's
        assert client.post("/x").status_code == 405


def test_the_document_tells_what_it_answers() -> None:
    operation = app_with(ENDPOINT).openapi()["paths"]["/x/{name}"]["get"]
    assert operation["operationId"] == "getX"
    assert {"200", "401", "404", "500"} <= set(operation["responses"])
    assert operation["security"] == [{"bearer": []}]
    assert operation["parameters"][0]["name"] == "name"


def test_every_documented_error_has_an_example() -> None:
    for status in set(TYPES) - {405}:
        ErrorObject.model_validate(error_example(status))
