"""The overlay's models; upstream takes them from here where SGLANG_EXTERNAL_MODEL_PACKAGE names this package."""

from sglang_overlay_plugin.attach import register

register()  # where nothing has yet: the startup file is read in site-packages only
