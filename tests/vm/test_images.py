"""What goes into the images, and when they are built again; nothing here builds a real one."""

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.vm import images


def test_project_holds_new_files_but_no_ignored_or_deleted_ones(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    root.mkdir()
    subprocess.run(["git", "init", "--quiet", root], check=True)
    (root / ".gitignore").write_text("ignored\n")
    (root / "ignored").write_text("x")
    (root / "new file").write_text("new")
    (root / "gone").write_text("x")
    subprocess.run(["git", "-C", root, "add", "gone"], check=True)
    (root / "gone").unlink()

    images.pack_project(root, {"identities": ["root"]}, tmp_path / "project.tar")

    with tarfile.open(tmp_path / "project.tar") as archive:
        assert archive.getnames() == ["project/.gitignore", "project/new file", "job.json"]
        job = archive.extractfile("job.json")
        assert job is not None
        assert json.load(job) == {"identities": ["root"]}


def test_an_image_is_built_once_and_again_when_an_input_changes(tmp_path: Path) -> None:
    built: list[Path] = []
    first = images._cached(tmp_path, "base", ["a", "b"], built.append)
    assert images._cached(tmp_path, "base", ["a", "b"], built.append) == first
    assert len(built) == 1

    second = images._cached(tmp_path, "base", ["ab"], built.append)

    assert len(built) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == [second.name]


def test_one_kind_of_image_does_not_drop_another(tmp_path: Path) -> None:
    base = images._cached(tmp_path, "base", ["a"], lambda place: None)
    python = images._cached(tmp_path, "python", ["a"], lambda place: None)
    assert base.is_dir()
    assert python.is_dir()


def test_a_build_that_fails_is_not_taken_for_an_image(tmp_path: Path) -> None:
    def fail(place: Path) -> None:
        (place / "disk.ext4").write_text("half")
        raise OSError

    with pytest.raises(OSError):
        images._cached(tmp_path, "base", ["a"], fail)

    image = images._cached(tmp_path, "base", ["a"], lambda place: None)
    assert list(image.iterdir()) == []


def test_package_lists_may_have_comments_and_blank_lines(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# heading\n\nruby\ngcc  # compiles init\n")
    assert images._lines(tmp_path / "list") == ["ruby", "gcc"]
