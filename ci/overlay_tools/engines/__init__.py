"""The engine: its environment, its arguments, a running server, and a first question to it."""
