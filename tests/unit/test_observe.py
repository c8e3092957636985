import io
import json
import logging
from datetime import UTC, datetime

import pytest
import structlog

from code_executor.model import DEFAULT_LIMITS, Run, RunStatus, StoredFile, Usage
from code_executor.observe import MAX_VALUE_CHARS, Metrics, configure_logging, get_logger


@pytest.fixture
def stream() -> io.StringIO:
    out = io.StringIO()
    configure_logging("info", out)
    return out


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_one_json_object_a_line(stream: io.StringIO) -> None:
    get_logger("worker").info("started", count=2)
    (line,) = lines(stream)
    assert (line["event"], line["component"], line["count"]) == ("started", "worker", 2)
    assert line["level"] == "info"
    assert str(line["time"]).endswith("Z")


def test_a_client_cannot_forge_a_line(stream: io.StringIO) -> None:
    get_logger("x").info("e", path='\n{"event":"forged"}\r\x1b[31m\u2028\x7f')
    assert len(stream.getvalue().splitlines()) == 1
    assert stream.getvalue().isascii()
    assert not any(ord(char) < 32 or ord(char) == 127 for char in stream.getvalue().rstrip("\n"))


def test_a_logger_follows_a_new_configuration(stream: io.StringIO) -> None:
    log = get_logger("x")
    log.info("first")
    later = io.StringIO()
    configure_logging("warning", later)
    log.info("too quiet")
    log.warning("second")
    assert [line["event"] for line in lines(stream)] == ["first"]
    assert [line["event"] for line in lines(later)] == ["second"]


def test_a_lone_surrogate_is_escaped(stream: io.StringIO) -> None:
    get_logger("x").info("e", path="\udcff")
    (line,) = lines(stream)
    assert line["path"] == "\udcff"


def test_fields_that_could_hold_secrets_are_dropped(stream: io.StringIO) -> None:
    get_logger("x").info("e", authorization="Bearer s3cret", code="s3cret", stdout="s3cret")
    assert "s3cret" not in stream.getvalue()


def test_long_values_are_cut(stream: io.StringIO) -> None:
    get_logger("x").info("e", text="a" * 10**6, things=["b" * 10**6])
    assert len(stream.getvalue()) < 3 * MAX_VALUE_CHARS


def test_libraries_log_the_same_way(stream: io.StringIO) -> None:
    logging.getLogger("some.library").warning("odd\n%s", "thing")
    logging.getLogger("some.library").debug("too quiet")
    (line,) = lines(stream)
    assert (line["event"], line["component"]) == ("odd\nthing", "some.library")
    assert line["level"] == "warning"


def test_tracebacks_are_one_line_without_locals(stream: io.StringIO) -> None:
    def fail() -> None:
        local_secret = "s3cret-in-a-local"
        raise ValueError("told " + str(len(local_secret)))

    try:
        fail()
    except ValueError:
        get_logger("x").exception("failed")
        logging.getLogger("y").exception("failed too")
    assert len(lines(stream)) == 2
    assert all("ValueError: told 17" in str(line["exception"]) for line in lines(stream))
    assert '"s3cret-in-a-local"' not in stream.getvalue().replace("local_secret = ", "")


def test_context_rides_along(stream: io.StringIO) -> None:
    with structlog.contextvars.bound_contextvars(request_id="req_1"):
        get_logger("x").info("in")
    get_logger("x").info("out")
    assert [line.get("request_id") for line in lines(stream)] == ["req_1", None]


def test_the_level_is_honoured(stream: io.StringIO) -> None:
    configure_logging("WARNING", stream)
    get_logger("x").info("quiet")
    get_logger("x").warning("loud")
    assert [line["event"] for line in lines(stream)] == ["loud"]


def finished_run() -> Run:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    file = StoredFile("file_1", "t", "a", 100, "0" * 64, "text/plain", "artifact", now)
    usage = Usage(wall_ms=1_500, cpu_ms=20, queue_ms=3, prepare_ms=1, output_bytes=7)
    return Run(
        "run_1", "t", "python", RunStatus.FAILED, "0" * 64, DEFAULT_LIMITS, now,
        usage=usage, artifacts=(file,),
    )  # fmt: skip


def test_a_finished_run_is_counted() -> None:
    metrics = Metrics()
    metrics.run_finished(finished_run())
    text = metrics.text().decode()
    assert 'code_executor_runs_total{language="python",status="failed"} 1.0' in text
    assert 'code_executor_run_seconds_sum{language="python",part="wall"} 1.5' in text
    assert "code_executor_artifact_bytes_sum 100.0" in text
    assert "code_executor_output_bytes_sum 7.0" in text


def test_two_services_do_not_share_numbers() -> None:
    one, other = Metrics(), Metrics()
    one.pool_level({"python": 3})
    one.request_finished("GET", "/v1/runs", 200, 0.01)
    assert 'flavour="python"} 3.0' in one.text().decode()
    assert 'flavour="python"' not in other.text().decode()
    assert 'route="/v1/runs"' not in other.text().decode()
