"""`python -m perseusd`, the same as the command `perseusd`."""

import sys

from perseusd.cli import main

if __name__ == "__main__":
    sys.exit(main())
