"""``make bench``: a tiny go gives whole results; its load generator measures what it says."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.__main__ import main
from benchmarks.clients import Address, BadAnswer, closed_loop, open_loop, request_bytes
from benchmarks.programs import PROGRAMS
from benchmarks.report import markdown
from benchmarks.results import Latency, Machine, Results, SoakStep
from benchmarks.stats import paired_ratio, percentile
from benchmarks.targets import judge
from benchmarks.throughput import CLIENTS

REQUEST = request_bytes("GET", "/")
GOOD = b'{"id":"run_1","status":"succeeded"}'


@pytest.mark.sandbox
def test_a_quick_go_measures_everything(tmp_path: Path) -> None:
    assert main(["--quick", "--output", str(tmp_path)]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
    measured = {(row["program"], row["subject"]) for row in found["latency"]}
    assert {(p.name, s) for p in PROGRAMS for s in ("service", "bare")} <= measured
    assert all(0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] for row in found["latency"])
    served = {row["clients"] for row in found["throughput"] if row["subject"] == "service"}
    assert served == set(CLIENTS)
    assert {row["arrivals"] for row in found["half_load"]} == {"Poisson", "even"}
    assert {"python", "python-data"} <= {row["flavour"] for row in found["sandboxes"]}
    assert found["stored"][0]["request"] == "run a program"
    judged = [row["reached"] is not None for row in found["targets"]]
    assert judged.count(False) == 2  # docker and the soak are asked for by name
    assert "<svg" in (tmp_path / "throughput.svg").read_text()
    report = (tmp_path / "RESULTS.md").read_text()
    assert "too few samples" in report
    assert str(Path.cwd()) not in report + json.dumps(found)
    assert socket.gethostname() not in report + json.dumps(found)


@pytest.mark.sandbox
def test_what_a_prepared_sandbox_saves_is_measured_by_backend(tmp_path: Path) -> None:
    backends = ["--backends", "native,docker"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
        assert main(["--quick", "--only", "none", *backends, "--output", str(tmp_path)]) == 0
    found: dict[str, Any] = json.loads((tmp_path / "results.json").read_text())
    rows = {row["program"]: row for row in found["head_starts"]}
    assert {"python", "node", "ruby", "php", "go", "go-again"} == set(rows)
    assert {row["backend"] for row in rows.values()} == {"native"}
    assert all(row["runs"] == 1 and row["warm_ms"] > 0 for row in rows.values())
    assert rows["node"]["ratio"] > 1
    assert "docker" in found["skipped"]
    assert "| native | Node.js hello | 1 |" in (tmp_path / "RESULTS.md").read_text()
    with pytest.raises(SystemExit):
        main(["--backends", "podman"])


def test_a_closed_loop_keeps_every_client_busy() -> None:
    with stub(delay=0.02) as (address, _):
        load = closed_loop(address, REQUEST, 4, 0.3)
    assert 20 <= len(load.latencies) <= 64  # four clients, 20 ms each, 300 ms
    assert min(load.latencies) >= 0.02
    assert load.rate == pytest.approx(len(load.latencies) / load.elapsed)


def test_an_open_loop_counts_a_stall_for_all_who_would_have_come() -> None:
    with stub(delay=0.3, slow=1) as (address, requests):
        load = open_loop(address, REQUEST, [0.0, 0.1, 0.2])
    assert len(load.latencies) == requests[0] == 3
    assert max(load.latencies) >= 0.3
    assert load.elapsed < 0.6  # the others were sent meanwhile


def test_an_open_loop_that_cannot_keep_up_counts_from_when_a_request_was_due() -> None:
    with stub(delay=0.0) as (address, _):
        load = open_loop(address, REQUEST, [-1.0, -1.0])
    assert min(load.latencies) >= 1.0


@pytest.mark.parametrize("body", [b'{"status":"failed"}', b"{}"])
def test_a_run_that_failed_ends_the_measurement(body: bytes) -> None:
    with stub(body=body) as (address, _), pytest.raises(BadAnswer):
        closed_loop(address, REQUEST, 1, 0.1)


def test_an_error_ends_the_measurement_and_is_shown() -> None:
    with stub(status="503 Service Unavailable") as (address, _), pytest.raises(BadAnswer) as end:
        open_loop(address, REQUEST, [0.0])
    assert "503 Service Unavailable" in str(end.value)


def test_percentiles_are_samples() -> None:
    samples = [float(n) for n in range(1, 101)]
    assert [percentile(samples, p) for p in (50, 95, 99, 100)] == [50, 95, 99, 100]
    assert percentile([7.0], 99) == 7


def test_a_ratio_is_taken_within_each_round() -> None:
    assert paired_ratio([1, 10, 3], [4, 40, 12]) == 0.25
    assert paired_ratio([1, 30, 3], [10, 10, 100]) == 0.1  # of the medians it would be 0.3


def test_targets_are_judged_by_their_ratios() -> None:
    slow, fast = (judge(_results(ours)) for ours in (5.1, 4.9))
    assert [v.reached for v in slow][:2] == [False, None]
    assert [v.reached for v in fast][:2] == [True, None]
    assert fast[0].measured == 0.245


def test_a_soak_is_flat_or_not_and_too_short_a_one_is_not_judged() -> None:
    def verdict(last_mb: float, runs: int) -> bool | None:
        steps = [SoakStep(runs * n // 10, 5.0, 9.0, 100.0, 1.0 * n) for n in range(11)]
        steps[-3:] = [replace(step, pss_mb=last_mb) for step in steps[-3:]]
        results = _results(1.0)
        results.soak = steps
        return judge(results)[-1].reached

    assert verdict(100.0, 100_000) is True
    assert verdict(130.0, 100_000) is False
    assert verdict(100.0, 99_999) is None


def test_a_report_of_nothing_is_still_a_report() -> None:
    report = markdown(Results(_machine(), full=False), chart=False)
    assert report.startswith("# Results\n")
    assert "throughput.svg" not in report


def _results(ours_ms: float) -> Results:
    results = Results(_machine(), full=True)
    for subject, value in (("service", ours_ms), ("bare", 20.0)):
        results.latency.append(
            Latency("python", subject, 1, value, value, value, [value], value / 20)
        )
    return results


def _machine() -> Machine:
    return Machine("cpu", 2, 1024, "6", "Linux", True, 0.0, {}, "2000-01-01")


@contextmanager
def stub(
    *, delay: float = 0.0, slow: int = 10**9, body: bytes = GOOD, status: str = "200 OK"
) -> Iterator[tuple[Address, list[int]]]:
    """A server that answers every request with ``body``, the first ``slow`` after ``delay``
    seconds; and a list with the number of requests so far."""
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    seen, lock = [0], threading.Lock()

    def serve(connection: socket.socket) -> None:
        # A client that saw an error hangs up: a reset, if it has not read all of the answer.
        with connection, suppress(ConnectionError):
            while connection.recv(65536):
                with lock:
                    seen[0] += 1
                    late = seen[0] <= slow
                time.sleep(delay if late else 0)
                connection.sendall(head)  # the head and the body come apart, as from a server
                connection.sendall(body)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threads.append(threading.Thread(target=serve, args=(connection,)))
            threads[-1].start()

    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname(), seen
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(5)
    for thread in threads:
        thread.join(5)
