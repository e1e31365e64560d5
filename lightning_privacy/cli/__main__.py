"""``python -m lightning_privacy.cli``: the command line without an installed script."""

import sys

from lightning_privacy.cli.main import main

sys.exit(main())
