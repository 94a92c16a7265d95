"""The overlay's models for an unmodified SGLang.

Installing this is enough: each Python of the environment watches for what it attaches to. Where it is not in
site-packages, upstream finds its entry point from 0.5.11 on. By hand, with any release:

    import sglang_overlay_plugin

    sglang_overlay_plugin.register()
    engine = sglang.Engine(...)

`python -m sglang_overlay_plugin doctor` says what took.
"""

try:
    from sglang_overlay_plugin_start import PluginError, describe, watch
except Exception as error:  # upstream would log it, and serve on without the plugin
    raise SystemExit(f"sglang-overlay-plugin is not whole; install it anew: {type(error).__name__}: {error}") from error

__all__ = ["PluginError", "register"]


def register() -> None:
    """Let this process, and those that it spawns from now on, serve the overlay's models.

    Call it before an engine or server is made; a second call changes nothing.
    Raises PluginError if this plugin is not whole, this release of sglang is not one that it is proven on (unless
    SGLANG_OVERLAY_ALLOW_UNPROVEN=1), is a drop-in wheel that knows of no plugins, or lacks a place where the plugin
    attaches.
    """
    try:
        from sglang_overlay_plugin.attach import attach
        from sglang_overlay_plugin.checks import check
    except Exception as error:
        raise PluginError(describe(error)) from error
    check()
    attach()


# So that a server is stopped where the rest of the plugin cannot be imported: upstream would log that, too. At the end,
# for it attaches to what is imported already, which takes `register` from here.
watch()
