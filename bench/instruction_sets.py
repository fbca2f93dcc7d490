"""Holding a run to an instruction set narrower than the machine's: `python3 bench --isa avx2`, ours and all others.

With these variables for avx2 no vector of 512 bits was left where each of them multiplies matrices (PyTorch 2.13 with
oneDNN 3.12 and MKL 2024, JAX 0.10, NumPy 2.4; Zen 4). On Intel's CPUs JAX's YNNPACK takes AVX-512 whatever it is told
(161 GFLOP/s where AVX2's peak is 110), so it is off, and oneDNN in its place (108). MKL and the products that jaxlib
was built with go beyond SSE4.1 whatever they are told: 98 and 102 GFLOP/s where its peak is 59.
"""

from __future__ import annotations

from collections.abc import Mapping

from rnn._compiler import TARGETS

NUMPY_AVX512 = "X86_V4 AVX512_ICL AVX512_SPR AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL"
"""Of any version: NumPy leaves out what it doesn't know."""

VARIABLES: dict[str, dict[str, str]] = {
    "avx2": {
        "RNN_INSTRUCTION_SET": "avx2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": NUMPY_AVX512,
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "XLA_FLAGS": "--xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type=",
        "RNN_MARCH": "haswell",
    },
    "sse41": {
        "RNN_INSTRUCTION_SET": "sse41",
        "OPENBLAS_CORETYPE": "Nehalem",
        "NPY_DISABLE_CPU_FEATURES": f"X86_V3 AVX2 FMA3 F16C AVX {NUMPY_AVX512}",
        "RNN_MARCH": "nehalem",
    },
}
"""For the processes of all implementations. RNN_MARCH is for the C code of Theano and PyTensor."""

BEYOND = {"sse41": {"pytorch": "can't be held to SSE4.1: MKL", "jax": "can't be held to SSE4.1: its own products"}}
"""Instruction set -> who can't be held to it, and why."""


def check(isa: str) -> None:
    """Raise ValueError where the machine lacks an instruction set; "": none to be held to."""
    from rnn import _kernels

    widest = _kernels.instruction_set()
    if isa and list(TARGETS).index(isa) < list(TARGETS).index(widest):
        raise ValueError(f"--isa: expected an instruction set that this machine has, got {isa!r}; it has {widest}")


def variables(isa: str) -> Mapping[str, str]:
    """Of a process that is to be held to it; "": none."""
    return VARIABLES[isa] if isa else {}
