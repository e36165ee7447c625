"""Every CRF kernel cross-compiled for 64-bit Arm, and what NEON its assembly holds.

    python benchmarks/crf_aarch64.py                 # for a Neoverse N1
    python benchmarks/crf_aarch64.py --cpu generic

Kernels are compiled anew here (about a minute). The LLVM code of each is taken before it is
optimized as a whole for this machine (the kernels that it calls have been), then optimized and
translated for Arm. Ends with 1 where one cannot be, or where arithmetic on rows of four lanes or
more has become no NEON. Nothing is run: whether results are right on Arm, and how fast, is not
shown here.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from typing import Any

import llvmlite.binding as llvm
from numba.core.codegen import CPUCodeLibrary

TRIPLE = "aarch64-unknown-linux-gnu"
# arithmetic on rows of at least a register
WIDE = re.compile(r"= (?:fadd|fmul|fsub|fdiv)[a-z ]* <(?:4|8|16) x float>|fmuladd\.v(?:4|8|16)f32")
# four float32 lanes: sums, products and their like
NEON = re.compile(r"\bf(?:add|sub|mul|mla|mls|div|max|min|maxnm|minnm|neg|cmg[te])\s+v\d+\.4s")
X86 = re.compile(r"@llvm\.x86[\w.]*")
# what the reference counts of Numba's arrays, linked in, have become for this machine
COUNT_DOWN = re.compile(
    r"(%\S+) = (?:tail )?call i8 @llvm\.x86\.atomic\.sub\.cc\.i64"
    r"\(ptr(?: \w+)* (%\S+), i64 (\d+), i32 4\)(?: #\d+)?"
)


def compiled_code() -> dict[str, str]:
    """The LLVM code of every compiled kernel, as it is before optimization."""
    found: dict[str, str] = {}
    counts: dict[str, int] = {}
    optimize = CPUCodeLibrary._optimize_final_module

    def keep(library: Any) -> None:
        if library.name.startswith("_") or "latticecrf" not in str(library._final_module):
            return optimize(library)
        counts[library.name] = counts.get(library.name, 0) + 1
        found[f"{library.name} {counts[library.name]}"] = str(library._final_module)
        return optimize(library)

    CPUCodeLibrary._optimize_final_module = keep
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LATTICECRF_CACHE_DIR"] = folder
        from latticecrf.kernels.warm import warm_up

        warm_up()
    CPUCodeLibrary._optimize_final_module = optimize
    return found


def _counted_down(found: re.Match[str]) -> str:
    result, pointer, amount = found.groups()
    name = result.strip('%"')
    return (
        f'%"{name}.old" = atomicrmw sub ptr {pointer}, i64 {amount} monotonic, align 8\n'
        f'  %"{name}.last" = icmp eq i64 %"{name}.old", {amount}\n'
        f'  {result} = zext i1 %"{name}.last" to i8'
    )


def assembly(code: str, machine: Any) -> str:
    """Optimized assembly of some LLVM code."""
    code = re.sub(r'target triple = ".*"', f'target triple = "{TRIPLE}"', code)
    code = re.sub(r'target datalayout = ".*"\n', "", code)
    code = re.sub(r'"target-(?:cpu|features)"="[^"]*"', "", code)
    module = llvm.parse_assembly(code)
    module.verify()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return str(machine.emit_assembly(module))


def main() -> int:
    """Translate every kernel and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cpu", default="neoverse-n1")
    options = parser.parse_args()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple(TRIPLE)
    machine = target.create_target_machine(cpu=options.cpu, opt=3)
    wrong = 0
    for name, code in sorted(compiled_code().items()):
        code = COUNT_DOWN.sub(_counted_down, code)
        code = re.sub(r"declare i8 @llvm\.x86\.atomic.*", "", code)
        foreign = sorted(set(X86.findall(code)))
        text = "" if foreign else assembly(code, machine)
        vectors = len(NEON.findall(text))
        bad = bool(foreign) or (bool(WIDE.search(code)) and not vectors)
        wrong += bad
        print(f"{'WRONG' if bad else 'ok':6}{vectors:6} NEON  {name} {' '.join(foreign)}")
    print(f"{wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
