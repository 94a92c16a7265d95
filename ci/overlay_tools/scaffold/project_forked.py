"""The servers of a plugin project's tests, which start as for users: each project has a copy of this file."""

from overlay_tools.engines.server import Server as ForkedServer

__all__ = ["ForkedServer"]
