"""Copies between device and host key-value pools: names that upstream to 0.5.12 imports on every host.

Only hierarchical caching and disaggregation call them.
"""

from sgl_kernel.unimplemented import unimplemented


def __getattr__(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    return unimplemented(f"sgl_kernel.kvcacheio.{name}")
