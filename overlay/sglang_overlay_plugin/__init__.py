"""The overlay's models for an unmodified SGLang.

From 0.5.11 on, installing this is enough: upstream calls `serve_plugin` through its entry point group. Before that, and
for whoever prefers it, `SGLANG_EXTERNAL_MODEL_PACKAGE=sglang_overlay_plugin.models` does it. By hand:

    import sglang_overlay_plugin

    sglang_overlay_plugin.register()
    engine = sglang.Engine(...)

`python -m sglang_overlay_plugin doctor` says what took.
"""

try:
    from sglang_overlay_plugin.attach import PluginError, register
except Exception as error:  # upstream would log it, and serve on without the plugin
    raise SystemExit(f"{__name__} is not whole; install it anew: {type(error).__name__}: {error}") from error

__all__ = ["PluginError", "register"]
