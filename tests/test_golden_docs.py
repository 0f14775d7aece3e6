"""docs/golden.md: its commands run, and print what it says."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from intvit.analysis.demo import WEIGHTS, embedded

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "golden.md").read_text()
DIGEST = re.compile(r"\b[0-9a-f]{16,64}\b")


def sessions():
    """(command, lines that it prints) of every console block."""
    for block in re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL):
        command, said = None, []
        for line in block.splitlines():
            if line.startswith("$ "):
                if command:
                    yield command, said
                command, said = line[2:], []
            else:
                said.append(line)
        yield command, said


def normal(text):
    text = re.sub(r"verilator [0-9.]+", "verilator", DIGEST.sub("#", text))
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines()]


@pytest.mark.slow
def test_the_session(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "golden").symlink_to(ROOT / "golden", target_is_directory=True)
    done = 0
    for command, said in sessions():
        if "golden bench" in command and not all(map(shutil.which, ("g++", "make", "perl"))):
            continue
        arguments = shlex.split(command.replace("$WEIGHTS", os.fspath(embedded(WEIGHTS))))
        assert arguments[0] == "intvit"
        status, out, err = cli(*arguments[1:])
        assert status == 0, (command, err)
        printed = normal(out + "\n" + err)
        for line in normal("\n".join(said)):
            assert line in printed, (command, line, printed)
        done += 1
    assert done >= 7
