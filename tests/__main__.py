"""`python3 tests` runs the tests, after making the environment if need be; takes pytest's arguments.

`--peers` adds the tests of PyTorch, JAX and PyTensor, and installs those: some gigabytes.
"""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = str(TESTS.parent)

sys.path.insert(0, ROOT)
from bench.environment import enter  # noqa: E402

sys.path.remove(ROOT)  # at once: `rnn` is to be the installed one, with its kernels

enter(("bench", "dev", "jit", *(["peers"] if "--peers" in sys.argv[1:] else [])))
for name in [name for name in os.environ if name.startswith("RNN_")]:
    del os.environ[name]  # the tests say themselves which backend and how many threads they want

import pytest  # noqa: E402


def absolute(argument: str) -> str:
    """A path of a test in full, anything else as it is."""
    path, colons, rest = argument.partition("::")
    return f"{Path(path).resolve()}{colons}{rest}" if Path(path).exists() else argument


arguments = [absolute(argument) for argument in sys.argv[1:]]
chosen = any(TESTS in Path(argument.partition("::")[0]).parents for argument in arguments)
os.chdir(TESTS)  # processes that tests start import the installed `rnn` too, and not the tree's
raise SystemExit(pytest.main(arguments if chosen else [str(TESTS), *arguments]))
