"""The overlay's models; upstream takes them from here where SGLANG_EXTERNAL_MODEL_PACKAGE names this package."""

from sglang_overlay_plugin import register

register()  # where nothing has yet: sglang_overlay_plugin.pth is read in site-packages only
