"""``python -m flawflow``."""

import sys

from flawflow.cli import main

sys.exit(main())
