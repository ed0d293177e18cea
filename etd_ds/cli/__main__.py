"""`python -m etd_ds.cli`, the same as the console script `etd-ds`."""

import sys

from etd_ds.cli import main

sys.exit(main())
