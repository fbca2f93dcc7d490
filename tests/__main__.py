"""`python3 tests` runs the tests, after making the environment if need be; takes pytest's arguments."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
ROOT = str(TESTS.parent)

sys.path.insert(0, ROOT)
from bench.environment import enter  # noqa: E402

sys.path.remove(ROOT)  # at once: `rnn` is to be the installed one, with its kernels

enter(("bench", "dev", "jit"))
for name in [name for name in os.environ if name.startswith("RNN_")]:
    del os.environ[name]  # the tests say themselves which backend and how many threads they want

import pytest  # noqa: E402

arguments = sys.argv[1:]
chosen = any(TESTS in Path(argument.partition("::")[0]).resolve().parents for argument in arguments)
raise SystemExit(pytest.main(arguments if chosen else [str(TESTS), *arguments]))
