"""What the plugin under test is called: by installers, and its wheel and .dist-info folder."""

from __future__ import annotations

from engine.harness import PLUGIN
from packaging.utils import canonicalize_name

assert PLUGIN is not None
assert PLUGIN.dist is not None
DISTRIBUTION = PLUGIN.dist.name
WHEEL = canonicalize_name(DISTRIBUTION).replace("-", "_")
