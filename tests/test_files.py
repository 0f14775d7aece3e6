"""Whole files and folders, locks, names that are safe as file names, and the exit codes of the command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from intvit.errors import IntvitError, reading
from intvit.files import inside, locked, plain_name, safe_name, whole_file, whole_folder


@given(st.text(max_size=16))
def test_safe_names_are_reversible_and_lie_in_their_folder(name):
    safe = safe_name(name)
    assert plain_name(safe) == name
    assert safe == safe.lower()
    assert not set(safe) & set('/\\\0:*?"<>| ')
    assert safe not in (".", "..", "index.json", "")


@given(st.text(max_size=8), st.text(max_size=8))
def test_different_names_stay_different_on_file_systems_that_fold_case(first, second):
    assert (safe_name(first).casefold() == safe_name(second).casefold()) == (first == second)


@pytest.mark.parametrize("name", ["", ".", "..", "index.json", "x.partial", "x.lock", "nul", "a.", ".hidden", "a/../b"])
def test_names_with_a_meaning_of_their_own(name):
    assert safe_name(name) != name
    assert plain_name(safe_name(name)) == name


@pytest.mark.parametrize("text", ["A", "%2E", "a/b", "..", "%61", "%zz", "%ff", ""])
def test_what_no_name_was_made_of_is_refused(text):
    with pytest.raises(IntvitError, match="must be a name as intvit writes it"):
        plain_name(text)


def test_a_name_too_long_for_a_file_is_refused():
    with pytest.raises(IntvitError, match="must fit 200 characters"):
        safe_name("x" * 201)


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), whole_file(path) as partial:
        partial.write_bytes(b"half" + "\ud800".encode())
    assert path.read_text() == "old"
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "new"


def test_a_folder_appears_whole_once_and_not_at_all(tmp_path):
    path = tmp_path / "deep" / "folder"
    with pytest.raises(UnicodeEncodeError), whole_folder(path) as partial:
        (partial / "x").write_bytes(b"half" + "\ud800".encode())
    assert list(path.parent.iterdir()) == []
    with whole_folder(path) as partial:
        (partial / "x").write_text("whole")
    with pytest.raises(IntvitError, match="must not exist yet"), whole_folder(path):
        pass
    assert sorted(p.name for p in path.parent.iterdir()) == ["folder"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale").write_text("x")
    (tmp_path / "out.lock").write_text("")
    with whole_folder(tmp_path / "out") as partial:
        (partial / "y").write_text("y")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["y"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_writers_of_one_file(tmp_path):
    path = tmp_path / "a"
    with locked(path), pytest.raises(IntvitError, match="one writer at a time"), whole_file(path):
        pass


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    for path in (tmp_path / "missing" / "a", Path("/proc/nothing/here"), tmp_path):
        with pytest.raises(IntvitError, match=r"cannot be written|must be a file"), whole_file(path):
            pass


def test_links_out_of_a_folder_are_refused(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to("/etc")
    for path in (folder / "link" / "hosts", folder / ".." / "x", Path("/etc/hosts")):
        with pytest.raises(IntvitError, match="must lie in"):
            inside(folder, path)
    assert inside(folder, folder / "x") == folder / "x"


def test_the_border_of_a_loader_turns_everything_into_one_line():
    for error in (KeyError("key"), ValueError("a\nb"), RecursionError(), MemoryError(), ZeroDivisionError("x")):
        with pytest.raises(IntvitError) as caught, reading("file.x", "a whole thing"):
            raise error
        assert str(caught.value).startswith("file.x: must be a whole thing, not: ")
        assert "\n" not in str(caught.value)


def _intvit(*arguments, **options):
    return subprocess.run([sys.executable, "-m", "intvit", *arguments], stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("arguments", [["methods"], ["methods", "--json"], ["--help"]])
def test_standard_output_that_is_full_or_closed(arguments):
    with open("/dev/full", "w") as full:
        done = _intvit(*arguments, stdout=full)
    assert (done.returncode, done.stderr.count("\n")) == (74, 1), done.stderr
    assert "standard output: cannot be written" in done.stderr
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = _intvit(*arguments, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_an_internal_error_has_its_own_exit_code(monkeypatch, capsys):
    from intvit import cli
    from intvit.kernels import registry

    def broken():
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(registry, "methods", broken)
    assert cli.main(["methods"]) == 70
    assert "a bug of intvit" in capsys.readouterr().err


def test_an_interrupt_says_so(monkeypatch, capsys):
    from intvit import cli
    from intvit.kernels import registry

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "methods", interrupted)
    assert cli.main(["methods"]) == 130
    assert capsys.readouterr().err == "intvit: interrupted\n"
