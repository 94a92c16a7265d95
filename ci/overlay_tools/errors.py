"""The errors a user can meet, each with what to do next."""

# The next step where a check of the tool's own work has failed.
REPORT = "This is a fault of the tool: open an issue at the project, with what this command prints with --verbose."


class OverlayError(Exception):
    """Say what is wrong and what to do about it.

    Parameters: `problems`, one sentence each, every one naming its file and line, member or option; `hint`, the next
    step.
    """

    def __init__(self, *problems: str, hint: str = "") -> None:
        self.problems = problems
        self.hint = hint
        super().__init__("\n".join(problems))


class UsageError(OverlayError):
    """Report arguments that do not go together, or that lack one."""


class LockError(OverlayError):
    """Report a fault of upstream.lock, or a release or wheel that it does not hold."""


class YankedError(LockError):
    """Report a release that its index says not to use any more."""


class FetchError(OverlayError):
    """Report a base wheel that cannot be had, or is not the one that the lock names."""


class PatchError(OverlayError):
    """Report a fault of patches/, or a patch that does not apply exactly."""


class WheelError(OverlayError):
    """Report a wheel that cannot be read or written."""


class BuildError(OverlayError):
    """Report an overlay that cannot be grafted onto its base."""


class VerifyError(OverlayError):
    """Report a wheel or an environment that is not what its manifest says."""


class SignatureError(OverlayError):
    """Report a key that cannot be used, a wheel that cannot be signed, or one that has no good signature."""


class ServeError(OverlayError):
    """Report a server that did not come up, died or answered wrongly."""


class CheckpointError(OverlayError):
    """Report what is named as a checkpoint and is none, or cannot be had or read."""


class BenchError(OverlayError):
    """Report a checkpoint whose speed cannot be measured."""


class TuneError(OverlayError):
    """Report a checkpoint that has no tiles to tune, or a file of tiles that would not be taken, or lost."""


class AccuracyError(OverlayError):
    """Report tasks that cannot be read or had, or a model that cannot be asked them."""


class AdoptError(OverlayError):
    """Report a checkpoint that cannot be adopted, a setting that it cannot be given, or a folder it cannot go to."""


class CompareError(OverlayError):
    """Report a checkpoint that cannot be compared with a reference model."""


class ContractError(OverlayError):
    """Report a fault of ci/contract.toml, or code of the overlay that its contract cannot be read from."""


class ToolError(OverlayError):
    """Report a program that this tool calls and that is absent or failed."""


class MatrixError(OverlayError):
    """Report releases that a run over all of them found red, or a machine that cannot run it."""


class WorktreeError(OverlayError):
    """Report a worktree whose commits or changes cannot be taken over."""


class PortError(OverlayError):
    """Report a release that the overlay cannot be carried to without a person."""


class WatchError(OverlayError):
    """Report a checkout that no branch can be made in, or another run that makes some."""
