"""`python -m esper`, and so `torchrun -m esper train`."""

from esper.cli import main

main()
