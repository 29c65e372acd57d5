"""Networks that grow while they train, and stay identical on every rank of a data-parallel job.

Importing this package does not import torch: programs that want only `esper.lockstep` start no slower.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("pytest-esper-ddp")
except PackageNotFoundError:  # a source tree on the path that was never installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
