"""Replay golden cases against RTL: constants as a package, memories, a SystemVerilog bench and a cocotb bench.

docs/rtl.md walks through it and states the contract of a top module.
"""

from intvit.vectors.bench.replay import Outcome, Report, bench
from intvit.vectors.bench.top import Top, read_top
from intvit.vectors.bench.write import Job, write_bench

__all__ = ["Job", "Outcome", "Report", "Top", "bench", "read_top", "write_bench"]
