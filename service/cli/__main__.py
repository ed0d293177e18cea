"""`python -m service.cli` is `etd-jobs`."""

import sys

from service.cli import main

sys.exit(main())
