"""Run a pytest test on N real ranks; a hang becomes a failed test that names the rank and the collective."""
