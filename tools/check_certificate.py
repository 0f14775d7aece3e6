#!/usr/bin/env python3
"""Derive every claim of `intvit prove --certificate` again, from weights alone: standard library, no line of intvit.

    python tools/check_certificate.py certificate.json
Exit 0 and one line if every claim is what this file derives; 1 and the first claim that is not. Rules: docs/prove.md.
An interval is a pair (low, high), inclusive; a tensor has one for all channels of its last axis, or one for each.
"""
# fmt: off
# ruff: noqa: B023, B905, E401, E701, E702, E731, I001
import ast, hashlib, json, sys, zipfile
from array import array
from math import prod
from operator import mul
from pathlib import Path

M31, WORD = 2**31 - 1, (-(2**63), 2**63 - 1)
POSITIVE, NEGATIVE = bytes([*range(128), *[0] * 128]), bytes([*[0] * 128, *range(128, 0, -1)])
KEYS, KINDS = ("format", "version", "content_hash", "constants", "graph", "declared"), ("intervals", "ties", "clamps")
METHODS = {"softmax": ("ivit", "ibert", "fqvit"), "layernorm": ("ivit", "ibert"), "rmsnorm": ("ivit", "ibert")}
LAYOUT = ("reshape", "transpose", "take", "slice", "concat")
hull = lambda parts: (min(p[0] for p in parts), max(p[1] for p in parts))
clip = lambda i, limits: (max(limits[0], min(limits[1], i[0])), max(limits[0], min(limits[1], i[1])))
both = lambda i, j: (max(i[0], j[0]), min(i[1], j[1]))
product = lambda a, b: (min(x * y for x in a for y in b), max(x * y for x in a for y in b))
rise = lambda i, f: (f(i[0]), f(i[1]))
bits = lambda i: max((v if v >= 0 else ~v).bit_length() for v in i) + (i != (0, 0)) or 1
at = lambda values, c: values[c if len(values) > 1 else 0]
one = lambda parts: parts[:1] if all(p == parts[0] for p in parts) else parts
divided = lambda v, d: v // d + (2 * (v % d) > d or (2 * (v % d) == d and v // d & 1))  # to nearest, ties to even
shifted = lambda v, e: v << -e if e <= 0 else divided(v, 1 << e)

class Site:
    """What is derived of one operator."""
    def __init__(self, found, name): self.found, self.name, self.row_sum = found, name, None
    def note(self, kind, signal, *values):
        self.found[kind][self.name, signal] = [hex(v) if v and v.bit_length() > 256 else v for v in values]
    def say(self, signal, i, declared=None):
        self.note("intervals", signal, *i, bits(i), declared, declared and declared - bits(i))
        return i
    def clamp(self, signal, i, limits):
        self.note("clamps", signal, *i, limits[0] <= i[0] and i[1] <= limits[1])
        return clip(i, limits)

def tie_of(i, m, e, windows):
    """The smallest x in i with x * m / 2**e a half whose three roundings differ: docs/prove.md, "Ties"."""
    v = (m & -m).bit_length() - 1
    if m == 0 or e - 1 - v < 0: return None
    k, odd, found = e - 1 - v, m >> v, []
    for low, high in windows:
        a, b = (2 * low + 1, 2 * high + 1)[:: 1 if odd > 0 else -1]
        low, high = max(-(-i[0] >> k), -(-a // odd)), min(i[1] >> k, b // odd)
        up, down = max(low, 0) | 1, -(max(-high, 0) | 1)
        found += [u for u in (up, up + 2, down, down - 2) if low <= u <= high and (u * odd < 0 or u * odd % 4 == 1)]
    return min(found, key=lambda u: (abs(u), -u)) << k if found else None

def linear(s, x, arrays):
    (values, (n_out, n_in)), sums = arrays["weight"], []
    weight, low, high = values.tobytes(), [v[0] for v in x], [v[1] for v in x]
    dot = lambda w, v: sum(map(mul, w, v)) if len(v) > 1 else sum(w) * v[0]
    for o in range(0, n_out * n_in, n_in):
        p, n = weight[o : o + n_in].translate(POSITIVE), weight[o : o + n_in].translate(NEGATIVE)
        sums.append((dot(p, low) - dot(n, high), dot(p, high) - dot(n, low)))
    s.say("product", product((min(values), max(values)), hull(x))); s.say("sum", hull(sums))
    if "bias" not in arrays: return sums
    bias = arrays["bias"][0]; s.say("bias", (min(bias), max(bias)))
    return [(a + c, b + c) for (a, b), c in zip(sums, bias)]

def matmul(s, a, b, depth, row_sum):
    p = s.say("product", product(a, b)); total = s.say("sum", (depth * p[0], depth * p[1]))
    return [total if not row_sum or a[0] < 0 else both(total, (row_sum * min(b[0], 0), row_sum * max(b[1], 0)))]

def requantize(s, inputs, arrays, n_bits):
    limits, xs, terms = (-(1 << (n_bits - 1)), (1 << (n_bits - 1)) - 1), list(inputs), []
    if "residual" in arrays:  # constants: for each channel the values that occur
        values, shape = arrays["residual"]; xs.append([sorted(set(values[c :: shape[-1]])) for c in range(shape[-1])])
    channels = max(*map(len, xs), *(len(v) for k, (v, _) in arrays.items() if k != "residual"))
    for x, p in zip(xs, ("", "residual_")):
        (m, _), (e, _) = arrays[f"{p}m"], arrays[f"{p}e"]
        products = [product((at(m, c),), (at(x, c)[0], at(x, c)[-1])) for c in range(channels)]
        r = [rise(v, lambda w, c=c: shifted(w, at(e, c))) for c, v in enumerate(products)]
        s.say(f"{p}product", hull(products)); s.clamp(f"{p}rounded to s64", s.say(f"{p}rounded", hull(r)), WORD)
        s.say(f"{p}shift", (min(e), max(e))); terms.append((p, x, m, e, r))
    words = [[clip(v, WORD) for v in term[4]] for term in terms]
    totals = words[0] if len(words) == 1 else [(a[0] + b[0], a[1] + b[1]) for a, b in zip(*words)]
    if len(terms) == 2: s.say("total", hull(totals))
    for side, never in (("below", hull(totals)[0] >= limits[0]), ("above", hull(totals)[1] <= limits[1])):
        s.note("clamps", f"y {side}", *hull(totals), never)
    others = [*terms[1:], *terms[:1]] if len(terms) == 2 else [None]
    for (p, x, m, e, _), other in zip(terms, others) if words == [term[4] for term in terms] else ():
        ties, decided = [], True
        for c in range(channels):
            spans, meets = [(v, v) for v in at(x, c)] if isinstance(x[0], list) else [at(x, c)], [(0, 0)]
            if other: meets = [other[4][c]]
            if other and isinstance(other[1][0], list):
                meets = [(v, v) for w in at(other[1], c) for v in [shifted(w * at(other[2], c), at(other[3], c))]]
            windows = [(limits[0] - v[1], limits[1] - 1 - v[0]) for v in meets]
            found = [t for i in spans if (t := tie_of(i, at(m, c), at(e, c), windows)) is not None]
            if found:
                ties.append((c, min(found, key=lambda t: (abs(t), -t)))); big = (1 << n_bits) - 1
                if other and not isinstance(other[1][0], list):  # it must not step over the codes of the output
                    decided &= abs(at(other[2], c)) < (big << at(other[3], c) if at(other[3], c) >= 0 else 1)
        first = min(ties, key=lambda t: (abs(t[1]), -t[1], t[0])) if ties else (None, None)
        if decided: s.note("ties", f"{p}rounded", channels, len(ties), *first)
    return [clip(t, limits) for t in totals]

def softmax(s, method, p, n):
    """exponential * factor >> shift, sum * factor at most 2**32 or 2**31 - 1, or factor 1 where the sum clamps."""
    if method == "fqvit": s.row_sum = 3 << 14; return [(-1, (1 << p["bits"]) - 1)]  # weights 2**(15 - code)
    shift, top = 32 - p["out_bits"], -p["x0"] << p["n"]
    s.row_sum = 1 << p["out_bits"] if method == "ibert" else max(M31, n * top) >> shift
    if method == "ivit": return [(0, max(M31, top) >> shift)]
    tops = [min(shifted((p["c"] << k) * p["m"], p["e"]), 32767) for k in (p["n"], 0)]
    return [(0, max(h * (2**32 // max(h, 1)) for h in tops) >> shift)]

def norm(s, shift, bias):
    """abs(d) <= root and factor <= (2**31 - 1) / root; I-BERT's root is of d >> shift, so that d < root + 2**shift."""
    v = s.say("normalized", (-(2**30), 2**30 - 1 if shift is None else (2**32 - (2**31 >> shift)) >> 1))
    if bias: s.say("bias", (min(bias), max(bias)))
    return [(v[0] + b, v[1] + b) for b in bias or [0]]

def moved(node, boxes, arrays, shapes):
    """A layout operator: channels stay channels, or one interval holds all."""
    before, after, a = shapes[node["inputs"][0]], shapes[node["output"]], node["attrs"]
    keeps = {"reshape": before[-1] == after[-1], "transpose": a.get("perm", [0])[-1] == len(before) - 1}
    if not keeps.get(node["op"], a.get("axis") != len(before) - 1):
        return [hull([*(hull(b) for b in boxes), *((min(v), max(v)) for v, _ in arrays.values())])], False
    boxes += [[(min(v[c :: s[-1]]), max(v[c :: s[-1]])) for c in range(s[-1])] for v, s in arrays.values()]
    if len(boxes) == 1: return boxes[0], True
    return [hull([at(b, c) for b in boxes]) for c in range(max(map(len, boxes)))], True

def derive(graph, arrays):
    """(claims by kind, the sites whose outputs are taken as declared)"""
    tensors, found = {t["name"]: t for t in graph["tensors"]}, {kind: {} for kind in KINDS}
    shapes, sums, declared = {name: t["shape"] for name, t in tensors.items()}, {}, []
    def typed(name):
        bound, word = tensors[name]["bound"], 1 << (int(tensors[name]["dtype"][1:]) - 1)
        return [(-word, word - 1) if bound is None else both((-word, word - 1), (-bound, bound))]
    boxes = {name: typed(name) for name in graph["inputs"]}
    for node in graph["nodes"]:
        op, attrs, out, source, name = (*(node[k] for k in ("op", "attrs", "output")), node["inputs"][0], node["name"])
        s, x, n, y = Site(found, name), [boxes[k] for k in node["inputs"]], shapes[source][-1], None
        if op in LAYOUT:
            kept, (boxes[out], whole) = [sums.get(k) for k in node["inputs"]], moved(node, x, arrays[name], shapes)
            sums[out] = max(kept) if whole and None not in kept and not arrays[name] else None
            continue
        if op == "linear": y = linear(s, x[0], arrays[name])
        if op == "log2_matmul":
            low, high = hull(x[0])
            x[0] = [s.say("weight", (0 if low < 0 else 1 << (15 - high), 1 << (15 - max(low, 0)) if high >= 0 else 0))]
        if op in ("matmul", "log2_matmul"): y = matmul(s, hull(x[0]), hull(x[1]), n, sums.get(source))
        if op == "mean":
            count, along_last = shapes[source][attrs["axis"]], attrs["axis"] == len(shapes[source]) - 1
            parts = [(count * v[0], count * v[1]) for v in ([hull(x[0])] if along_last else x[0])]
            s.say("sum", hull(parts)); y = [rise(v, lambda w, count=count: divided(w, count)) for v in parts]
        if op == "requantize" and "numerics" not in attrs: y = requantize(s, x, arrays[name], attrs["bits"])
        if attrs.get("method") in METHODS.get(op, ()) and attrs["version"] == 1:
            bias, p = arrays[name]["bias"][0] if op == "layernorm" else None, attrs["params"]
            y = softmax(s, attrs["method"], p, n) if op == "softmax" else norm(s, p.get("shift"), bias)
        if y is None: declared.append(name)
        elif "numerics" in attrs and tensors[out]["bound"] is None:  # an accumulator of a stated width
            s.note("clamps", "accumulator", *hull(y), both(hull(y), typed(out)[0]) == hull(y)); y = None
        else: s.say("y", hull(y), int(tensors[out]["dtype"][1:]))
        boxes[out], sums[out] = one(y or typed(out)), s.row_sum
    return found, sorted(declared)

def constants(path, certificate):
    """(arrays by node and key, sha256 of graph and arrays as intvit defines the content hash of a graph)"""
    if hashlib.sha256(path.read_bytes()).hexdigest() != certificate["constants"]["sha256"]: raise ValueError("sha256")
    graph, nodes = json.dumps(certificate["graph"], sort_keys=True).encode(), certificate["graph"]["nodes"]
    total, arrays = hashlib.sha256(graph), {node["name"]: {} for node in nodes}
    with zipfile.ZipFile(path) as archive:
        for i, (name, key) in enumerate((node["name"], key) for node in nodes for key in sorted(node["arrays"])):
            npy = archive.read(f"{i:05d}.npy"); start = 10 + int.from_bytes(npy[8:10], "little")
            header = ast.literal_eval(npy[10:start].decode()); shape = list(header["shape"])
            values = array({"|i1": "b", "<i2": "h", "<i4": "i", "<i8": "q"}[header["descr"]], npy[start:])
            if len(values) != prod(shape) or header["fortran_order"]: raise ValueError(f"{name}/{key}")
            digest = hashlib.sha256(f"<i8{shape}".encode() + array("q", values).tobytes()).hexdigest()
            total.update(f"{name}/{key} {digest}\n".encode()); arrays[name][key] = values, shape
    return arrays, total.hexdigest()

def main(path):
    certificate = json.loads(path.read_text())
    if set(certificate) != {*KEYS, *KINDS} or certificate["format"] != "intvit.certificate": raise ValueError("format")
    arrays, content = constants(path.with_name(certificate["constants"]["file"]), certificate)
    if certificate["content_hash"] != content: raise ValueError(f"content_hash must be {content}")
    found, declared = derive(certificate["graph"], arrays)
    checks = [("declared", certificate["declared"], declared), ("version", certificate["version"], 1)]
    for kind in KINDS:
        claimed = {tuple(c[:2]): c[2:] for c in certificate[kind]}
        keys = dict.fromkeys([*found[kind], *claimed]); checks.append((kind, len(certificate[kind]), len(found[kind])))
        checks += [(" ".join((kind, *key)), claimed.get(key), found[kind].get(key)) for key in keys]
    wrong = next((c for c in checks if json.dumps(c[1]) != json.dumps(c[2])), None)
    print(path, f"{wrong[0]}: {wrong[1]} claimed, {wrong[2]} derived" if wrong else f"{len(checks)} claims hold")
    return int(wrong is not None)

if __name__ == "__main__":
    try: sys.exit(main(Path(sys.argv[1])))
    except Exception as error:
        print(f"{sys.argv[1:]}: not a certificate: {type(error).__name__}: {error}", file=sys.stderr); sys.exit(2)
