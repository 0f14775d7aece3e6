"""The lower bounds of pyproject.toml as exact versions, a line each: `pip install $(python tools/lowest.py)`."""

import tomllib
from pathlib import Path

EXTRAS = ("test", "rtl", "search", "distributed")


def main() -> None:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for item in (*project["dependencies"], *(item for extra in EXTRAS for item in extras[extra])):
        print(item.replace(">=", "=="))


if __name__ == "__main__":
    main()
