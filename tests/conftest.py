"""For all tests."""

from __future__ import annotations

import torch

# Tests run in several processes at once: threads that wait for a core which another process has
# would spin, and what takes 5 s takes 80.
torch.set_num_threads(1)
