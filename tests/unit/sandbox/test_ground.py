"""The ground process: its steps in order, each operation done, the failing step named."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from code_executor.sandbox import ground
from code_executor.sandbox.ground import IdRange, Instructions
from code_executor.sandbox.root import Bind, Directory, Link, Operation, Text

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounts of its own need root here")


def instructions(
    staging: Path, *operations: Operation, launcher: str = "/bin/true"
) -> Instructions:
    return Instructions(operations, str(staging), launcher, None, None)


def run(told: Instructions) -> subprocess.CompletedProcess[bytes]:
    """The ground process, as the service starts it."""
    return subprocess.run(
        [sys.executable, "-I", "-m", "code_executor.sandbox.ground"],
        input=pickle.dumps(told),
        capture_output=True,
        env={},
        timeout=60,
        start_new_session=True,
    )


def test_files_directories_and_links_are_made_with_the_modes_of_a_system(tmp_path: Path) -> None:
    told = instructions(
        tmp_path,
        Directory("a/b"),
        Directory("a/b"),
        Text("c/file", b"text"),
        Link("c/link", "/nowhere"),
    )
    ground.assemble_root(told)
    assert (tmp_path / "a/b").is_dir()
    assert (tmp_path / "c/file").read_bytes() == b"text"
    assert os.readlink(tmp_path / "c/link") == "/nowhere"
    modes = [oct((tmp_path / name).stat().st_mode & 0o777) for name in ("a", "a/b", "c/file")]
    assert modes == ["0o755", "0o755", "0o644"]


def test_an_operation_that_fails_is_named(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    with pytest.raises(FileExistsError) as caught:
        ground.assemble_root(instructions(tmp_path, Directory("fine"), Directory("there")))
    assert caught.value.filename == "there"


def test_the_host_s_files_are_let_go_before_the_launcher_starts() -> None:
    names = [step.__name__ for step in ground.STEPS]
    assert names.index("enter_user_namespace") < names.index("enter_mount_namespace")
    assert names.index("pivot") < names.index("lock_root") < names.index("become_launcher")
    assert names[-1] == "become_launcher"


def test_id_ranges_survive_the_way_to_the_process() -> None:
    told = Instructions((), "/s", "/l", IdRange(1, 2), IdRange(3, 4))
    assert pickle.loads(pickle.dumps(told)) == told


@ROOT_ONLY
def test_the_failing_step_is_named_and_ends_it(tmp_path: Path) -> None:
    done = run(instructions(tmp_path / "absent"))
    assert done.returncode == 1
    assert b"enter_mount_namespace" in done.stderr
    done = run(instructions(tmp_path, Bind("usr", "/no/such/place")))
    assert done.returncode == 1
    assert b"assemble_root" in done.stderr
    assert not os.path.ismount(tmp_path)  # the mounts were those of its own namespace


@ROOT_ONLY
def test_the_launcher_sees_the_assembled_root_read_only_and_nothing_else(tmp_path: Path) -> None:
    """A program in the launcher's place looks around; it is static, so it needs no root."""
    source, probe = tmp_path / "look.c", tmp_path / "look"
    source.write_text(LOOK)
    subprocess.run(["cc", "-static", "-o", probe, source], check=True)
    staging = tmp_path / "staging"
    staging.mkdir()
    told = instructions(
        staging,
        *(Directory(name) for name in ("usr", "proc", "dev")),
        Bind("usr", "/usr"),
        Text("dev/null", b""),
        Bind("dev/null", "/dev/null", device=True),
        launcher=str(probe),
    )
    done = run(told)
    assert done.stderr == b""
    assert done.returncode == 0, f"check {done.returncode} of LOOK failed"


LOOK = r"""
#include <dirent.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    extern char **environ;
    if (environ[0]) return 2;
    if (open("/made", O_WRONLY | O_CREAT, 0600) >= 0) return 3;
    if (open("/usr/made", O_WRONLY | O_CREAT, 0600) >= 0) return 4;
    if (access("/root", F_OK) == 0 || access("/home", F_OK) == 0) return 5;
    if (access("/proc/self/status", R_OK) != 0) return 6;
    if (open("/dev/null", O_WRONLY) < 0) return 7;
    DIR *root = opendir("/");
    int names = 0;
    for (struct dirent *entry; root && (entry = readdir(root));)
        names += entry->d_name[0] != '.';
    return names == 3 && argc == 1 && !strcmp(argv[0], "launcher") ? 0 : 8;
}
"""
