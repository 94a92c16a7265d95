"""Run the command line as `python -m overlay_tools`."""

import sys

from overlay_tools.cli import main

sys.exit(main())
