"""Changes of the command line and of the environment."""

from __future__ import annotations

from random import Random
from typing import Any

from fuzz_text import STRINGS

WORDS = (
    "", " ", "-", "--", "-1", "0", "1", "2", "3", "7", "100", "1000000000", "99999999999999999999",
    "-99999999999999999999", "1e3", "0x8", "8.0", "1_0", "+3",
    "\u0663", "nan", "inf", "-inf", "1e-320", "1e400", "-0", "0.5", "1,2", "1,", ",", "2,2", "8,8", "1,2,3,4,5",
    "true", "None", "*", "?", "[", "[!", "[]a]",
    "*" * 40 + "x", "**/*", "a\0b", "\udcff", "a\nb", "x" * 300, "x" * 5000, ".", "..", "/", "../in", "../in/ivit.h5",
    "../in/nothere.h5", "../in/recipe.toml",
    "../in/images.npy", "m.onnx", "l.npz", "missing/l.npz", "../in/ivit.h5/x", "/dev/null/x", "fashion-mnist:test",
    "fashion-mnist:", "fashion-mnist:x",
    "fashion-mnist:test/images", "fashion-mnist:../x", "cifar:test", "../in/images.h5:", "../in/images.h5:/",
    "../in/images.h5:nope", "../in/images.h5:..",
    "../in/images.h5:test", "ivit", "ibert", "fqvit", "ivit,ivit", "ivit,", ",ivit", "softmax", "spec", "kernel",
    "minmax", "percentile", "mse", "kl", "auto", "accurate", "sqnr_output", "isolated", "prefix", "greedy", "pairwise",
    "exact", "tpe", "top1", "norm=ivit", "blocks.0.norm1=ibert", "=", "norm=", "=ivit", "../in/ivit.h5.search",
    "/proc/self/environ", "/dev/zero", "/dev/full", "[red]x", "\x1b[31m", "%s", "~", "$HOME", "blocks.0.norm1",
    "logits",
)  # fmt: skip
ENVIRONMENT = {
    "INTVIT_GEMM": ("", "avx2", "avx512", "vnni", "generic", "x", "AVX2", "\u00e9", "x" * 5000, "../x"),
    "PYTHONIOENCODING": ("ascii", "latin-1", "utf-8:surrogateescape"),
    "LC_ALL": ("C", "POSIX", "xx_XX"),
    "COLUMNS": ("0", "1", "-1", "x", "99999"),
    "TERM": ("dumb", "", "xterm"),
    "HOME": ("", "/", "/nonexistent"),
    "PYTHONOPTIMIZE": ("1", "2"),
    "PYTHONWARNINGS": ("error", "default"),
    "NO_COLOR": ("1",),
    "FORCE_COLOR": ("1",),
}
INPUT_ONLY = ("/", ".", "..", "../in", "/proc/self/environ", "/dev/zero", "/dev/full", "~")


def known_options() -> dict[str, list[tuple[str, bool]]]:
    """Command -> (option, takes a value), as the command line itself declares them."""
    import typer

    from intvit.cli import app

    found: dict[str, list[tuple[str, bool]]] = {}

    def visit(command: Any, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            visit(child, f"{path} {name}".strip())
        found[path] = [
            (p.opts[0], not getattr(p, "is_flag", False)) for p in command.params if p.opts[0].startswith("-")
        ]

    visit(typer.main.get_command(app), "")
    return found


def change_options(rng: Random, arguments: list[str]) -> str:
    """An option more, of any value; or a word of the call dropped, doubled or exchanged."""
    known = known_options()
    path = " ".join(arguments[:2]) if " ".join(arguments[:2]) in known else arguments[0] if arguments else ""
    options = known.get(path, [])
    kind = rng.choice(["option"] * 8 + ["word", "word", "drop", "double", "command", "order"])
    if kind == "option" and options:
        option, takes_value = rng.choice(options)
        if option in ("-o", "--output", "--trace"):
            value = rng.choice([w for w in WORDS if w not in INPUT_ONLY])
        else:
            value = rng.choice(WORDS if rng.random() < 0.7 else STRINGS)
        arguments += [option, value] if takes_value else [option]
        return f"{option} {value[:40]!a}" if takes_value else option
    at = rng.randrange(len(arguments)) if arguments else 0
    if kind == "word" and arguments:
        output = at and arguments[at - 1] in ("-o", "--trace")
        arguments[at] = rng.choice([w for w in WORDS if w not in INPUT_ONLY] if output else WORDS)
        return f"word {at} {arguments[at][:40]!a}"
    if kind == "drop" and arguments:
        return f"without {arguments.pop(at)!a}"
    if kind == "double" and arguments:
        arguments.insert(at, arguments[at])
    elif kind == "command":
        arguments[:1] = [
            rng.choice(
                [
                    "import",
                    "lower",
                    "golden",
                    "run",
                    "nope",
                    "",
                    "--version",
                    "--help",
                    "-h",
                    "methods",
                    "eval",
                    "--install-completion",
                ]
            )
        ]
        if arguments[0] == "--install-completion":
            arguments[0] = "--show-completion"
    else:
        rng.shuffle(arguments)
    return kind
