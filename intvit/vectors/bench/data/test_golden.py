"""The cocotb bench of golden cases: every stream of every case, row by row, with seeded stalls. It needs no intvit.

bench.json says what there is; GOLDEN_SEED and GOLDEN_STALL (percent) say how, GOLDEN_ONLY which case.
"""

import json
import logging
import os
import random
import sys
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.simtime import get_sim_time
from cocotb.triggers import ClockCycles, SimTimeoutError, with_timeout
from cocotbext.axi import AxiStreamBus, AxiStreamFrame, AxiStreamSink, AxiStreamSource

BENCH = json.loads(Path("bench.json").read_text())
SEED, STALL = int(os.environ.get("GOLDEN_SEED", "1")), int(os.environ.get("GOLDEN_STALL", "0"))
ONLY = os.environ.get("GOLDEN_ONLY", "")
PERIOD = 10


def words(stream):
    """The words of a stream, row by row, as unsigned numbers."""
    lines = Path(stream["file"]).read_text().splitlines()
    values = [int(line, 16) for line in lines if line and not line.startswith("//")]
    return [values[at : at + stream["row"]] for at in range(0, len(values), stream["row"])]


def pauses(salt):
    """One bool a cycle, from the seed."""
    generator = random.Random(SEED * 1000 + salt)
    while True:
        yield generator.randrange(100) < STALL


async def replay(dut, index, case):
    logging.getLogger(f"cocotb.{dut._name}").setLevel(logging.ERROR)  # else every row is written out
    cocotb.start_soon(Clock(dut.clk, PERIOD, unit="ns").start())
    dut.rst.value = 1
    for other, each in enumerate(BENCH["cases"]):
        for stream in each["stimuli"]:
            getattr(dut, f"c{other}_{stream['port']}_axis_tvalid").value = 0
        for stream in each["expected"]:
            getattr(dut, f"c{other}_{stream['port']}_axis_tready").value = 0
    await ClockCycles(dut.clk, 3)
    sources, sinks = [], []
    for kind, streams, made in ((AxiStreamSource, "stimuli", sources), (AxiStreamSink, "expected", sinks)):
        for stream in case[streams]:
            bus = AxiStreamBus.from_prefix(dut, f"c{index}_{stream['port']}_axis")
            end = kind(bus, dut.clk, dut.rst, byte_lanes=1)
            end.set_pause_generator(pauses(stream["salt"]))
            end.assert_reset(True)  # else it only sees a reset that begins
            made.append((end, stream))
    await ClockCycles(dut.clk, 2)
    dut.rst.value = 0
    for end, _ in (*sources, *sinks):
        end.assert_reset(False)
    await ClockCycles(dut.clk, 1)
    for source, stream in sources:
        for row in words(stream):
            source.send_nowait(AxiStreamFrame(row))
    longest = 0
    for sink, stream in sinks:
        at = 0
        for number, row in enumerate(words(stream)):
            began = get_sim_time("ns")
            try:
                frame = await with_timeout(sink.recv(), BENCH["timeout"] * PERIOD, "ns")
            except SimTimeoutError:
                raise AssertionError(
                    f"TIMEOUT {case['ident']} {stream['port']} row {number} after {BENCH['timeout']} cycles"
                ) from None
            longest = max(longest, int((get_sim_time("ns") - began) / PERIOD))
            for column, (expected, got) in enumerate(zip(row, frame.tdata, strict=False)):
                assert got == expected, (
                    f"MISMATCH {case['ident']} {stream['port']} word {at + column} expected {expected:x} got {got:x}"
                )
            assert len(frame.tdata) == len(row), (
                f"TLAST {case['ident']} {stream['port']} row {number}: {len(frame.tdata)} words, not {len(row)}"
            )
            at += len(row)
    await ClockCycles(dut.clk, min(BENCH["timeout"], 1000 + 2 * longest))
    for sink, stream in sinks:
        if not (sink.empty() and sink.idle()):
            raise AssertionError(f"EXTRA {case['ident']} {stream['port']}: words too many")
    for source, stream in sources:
        if not (source.empty() and source.idle()):
            raise AssertionError(f"UNREAD {case['ident']} {stream['port']}: words were not taken")


def _test(index, case):
    async def run(dut):
        await replay(dut, index, case)

    run.__name__ = run.__qualname__ = f"case_{index}"
    return cocotb.test()(run)


for _index, _case in enumerate(BENCH["cases"]):
    if ONLY in ("", str(_index)):
        setattr(sys.modules[__name__], f"case_{_index}", _test(_index, _case))
