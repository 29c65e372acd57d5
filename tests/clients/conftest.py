"""Programs of other projects, as they are written for torchrun, run as tests: see `ci/test --clients`."""

from importlib.util import find_spec

NEEDS = {"test_accelerate.py": "accelerate", "test_fabric.py": "lightning_fabric"}

# Not skipped: where they are asked for and missing, there is nothing to run, and that fails.
collect_ignore = [file for file, package in NEEDS.items() if find_spec(package) is None]
