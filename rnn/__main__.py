"""`python -m rnn` is the command `rnn`."""

from .cli import main

raise SystemExit(main())
