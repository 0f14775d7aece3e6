"""The RTL of golden/rtl in simulators: real sites and corners bit by bit, broken modules, flipped bits, the command."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from rtl_cases import RTL, corners, handmade, job, real, requantizations, rows_of, two_sites

from intvit.errors import IntvitError
from intvit.graph.store import save
from intvit.lowering.recipe import build_recipe
from intvit.vectors.bench import bench, read_top, simulate, write_bench
from intvit.vectors.bench.constants import constants, identifier

TOPS = ("requantize", "requantize_add", "softmax_ivit", "softmax_ibert", "softmax_fqvit", "gelu_ivit", "gelu_ibert",
        "layernorm_ivit", "layernorm_ibert", "layernorm_fqvit", "linear", "matmul", "log2_matmul")  # fmt: skip
NARROW = {"preset": "published", "bits": 8}
WIDE = {"preset": "accurate", "bits": 8, "quantizers": {kind: {"input_bits": 16} for kind in ("softmax", "gelu")}}
"""8 and 16 bits in front of Softmax and GELU."""


def needs(simulator, *benches):
    why = simulate.missing(simulator, benches)
    return pytest.mark.skipif(why is not None, reason=why or "")


needs_verilator = needs("verilator", "sv")
BROKEN = {
    "half_up": ("requantize", "E_MIN < 0, ROUNDING", "E_MIN < 0, 1"),
    "half_away": ("requantize", "E_MIN < 0, ROUNDING", "E_MIN < 0, 2"),
    "wrap": ("requantize", "saturate #(64, BITS, M0_BITS) clamp (term, y)", "assign y = M0_BITS'(term)"),
    "no_clamp": ("softmax_ivit", "sum > SUM_MAX ? SUM_MAX[31:0] : sum[31:0]", "sum[31:0]"),
    "toward_zero": ("layernorm_ibert", "product >>> 1", "product / 2"),
}
"""A module of golden/rtl, one of its lines, and what stands there instead."""

HEADER = """module {name} #(parameter int S0_BITS = 8, parameter int M0_BITS = 8) (
  input logic clk, input logic rst,
  input logic [S0_BITS-1:0] s0_axis_tdata, input logic s0_axis_tvalid, output logic s0_axis_tready,
  input logic s0_axis_tlast,
  output logic [M0_BITS-1:0] m0_axis_tdata, output logic m0_axis_tvalid, input logic m0_axis_tready,
  output logic m0_axis_tlast);
{body}
endmodule
"""
ECHO = "assign m0_axis_tdata = s0_axis_tdata; assign s0_axis_tready = m0_axis_tready;"
PASSED = "assign m0_axis_tvalid = s0_axis_tvalid; assign m0_axis_tlast = s0_axis_tlast;"
LATE = f"""{ECHO} assign m0_axis_tlast = s0_axis_tlast; int seen = 0, quiet = 0;
  always_ff @(posedge clk) begin
    if (s0_axis_tvalid && m0_axis_tready) seen <= seen + 1;
    if (seen == 60) quiet <= quiet + 1;
  end
  assign m0_axis_tvalid = s0_axis_tvalid || quiet > 900;"""
DISHONEST = {
    "silent": ("TIMEOUT", "assign m0_axis_tvalid = 0; assign s0_axis_tready = 1;"),
    "waits": (
        "TIMEOUT",
        f"{ECHO} assign m0_axis_tlast = s0_axis_tlast; assign m0_axis_tvalid = s0_axis_tvalid && m0_axis_tready;",
    ),
    "endless": ("TLAST", f"{ECHO} assign m0_axis_tvalid = s0_axis_tvalid; assign m0_axis_tlast = 0;"),
    "more": (
        "EXTRA",
        f"""{ECHO} assign m0_axis_tlast = s0_axis_tlast; int seen = 0;
      always_ff @(posedge clk) if (s0_axis_tvalid && m0_axis_tready) seen <= seen + 1;
      assign m0_axis_tvalid = s0_axis_tvalid || seen == 60;""",
    ),
    "late": ("EXTRA", LATE),
    "changes": ("UNSTABLE", f"assign m0_axis_tdata = s0_axis_tdata; assign s0_axis_tready = 1; {PASSED}"),
    "knows": (
        "UNREAD",
        """byte n; assign s0_axis_tready = 0; assign m0_axis_tdata = n; assign m0_axis_tvalid = n < 30;
      always_ff @(posedge clk) if (rst) n <= -30; else if (m0_axis_tvalid && m0_axis_tready) n <= n + 1;
      assign m0_axis_tlast = (n + 31) % 10 == 0;""",
    ),
}
"""What a bench must say of a module that computes nothing wrong and breaks the protocol."""

TWO_SITES = """module two_sites #(
  parameter int S0_BITS, parameter int S0_ROW, parameter int M0_BITS, parameter int M0_ROW, parameter int M1_BITS,
  parameter A_FC_WEIGHT_FILE = "", parameter int A_FC_WEIGHT_BITS, parameter A_FC_BIAS_FILE = "",
  parameter int A_FC_BIAS_WORDS, parameter int A_FC_BIAS_BITS, parameter int A_Q_BITS,
  parameter A_Q_M_FILE = "", parameter int A_Q_M_BITS, parameter A_Q_E_FILE = "", parameter int A_Q_E_BITS
) (
  input logic clk, input logic rst,
  input logic [S0_BITS-1:0] s0_axis_tdata, input logic s0_axis_tvalid, output logic s0_axis_tready,
  input logic s0_axis_tlast,
  output logic [M0_BITS-1:0] m0_axis_tdata, output logic m0_axis_tvalid, input logic m0_axis_tready,
  output logic m0_axis_tlast,
  output logic [M1_BITS-1:0] m1_axis_tdata, output logic m1_axis_tvalid, input logic m1_axis_tready,
  output logic m1_axis_tlast);
  wire valid, last, ready, space;
  logic taken;  // the first output has its word, the second waits for space
  linear #(.S0_BITS(S0_BITS), .S0_ROW(S0_ROW), .M0_BITS(M0_BITS), .M0_ROW(M0_ROW), .WEIGHT_FILE(A_FC_WEIGHT_FILE),
           .WEIGHT_BITS(A_FC_WEIGHT_BITS), .BIAS_FILE(A_FC_BIAS_FILE), .BIAS_WORDS(A_FC_BIAS_WORDS),
           .BIAS_BITS(A_FC_BIAS_BITS)) product (clk, rst, s0_axis_tdata, s0_axis_tvalid, s0_axis_tready, s0_axis_tlast,
           m0_axis_tdata, valid, ready, last);
  requantize #(.S0_BITS(M0_BITS), .M0_BITS(M1_BITS), .BITS(A_Q_BITS), .M_FILE(A_Q_M_FILE), .M_BITS(A_Q_M_BITS),
               .E_FILE(A_Q_E_FILE), .E_BITS(A_Q_E_BITS)) scaling (clk, rst, m0_axis_tdata, valid && taken, space, last,
               m1_axis_tdata, m1_axis_tvalid, m1_axis_tready, m1_axis_tlast);
  assign m0_axis_tvalid = valid && !taken;
  assign m0_axis_tlast = last;
  assign ready = taken && space;
  always_ff @(posedge clk)
    if (rst) taken <= 0;
    else if (m0_axis_tvalid && m0_axis_tready) taken <= 1;
    else if (valid && ready) taken <= 0;
endmodule
"""


def broken(folder, name):
    module, line, instead = BROKEN[name]
    text = (RTL / f"{module}.sv").read_text()
    assert text.count(line) == 1
    (folder / f"{name}.sv").write_text(text.replace(line, instead).replace(f"module {module} ", f"module {name} "))
    return name


def documented(folder):
    """The requantizer of docs/rtl.md as it stands there, and with the lines that mend it: their names."""
    text = (RTL.parents[1] / "docs" / "rtl.md").read_text()
    module, mended = re.search(r"```\n(module my_requantize.*?)```.*?```\n(  wire.*?)```", text, re.DOTALL).groups()
    (shift,) = [line for line in module.splitlines() if "a bug" in line]
    for name, each in (("my_requantize", module), ("my_mended", module.replace(f"{shift}\n", mended))):
        (folder / f"{name}.sv").write_text(each.replace("module my_requantize", f"module {name}"))
    return "my_requantize", "my_mended"


def identity(name="identity"):
    """A requantization by 1, which a wire computes."""
    x = np.arange(-30, 30).reshape(6, 10)
    return handmade(name, "requantize", x, 8, arrays={"m": [1 << 30], "e": [30]}, bits=8)


@needs_verilator
def test_modules_and_broken_modules(vit, tmp_path):
    """One simulation: every module on a real site and in its corners, and every way to break one found."""
    cases = [c for recipe, prefix in ((NARROW, "narrow"), (WIDE, "wide")) for c in chosen(vit, recipe, prefix)]
    cases += [c for c in corners() if c.name in CORNERS]
    ties = next(c for c in corners() if c.name == "requantize ties")
    on = {"softmax_ivit": "softmax ivit clamped sum", "layernorm_ibert": "layernorm ibert 16"}
    known = {c.name: c for c in corners()}
    bad = {name: known.get(on.get(BROKEN[name][0], ""), ties) for name in BROKEN}
    (tmp_path / "two_sites.sv").write_text(TWO_SITES)
    cases.append(two_sites())
    jobs = [*map(job, cases[:-1]), job(cases[-1], "two_sites", tmp_path)]
    jobs += [job(case, broken(tmp_path, name), tmp_path) for name, case in bad.items()]
    jobs += [job(ties, name, tmp_path) for name in documented(tmp_path)]
    for name, (_, body) in DISHONEST.items():
        (tmp_path / f"{name}_top.sv").write_text(HEADER.format(name=f"{name}_top", body=body))
        jobs.append(job(identity(name), f"{name}_top", tmp_path))
    report = bench(jobs, benches=["sv"], selftest=True, timeout=20_000, seed=3, stall=30)
    n = len(cases)
    assert [(o.case, o.said) for o in report.outcomes[:n] if not o.passed] == []
    assert [f for f in report.flips[: n + 1] if not f.found] == []
    assert [f.file for f in report.flips[n - 1 : n + 1]] == ["two_sites/m0.hex", "two_sites/m1.hex"]
    assert {j.top.name for j in jobs[: n - 1]} == set(TOPS)
    widths = {(c.part.nodes[0].op, next(iter(c.part.tensors.values())).dtype.bits) for c in cases if " " in c.name}
    assert {("softmax", 8), ("softmax", 16), ("gelu", 8), ("gelu", 16), ("layernorm", 16)} <= widths
    assert [name for name, o in zip(bad, report.outcomes[n:], strict=False) if o.passed] == []
    assert all(o.said[0].startswith("MISMATCH") for o in report.outcomes[n : n + len(bad)])
    rest = report.outcomes[n + len(bad) :]
    assert [o.passed for o in rest[:2]] == [False, True], rest[:2]
    for (name, (said, _)), outcome in zip(DISHONEST.items(), rest[2:], strict=True):
        assert not outcome.passed
        assert any(line.startswith(said) for line in outcome.said), (name, outcome)
    assert not report.passed


CORNERS = ("softmax ivit masked", "softmax ivit clamped sum", "softmax ibert left shift", "softmax fqvit masked",
           "gelu ivit steep", "gelu ibert channels", "layernorm ivit 8", "layernorm ibert 8", "layernorm fqvit 16",
           "requantize ties", "requantize half_away", "requantize toward_zero", "requantize channels",
           "add streams", "add memory", "linear without bias")  # fmt: skip


def chosen(vit, recipe, prefix):
    """Few sites of three models, so that all modules and both widths of inputs are there."""
    sites = {
        "ivit": ("norm1", "attn.softmax", "mlp.act"),
        "ibert": ("norm1", "norm1.quant", "attn.softmax", "attn.matmul_av", "mlp.act", "add1"),
        "fqvit": ("norm1", "attn.softmax", "attn.matmul_av", "attn.qkv"),
    }
    for method, names in sites.items():
        gelu = {"method": "ivit" if method != "ibert" else "ibert"}
        kept = [n for n in names if prefix == "narrow" or n in ("attn.softmax", "mlp.act")]
        yield from real(vit, 0, f"{prefix} {method}", kept, softmax={"method": method}, gelu=gelu,
                        layernorm={"method": method}, **recipe)  # fmt: skip


@pytest.mark.slow
@needs_verilator
@pytest.mark.parametrize("part", ["corners", "ivit", "ibert", "fqvit"])
def test_everything(vit, part):
    """Every corner, and every kind of site of two blocks of each model in both widths."""
    if part == "corners":
        cases = list(corners())
    else:
        methods = {"softmax": {"method": part}, "layernorm": {"method": part}}
        methods["gelu"] = {"method": "ivit" if part == "fqvit" else part}
        cases = [
            case
            for block in (0, 2)
            for prefix, recipe in (("narrow", NARROW), ("wide", WIDE))
            for case in real(vit, block, f"{prefix} {block}", **methods, **recipe)
        ]
    report = bench([job(case) for case in cases], benches=["sv"], selftest=True, timeout=20_000)
    assert report.passed, [line for line in report.lines() if not line.startswith("PASS")]


@needs("icarus", "sv")
def test_icarus():
    cases = [c for c in corners() if c.name in CORNERS and "fqvit 16" not in c.name]
    report = bench([job(case) for case in cases], simulator="icarus", benches=["sv"], timeout=20_000)
    assert report.passed, report.lines()


RESULT = "CASE 0 identity PASS words=60 errors=0 cycles=99 key=0"
SILENT = {
    "finish": ("always @(posedge clk) if (s0_axis_tvalid) $finish;", "no result: "),
    "claims": (
        f"""always @(posedge clk) if (s0_axis_tvalid) begin
      $display("{RESULT}"); $display("RESULT PASS words=60 cycles=99 key=0"); $finish; end""",
        "no result: ",
    ),
    "unknown": (f"{ECHO} assign m0_axis_tlast = 0;", "UNKNOWN"),
    "x": ("assign m0_axis_tdata = 'x; assign s0_axis_tready = m0_axis_tready;" + PASSED, "MISMATCH"),
}
"""Modules that end the simulation, leave a port open, or answer with X, and what is said of them."""


@needs("icarus", "sv")
@pytest.mark.parametrize("name", SILENT)
def test_what_says_nothing_does_not_pass(name, tmp_path):
    body, said = SILENT[name]
    (tmp_path / f"{name}_top.sv").write_text(HEADER.format(name=f"{name}_top", body=body))
    jobs = [job(identity(), f"{name}_top", tmp_path)]
    report = bench(jobs, simulator="icarus", benches=["sv"], selftest=True, timeout=2000)
    (outcome,) = report.outcomes
    assert not report.passed
    assert not outcome.passed
    assert outcome.said[0].startswith(said)
    assert not any(flip.found for flip in report.flips)


@needs("icarus", "cocotb")
@pytest.mark.parametrize(
    ("name", "said"),
    [("late", "EXTRA late m0: "), ("knows", "UNREAD knows s0: "), ("x", "UNKNOWN x or z in "),
     ("silent", "TIMEOUT silent m0 row 0 after 2000 cycles")],
)  # fmt: skip
def test_what_the_cocotb_bench_says(name, said, tmp_path):
    body = (DISHONEST if name in DISHONEST else SILENT)[name][name in DISHONEST]
    (tmp_path / f"{name}_top.sv").write_text(HEADER.format(name=f"{name}_top", body=body))
    report = bench([job(identity(name), f"{name}_top", tmp_path)], simulator="icarus", benches=["cocotb"], timeout=2000)
    (outcome,) = report.outcomes
    assert not outcome.passed
    assert [line.startswith(said) for line in outcome.said] == [True], outcome.said


@needs("icarus", "sv")
def test_folders_of_any_name(tmp_path):
    place = tmp_path / "a b (c) $d"
    place.mkdir()
    (place / "echo.sv").write_text(HEADER.format(name="echo", body=ECHO + PASSED))
    for case in (identity('end\n"$%s'), identity("é" * 300)):
        report = bench([job(case, "echo", place)], simulator="icarus", benches=["sv"], keep=place / "kept")
        assert report.passed, report.lines()
        (place / "kept").rename(place / f"kept{len(case.name)}")


@needs("verilator", "cocotb")
def test_the_command(vit, cli, tmp_path):
    """A bundle by the cocotb bench, in words of 32 bits, and a kept folder that needs no intvit."""
    save(vit.lower(build_recipe({**NARROW, "softmax": {"method": "ivit"}})), tmp_path / "g.h5")
    export = ["golden", "export", tmp_path / "g.h5", "fashion-mnist:test", "--site", "pos_drop", "--site", "*.add1"]
    assert cli(*export, "--count", "2", "-o", tmp_path / "v")[0] == 0
    command = ["golden", "bench", tmp_path / "v", "--top", RTL / "requantize_add.sv", "--bench", "cocotb"]
    status, out, err = cli(*command, "--case", "pos_drop", "--case", "blocks.0.add1", "--word", "32", "--selftest",
                           "--keep", tmp_path / "kept", "--stall", "40")  # fmt: skip
    assert status == 0, err
    assert out.splitlines()[-2:] == [
        f"2 cases, cocotb, {simulate.version('verilator')}: {4 * 50 * 96} words compared, every bit equal",
        "2 flipped bits, 2 found",
    ]
    words = (tmp_path / "kept" / "pos_drop" / "m0.hex").read_text().splitlines()
    assert len(words) == 1 + 2 * 50 * 96
    assert {len(word) for word in words[1:]} == {8}
    again = [sys.executable, "run_cocotb.py", "verilator", "run"]
    kept = tmp_path / "kept"
    expected = kept / "blocks_0_add1" / "m0.hex"
    expected.write_text(expected.read_text().replace(words[0][:2], "//", 1))
    for text, failed in ((expected.read_text(), "0"), (expected.read_text()[:-2] + "g", "1")):
        expected.write_text(text.replace("g", "0" if text[-2] != "0" else "1"))
        subprocess.run(again, cwd=kept, capture_output=True, check=False)
        assert f'failures="{failed}"' in (kept / "results.xml").read_text()


# --------------------------------------------------------------------------------------------- without a simulator


def test_constants_of_a_case():
    case = next(c for c in corners() if c.name == "softmax ibert masked")
    found = {c.name: c for c in constants(case.part, 1, "f")}
    assert found["X0"].declared == "logic signed [4:0] X0 = -5'sd14"
    assert found["M"].declared == "logic signed [31:0] M = 32'sd1970390814"
    shown = {
        name: found[name].value for name in ("S0_BITS", "S0_ROW", "S0_ROWS", "S0_WORDS", "MASK_WORDS", "MASK_FILE")
    }
    assert shown == {
        "S0_BITS": 8,
        "S0_ROW": 7,
        "S0_ROWS": 8,
        "S0_WORDS": 56,
        "MASK_WORDS": 7,
        "MASK_FILE": "f/mask.hex",
    }
    assert found["EXP_BITS"].value == (1116 << 30).bit_length()


def test_fixed_words_are_sign_extended(tmp_path):
    case = next(c for c in requantizations() if c.name == "requantize channels")
    written = write_bench(tmp_path / "w", [job(case, word=40)])[0]
    assert (tmp_path / "w" / written.ident / "m.hex").read_text().splitlines()[2] == "ff80000000"
    assert {c.value for c in written.constants if c.name.endswith("_BITS")} == {40}
    with pytest.raises(IntvitError, match="x0: word must have 32 bits at least, not 16"):
        write_bench(tmp_path / "x", [job(case, word=16)])


def test_a_memory_that_does_not_repeat_is_written_out(tmp_path):
    x = rows_of(8, 3)[:4].reshape(2, 2, 3)
    arrays = {"m": [1 << 30], "e": [30], "residual": [[[5], [6]]], "residual_m": [1 << 30], "residual_e": [30]}
    case = handmade("residual by row", "requantize", x, 8, arrays=arrays, bits=8)
    written = write_bench(tmp_path / "w", [job(case)])[0]
    words = (tmp_path / "w" / written.ident / "residual.hex").read_text().splitlines()[1:]
    assert [int(word, 16) for word in words] == [5, 5, 5, 6, 6, 6] * 2


@pytest.mark.parametrize(
    ("text", "parameters"),
    [
        ("module t (input clk);", {}),
        ("module t #(parameter int A = f(1, 2), localparam C = 2, parameter D) (", {"A": True, "D": False}),
        ("module t #(parameter A = 1, B = 2) (", {"A": True, "B": True}),
        ("/* module t #(parameter X) */ module t import p::*; #(\n parameter F = \"a,)\" // , G = 2\n) (", {"F": True}),
        ("module u; endmodule module t #(parameter logic signed [7:0] Q [0:1] = '{1, 2}) (", {"Q": True}),
    ],
)  # fmt: skip
def test_header_of_a_top(tmp_path, text, parameters):
    (tmp_path / "t.sv").write_text(text)
    assert read_top(tmp_path / "t.sv").parameters == parameters


def test_identifiers_are_plain_and_differ(tmp_path):
    assert [identifier(name) for name in ("../é", "9", "endmodule", "a.b", "a_b", "")][1:] == [
        "c_9", "endmodule", "a_b", "a_b", "case",
    ]  # fmt: skip
    written = write_bench(tmp_path / "w", [job(identity("a.b")), job(identity("a_b")), job(identity("a_b_2"))])
    assert len({each.ident for each in written}) == 3
    cases = json.loads((tmp_path / "w" / "bench.json").read_text())["cases"]
    assert [case["name"] for case in cases] == ["a.b", "a_b", "a_b_2"]


def test_the_contract_names_what_there_is():
    """Constants of the table in docs/rtl.md, and the tops of golden/rtl in its README."""
    text = (RTL.parents[1] / "docs" / "rtl.md").read_text()
    table = re.findall(r"^\| (`[^|]*) \|", text[text.index("| constant") :].partition("\n\n")[0], re.MULTILINE)
    named = {name for cell in table for name in re.findall(r"`(\w+)`", cell)}
    found = {c.name for case in corners() for c in constants(case.part, 1, "f")}
    assert named == named & found
    assert {"X0", "ROUNDING", "EXP_BITS", "ACC_BITS", "BIAS_MIN"} <= named
    readme = set(re.findall(r"^\| `(\w+)`", (RTL / "README.md").read_text(), re.MULTILINE))
    assert {path.stem for path in RTL.glob("*.sv")} - readme == {"int_exp"}  # stands beside shift_exp
    assert set(TOPS) <= readme


def test_bad_input_is_one_line(vit, cli, tmp_path):
    save(vit.lower(build_recipe(NARROW)), tmp_path / "g.h5")
    assert (
        cli("golden", "export", tmp_path / "g.h5", "fashion-mnist:test", "--site", "pos_drop", "-o", tmp_path / "v")[0]
        == 0
    )
    (tmp_path / "other.sv").write_text("module another (input clk); endmodule")
    (tmp_path / "needs.sv").write_text("module needs #(parameter int X0) (input clk, input rst); endmodule")
    (tmp_path / "open.sv").write_text("module open #(parameter int X0 = (3 (input clk); endmodule")
    (tmp_path / "bench.sv").write_text("module bench (input clk, input rst); endmodule")
    good = RTL / "requantize_add.sv"
    for top, more, words in (
        (tmp_path / "none.sv", [], "none.sv: no such file"),
        (tmp_path / "other.sv", [], "must hold module other, and does not"),
        (tmp_path / "needs.sv", [], "parameter X0 must have a default or be a constant of the case pos_drop"),
        (tmp_path / "open.sv", [], "must have a parameter list that ends"),
        (tmp_path / "bench.sv", [], "must not have the name of a module of the bench"),
        (good, ["--case", "nope"], "--case nope: must match a case"),
        (good, ["--stall", "100"], "stall: must lie in 0..95, not 100"),
        (good, ["--simulator", "vcs"], "simulator: must be one of verilator, icarus, not 'vcs'"),
        (good, ["--bench", "uvm"], "bench: must be one of sv, cocotb, not 'uvm'"),
        (good, ["--word", "8"], "word must have 16 bits at least, not 8"),
        (good, ["--word", "65"], "word must have 64 bits at most, not 65"),
    ):
        if why := simulate.missing("verilator"):
            pytest.skip(why)
        status, out, err = cli("golden", "bench", tmp_path / "v", "--top", top, *more)
        assert (status, out) == (2, ""), err
        assert words in " ".join(err.split())
        assert len(err.strip().splitlines()) == 1, err
    (archive,) = (tmp_path / "v").rglob("case.npz")
    data = archive.read_bytes()
    archive.write_bytes(data[:-200] + bytes([data[-200] ^ 1]) + data[-199:])
    status, out, err = cli("golden", "bench", tmp_path / "v", "--top", good)
    assert (status, out, len(err.strip().splitlines())) == (2, "", 1), err


@needs_verilator
def test_a_top_that_does_not_compile_is_bad_input(tmp_path):
    (tmp_path / "wrong.sv").write_text("module wrong (input clk, input rst); assign nothing = elsewhere; endmodule")
    with pytest.raises(IntvitError, match=r"verilator: must compile the sv bench, and says: %Error.*wrong.sv"):
        bench([job(identity(), "wrong", tmp_path)], benches=["sv"])
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "wrong.sv").write_text("module wrong (input clk); endmodule")
    with pytest.raises(IntvitError, match=r"a b/wrong\.sv: must be a path without spaces, which make cannot read"):
        bench([job(identity(), "wrong", tmp_path / "a b")], benches=["sv"])


@needs_verilator
@pytest.mark.parametrize("module", TOPS)
def test_modules_are_free_of_what_does_not_synthesize(module):
    """No latch, no loop, no signal with two drivers, no blocking assignment in a register."""
    quiet = ("WIDTH", "UNUSED", "PINCONNECTEMPTY", "GENUNNAMED", "UNDRIVEN", "VARHIDDEN")
    command = ["verilator", "--lint-only", "-Wall", *(f"-Wno-{name}" for name in quiet), "-y", str(RTL)]
    status, said = simulate.ask([*command, str(RTL / f"{module}.sv")])
    assert (status, [line for line in said.splitlines() if line.startswith("%")]) == (0, [])
