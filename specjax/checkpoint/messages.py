"""What conversations are made of."""

from __future__ import annotations

from typing import Any

Message = dict[str, Any]  # role, content, and whatever else the template reads

# A message's reasoning goes by several names; Transformers gives templates those that they read.
REASONING = ("reasoning_content", "thinking", "reasoning")
