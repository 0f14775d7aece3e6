"""The lower bounds of pyproject.toml as exact versions, a line each: `pip install $(python tools/lowest.py)`."""

import tomllib
from pathlib import Path


def main() -> None:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]
    for item in (*project["dependencies"], *project["optional-dependencies"]["test"],
                 *project["optional-dependencies"]["search"]):  # fmt: skip
        print(item.replace(">=", "=="))


if __name__ == "__main__":
    main()
