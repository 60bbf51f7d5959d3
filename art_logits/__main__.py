"""``python -m art_logits``: the same as the command ``art-logits``."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
