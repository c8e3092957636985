"""The verdict and the time limit of the rig, without a virtual machine."""

import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from tests.vm import rig

JOB = rig.Job({name: {"facts": [], "conformance": []} for name in ("root", "user")})
GOOD = {"root": {"facts": 0, "conformance": 0}, "user": {"facts": 0, "conformance": 0}}
JUNIT = b'<testsuites><testsuite tests="9" failures="1" errors="0" skipped="2"/></testsuites>'


def write_results(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"results/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def verdict(tmp_path: Path, codes: object, **files: bytes) -> int:
    content = {"codes.json": json.dumps(codes).encode(), **files}
    results = write_results(tmp_path / "results.tar", content)
    return rig.report(JOB, results, tmp_path / "results")


def test_passes_when_every_step_of_every_identity_ended_with_zero(tmp_path: Path) -> None:
    assert verdict(tmp_path, GOOD) == 0


@pytest.mark.parametrize(
    "codes",
    [
        {**GOOD, "user": {"facts": 0, "conformance": 1}},
        {**GOOD, "user": {"facts": 0, "conformance": -9}},
        {**GOOD, "user": {"facts": 0}},
        {"root": GOOD["root"]},
        {},
    ],
)
def test_fails_when_a_step_failed_or_is_missing(tmp_path: Path, codes: object) -> None:
    assert verdict(tmp_path, codes) == 1


def test_fails_when_the_machine_wrote_no_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results.tar"
    results.write_bytes(bytes(2**20))
    assert rig.report(JOB, results, tmp_path / "results") == 1
    assert capsys.readouterr().out.count("DID NOT END") == 4


def test_results_of_an_earlier_run_do_not_count(tmp_path: Path) -> None:
    assert verdict(tmp_path, GOOD) == 0
    (tmp_path / "results.tar").write_bytes(bytes(2**20))
    assert rig.report(JOB, tmp_path / "results.tar", tmp_path / "results") == 1


def test_a_skipped_test_has_not_passed(tmp_path: Path) -> None:
    junit = b'<testsuites><testsuite tests="9" failures="0" errors="0" skipped="%d"/></testsuites>'
    assert verdict(tmp_path, GOOD, **{"user/conformance.xml": junit % 0}) == 0
    assert verdict(tmp_path, GOOD, **{"user/conformance.xml": junit % 1}) == 1


def test_a_check_that_failed_as_declared_is_not_skipped(tmp_path: Path) -> None:
    case = b'<testcase><skipped type="pytest.xfail"/></testcase>'
    junit = b'<testsuites><testsuite tests="9" skipped="%d">' + case + b"</testsuite></testsuites>"
    assert verdict(tmp_path, GOOD, **{"user/conformance.xml": junit % 1}) == 0
    assert verdict(tmp_path, GOOD, **{"user/conformance.xml": junit % 2}) == 1


def test_counts_of_the_suite_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verdict(tmp_path, GOOD, **{"root/conformance.xml": JUNIT})
    shown = capsys.readouterr().out
    assert "root conformance 9 tests, 1 failures, 0 errors, 2 skipped" in shown


def test_a_machine_that_does_not_end_is_killed_at_the_limit() -> None:
    started = time.monotonic()
    assert not rig.run_machine(["sleep", "60"], 0.2)
    assert time.monotonic() - started < 30


def test_a_clock_may_run_slower() -> None:
    try:
        prefix = rig.slow_clock(0.1)
    except SystemExit:
        pytest.skip("no libfaketime; apt-get install faketime")
    code = "import time; b = time.monotonic(); time.sleep(0.05); print(time.monotonic() - b)"
    started = time.monotonic()
    inside = float(subprocess.check_output([*prefix, sys.executable, "-c", code]))
    assert time.monotonic() - started > 2 * inside


def test_a_machine_that_ends_is_in_time() -> None:
    assert rig.run_machine(["true"], 30)


def steps(identity: str, *arguments: str) -> list[str]:
    return list(rig.session(identity, rig.parse(arguments)))


def test_steps_keep_their_order() -> None:
    native = ["facts", "build", "check-native", "conformance-native"]
    assert steps("user", "--backend", "native") == native
    chosen = ("--step", "conformance", "--step", "facts", "--backend", "native")
    assert steps("root", *chosen) == ["facts", "conformance-native"]


def test_every_backend_is_tried_by_those_who_can_use_it() -> None:
    conformance = ("--step", "conformance")
    names = ["native", "docker", "runc", "gvisor"]
    assert steps("root", *conformance) == [f"conformance-{name}" for name in names]
    assert steps("user", *conformance) == [f"conformance-{name}" for name in names[:2]]
    assert steps("user", *conformance, "--backend", "runc") == []


def test_a_command_replaces_the_steps() -> None:
    options = rig.parse(["--step", "facts", "--", "id", "-u"])
    assert rig.session("root", options) == {"command": ["id", "-u"]}


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rig, "TOOLS", {"no-such-tool": "its-package"})
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="apt-get install its-package"):
        rig.install_tools()
