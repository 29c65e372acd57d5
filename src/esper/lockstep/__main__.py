"""`python -m esper.lockstep`."""

from esper.lockstep.cli import main

if __name__ == "__main__":
    main()
