"""`python3 bench` trains and times both tasks on every implementation, after making the environment if need be."""

import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

sys.path.insert(0, str(ROOT))
from bench.environment import enter  # noqa: E402

sys.path.remove(str(ROOT))  # at once: `rnn` is to be the installed one, with its kernels

enter(("bench", *(["peers"] if "--peers" in sys.argv[1:] else [])))
sys.path.append(str(ROOT / "tests"))  # the named problems and the tolerance, which tests and benches share

from bench.command import main  # noqa: E402

# `timeout 600 python3 bench` keeps its figures, as Ctrl-C does.
signal.signal(signal.SIGTERM, signal.default_int_handler)
raise SystemExit(main(sys.argv[1:]))
