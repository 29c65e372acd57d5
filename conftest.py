"""For all of tests/, examples/ and docs/."""

import os
import signal

# Tests of the plugin run pytest inside pytest.
pytest_plugins = ["pytester"]

# Read when torch is loaded. Its threads spin while they wait for one that has no processor: on two processors
# shared with other tests, a search of small models' states took 70 s of them with two threads, 5 s with one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A background job of a shell ignores Ctrl-C, and what it starts inherits that: so would the sessions that
# tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
