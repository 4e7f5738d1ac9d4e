"""The picture of a policy for its card."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from catalogue.derived import STRIPS


def draw(root: Path, names: Sequence[str]) -> list[Path]:
    """Draw the pictures of these policies of a checkout, and of no others."""
    if not names:
        return []
    # The checkout's own package is imported, whatever is installed beside it, and only once its lists are whole.
    sys.path.insert(0, str(root))
    from mixaug import gallery

    return gallery.draw_strips(names, root / STRIPS)
