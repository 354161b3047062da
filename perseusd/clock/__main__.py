"""`python -m perseusd.clock`."""

import sys

from perseusd.clock.main import main

sys.exit(main())
