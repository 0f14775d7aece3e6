"""Changes of bytes, JSON and TOML. Every mutator is `(rng, data) -> (data, what was done)`, driven by `rng` alone."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from random import Random
from typing import Any

Changed = tuple[bytes, str]

STRINGS = (
    "", " ", ".", "..", "../../x", "../../outside/x", "/tmp/intvit-fuzz-outside/x", "/", "/proc/self/environ", "a/b",
    "a\\b", "C:\\x", "~", "-", "--help",
    "index.json", "con", "nul.h5", "x.partial", "x.lock", "a\0b", "a\nb", "a\rb", "\x1b[31mred", "[red]x[/red]", "[/]",
    "%s%n", "{0}", "x" * 300, "x" * 5000, "\u00e9", "\u0130", "\u202e", "\ufeff", "\U0001f600", "A", "a", "None",
    "null",
    "nan", "1e5", "*", "?", "[", "[!", "logits", "input", "blocks.0.norm1", "blocks.0.attn.softmax", "head", "s8", "u8",
    "s0", "s-1", "s64", "s65", "s99999999999", "f32", "int8", "linear", "log2", "ivit", "ibert", "fqvit", "softmax",
    "gelu", "layernorm", "matmul", "log2_matmul", "requantize", "mean", "reshape", "transpose", "take", "slice",
    "concat",
    "relu", "silu", "quick_gelu", "gelu_new", "minmax", "mse", "percentile", "kl", "auto", "sqnr_diff",
)  # fmt: skip
"""Names that mean something to a file system, a terminal, a formatter, or to the package."""
NUMBERS = (
    0, -1, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 62, 63, 64, 127, 128, 255, 256, 1000, 65536, 2**31 - 1, 2**31,
    2**32,
    2**53, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, -(2**31), -(2**63), -(2**63) - 1, 10**12, 10**30, 10**400,
)  # fmt: skip
FLOATS = (
    0.0,
    -0.0,
    0.5,
    -1.5,
    1e-320,
    1e-45,
    1e-30,
    1e30,
    1e38,
    3.5e38,
    1e300,
    1e308,
    float("nan"),
    float("inf"),
    -float("inf"),
)
RAW = (
    "NaN", "-Infinity", "1e999", "-0", "01", "0x10", "1_0", "+1", ".5", "tru", "''", "[1,]", "{,}", "/*x*/1",
    "undefined",
    '"\\ud800"', '"\\udc00\\ud800"', '"\\u0000"', '"\x01"', '"a\nb"', '"\\x"', '"open', "[" * 100_000, "1" * 5000,
    "-" + "9" * 20,
    "[" * 100_000 + "]" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000, "[" * 990 + "]" * 990,
    "[" * 1500 + "]" * 1500,
)  # fmt: skip
"""JSON text, well formed and not, that no value can stand for."""


def number(rng: Random, near: Any = None) -> Any:
    """An edge, or something near the old value."""
    if isinstance(near, bool) or not isinstance(near, (int, float)) or rng.random() < 0.5:
        return rng.choice(NUMBERS if rng.random() < 0.7 else FLOATS)
    return rng.choice(
        [near + 1, near - 1, -near, near * 2, near * 1000, near // 2 if near else 1, float(near), near + 0.5]
    )


# -------------------------------------------------------------------------------------------- bytes


def mutate_bytes(rng: Random, data: bytes, other: bytes = b"") -> Changed:
    """Flips, cuts, copies, splices with `other`, edges of integers; at a random place."""
    at = rng.randrange(len(data) + 1)
    if len(data) > 64 and rng.random() < 0.4:  # headers are at the ends
        at = rng.choice([rng.randrange(64), len(data) - 1 - rng.randrange(64)])
    length = rng.choice([1, 1, 2, 4, 8, 16, rng.randrange(1, 300)])
    name = rng.choice(["flip", "flips", "set", "cut", "drop", "insert", "double", "zero", "edge", "splice", "swap",
                       "append",
                       "prepend", "empty", "swap", "edge", "flip"])  # fmt: skip
    body = bytearray(data)
    if name in ("flip", "flips"):
        for _ in range(1 if name == "flip" else rng.randrange(2, 30)):
            if body:
                place = at % len(body) if name == "flip" else rng.randrange(len(body))
                body[place] ^= 1 << rng.randrange(8)
    elif name == "set":
        body[at : at + 1] = bytes([rng.randrange(256)])
    elif name == "cut":
        del body[at:]
    elif name == "drop":
        del body[at : at + length]
    elif name == "insert":
        body[at:at] = rng.randbytes(length) if rng.random() < 0.5 else b"\0" * length
    elif name == "double":
        body[at:at] = body[at : at + length]
    elif name == "zero":
        body[at : at + length] = bytes(len(body[at : at + length]))
    elif name == "edge":
        size, order = rng.choice([1, 2, 4, 8]), rng.choice(["little", "big"])
        value = rng.choice(NUMBERS) % (1 << 8 * size)
        body[at : at + size] = value.to_bytes(size, order)  # type: ignore[arg-type]
    elif name == "splice" and other:
        body[at:] = other[rng.randrange(len(other)) :]
    elif name == "swap":
        first = rng.randrange(len(body) + 1)
        body[at : at + length], body[first : first + length] = body[first : first + length], body[at : at + length]
    elif name == "append":
        body += rng.choice([b"\0", b"\n", rng.randbytes(length), data, other[:1000]])
    elif name == "prepend":
        body[0:0] = rng.choice([b"\0", b"\xef\xbb\xbf", b"\xff\xfe", b"#!/bin/sh\n", rng.randbytes(length), b"PK\3\4"])
    elif name == "empty":
        body.clear()
    return bytes(body), f"bytes {name} at {at}"


def mutate_encoding(rng: Random, data: bytes) -> Changed:
    """Text in another encoding, with a mark, with bytes that are no text, with other line ends."""
    text = data.decode("utf-8", "replace")
    name = rng.choice(["bom", "utf-16", "utf-32", "latin-1", "cr", "crlf", "nul", "not utf-8", "blank", "form feed"])
    at = rng.randrange(len(data) + 1)
    changed = {
        "bom": b"\xef\xbb\xbf" + data,
        "utf-16": text.encode("utf-16"),
        "utf-32": text.encode("utf-32"),
        "latin-1": (text + "\u00e9").encode("latin-1", "replace"),
        "cr": data.replace(b"\n", b"\r"),
        "crlf": data.replace(b"\n", b"\r\n"),
        "nul": data[:at] + b"\0" + data[at:],
        "not utf-8": data[:at] + rng.choice([b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf5\x80\x80\x80"]) + data[at:],
        "blank": rng.choice([b"", b" ", b"\n" * 1000]),
        "form feed": data + b"\x0c\x85\xe2\x80\xa8",
    }[name]
    return changed, f"encoding {name}"


# --------------------------------------------------------------------------------------------- JSON


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything below `value`."""
    found, todo = [], [value]
    while todo:
        at = todo.pop()
        keys = list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else []
        for key in keys:
            found.append((at, key))
            todo.append(at[key])
    return found


def other_value(rng: Random, old: Any, known: list[str]) -> Any:
    """Another value: of the same type half of the time, an edge of any type otherwise."""
    same = rng.random() < 0.5
    if same and isinstance(old, (int, float)) and not isinstance(old, bool):
        return number(rng, old)
    if same and isinstance(old, str):
        return rng.choice([rng.choice(STRINGS), rng.choice(known or [""]), old + "x", old[:-1], old.upper(), old * 2])
    if same and isinstance(old, list):
        return rng.choice([[], old * 2, old[::-1], old[:-1], [old], [*old, 1], [*old, old], old[:1] * 1000])
    if same and isinstance(old, dict):
        return rng.choice([{}, list(old), list(old.values()), {**old, "extra": 1}, {"": old}])
    return rng.choice([None, True, False, number(rng), rng.choice(STRINGS), [], {}, [None], [[]], {"a": []},
                       [0] * 10_000,
                       {str(i): i for i in range(500)}, [old], str(old), {"x": old}])  # fmt: skip


def change_value(rng: Random, value: Any) -> tuple[Any, str, dict[str, str]]:
    """(value, what, raw texts): one structural change of parsed JSON or TOML."""
    found = places(value)
    raw: dict[str, str] = {}
    if not found or rng.random() < 0.03:
        return rng.choice([None, [], {}, 0, "x", [value], True]), "top level replaced", raw
    container, key = rng.choice(found)
    if rng.random() < 0.3:  # shallow places decide more
        container, key = rng.choice([place for place in found if place[0] is value] or found)
    known = [item for at, k in found if isinstance(item := at[k], str)]
    known += [k for at, k in found if isinstance(k, str)]
    where, old = str(key)[:60], container[key]
    name = rng.choice(["drop", "other", "other", "other", "other", "double", "rename", "swap", "copy", "raw"])
    if name == "drop":
        del container[key]
    elif name == "other":
        container[key] = other_value(rng, old, known)
        where += f" = {str(container[key])[:40]!r}"
    elif name == "double" and isinstance(container, list):
        container.insert(key, old)
    elif name == "rename" and isinstance(container, dict):
        container[rng.choice([rng.choice(STRINGS), rng.choice(known), where + "x", where.upper()])] = container.pop(key)
    elif name == "swap":
        at, k = rng.choice([place for place in found if place[0] is container])
        container[key], at[k] = at[k], container[key]
    elif name == "copy":
        at, k = rng.choice(found)
        container[key] = json.loads(json.dumps(at[k], default=str))
    else:
        name, mark = "raw", f"@@{len(raw)}{rng.random()}@@"
        raw[json.dumps(mark)] = rng.choice(RAW)
        container[key] = mark
        where += f" = {raw[json.dumps(mark)][:20]}"
    return value, f"{name} {where}", raw


def mutate_json(rng: Random, data: bytes) -> Changed:
    """Change the parsed value, its text or its encoding."""
    chance = rng.random()
    if chance < 0.1:
        return mutate_bytes(rng, data)
    if chance < 0.2:
        return mutate_encoding(rng, data)
    try:
        value = json.loads(data)
        if not isinstance(value, (dict, list)):
            raise ValueError
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)
    if chance < 0.25 and isinstance(value, dict) and value:  # a key twice
        key = rng.choice(list(value))
        head = f"{json.dumps(key)}: {json.dumps(other_value(rng, value[key], []))}"
        text = json.dumps(value)
        return (text[:1] + head + ", " + text[1:]).encode(), f"json key {key[:40]!r} twice"
    value, what, raw = change_value(rng, value)
    try:
        text = json.dumps(value, ensure_ascii=rng.random() < 0.7, indent=rng.choice([None, 1]))
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)
    for mark, text_of in raw.items():
        text = text.replace(mark, text_of)
    return text.encode("utf-8", "surrogatepass"), f"json {what}"


# --------------------------------------------------------------------------------------------- TOML

TOML_TAILS = (
    "bits = 8\n", "\nbits = 7\nbits = 7\n", "\n[gelu]\nmethod = 'ivit'\n", "\n[a.b]\n[a]\nb = 1\n",
    "\nx = 1979-05-27\n",
    "\nx = 99999-99-99\n", "\nx = inf\n", "\nx = nan\n", "\nx = 0xFF\n", "\nx = 1_\n", "\nx = '''\n",
    '\nx = "\\uD800"\n',
    '\n"" = 1\n', "\nx = [" + "[" * 2000 + "]" * 2000 + "]\n", "\nx = " + "{a = " * 1200 + "1" + "}" * 1200 + "\n",
    "\n" + ".".join(["a"] * 3000) + " = 1\n", "\nx = " + "9" * 5000 + "\n", "\n[[sites]]\nmethod = 'ivit'\n",
    "\n\x00\n",
    "\n[sites]\n'' = {method = 'ivit'}\n", "\nx = " + "[" * 100_000 + "\n", "\nx = 00:00:00\n", "\r",
)  # fmt: skip


def toml_text(value: Any) -> str:
    """TOML of parsed TOML, tables inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml_text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(toml_text(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value).replace("e", "e") if value == value else "nan"
    return "''" if value is None else json.dumps(value, default=str)


def mutate_toml(rng: Random, data: bytes) -> Changed:
    chance = rng.random()
    if chance < 0.15:
        return mutate_bytes(rng, data)
    if chance < 0.25:
        return mutate_encoding(rng, data)
    if chance < 0.4:
        tail = rng.choice(TOML_TAILS)
        body = tail.encode("utf-8", "surrogatepass")
        return (data + body if rng.random() < 0.7 else body + data), f"toml text {tail[:30]!r}"
    try:
        value = tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        return mutate_bytes(rng, data)
    value, what, raw = change_value(rng, value)
    if not isinstance(value, dict):
        value = {"x": value}
    text = "\n".join(f"{json.dumps(str(key))} = {toml_text(item)}" for key, item in value.items()) + "\n"
    for mark, text_of in raw.items():
        text = text.replace(mark, text_of)
    return text.encode("utf-8", "surrogatepass"), f"toml {what}"


Mutator = Callable[[Random, bytes], Changed]
