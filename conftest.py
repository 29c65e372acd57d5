"""For all of tests/, examples/ and docs/."""

import signal

# Tests of the plugin run pytest inside pytest.
pytest_plugins = ["pytester"]

# A background job of a shell ignores Ctrl-C, and what it starts inherits that: so would the sessions that
# tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
