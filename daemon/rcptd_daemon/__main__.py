"""`python -m rcptd_daemon` is `rcptd`."""

import sys

from rcptd_daemon.command import main

sys.exit(main())
