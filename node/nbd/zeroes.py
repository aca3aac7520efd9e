"""Zero bytes that take no memory. A file of its own: a client needs them, and none of a server's replies."""

from __future__ import annotations

import mmap
from typing import Final

from memcluster.node.nbd.wire import MAX_PAYLOAD

ZEROES: Final = memoryview(mmap.mmap(-1, MAX_PAYLOAD, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=mmap.PROT_READ))
"""As many as one request can ask for; the kernel backs them all with one page."""
