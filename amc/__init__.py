"""amc: make a trained CNN run faster on a given device, within a budget."""

from __future__ import annotations

from typing import Any

import gymnasium

__version__ = "0.1.0"

gymnasium.register(id="amc/Compression-v0", entry_point="envs.compression:make_env")
