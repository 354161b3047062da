"""The errors of perseusd, named by whose fault they are.

Every message names the thing, the value and the fix, so that it can be shown to a user as it is.
"""


class PerseusError(Exception):
    """Anything this project raises on purpose."""


class ConfigurationError(PerseusError):
    """The configuration (file, environment or flag) is wrong. Exit code 78."""


class UsageError(PerseusError):
    """A command was called wrongly: an unknown workload, a missing file. Exit code 2."""


class ProfileError(UsageError):
    """A profile file is wrong."""


class TraceError(UsageError):
    """A recorded run cannot be read."""


class DaemonUnreachableError(PerseusError):
    """No daemon answers. Exit code 69."""


class NotPermittedError(PerseusError):
    """The caller may not do this. Exit code 77."""


class GpuError(PerseusError):
    """A GPU or its driver failed."""


class PlanningError(PerseusError):
    """A plan could not be made from this problem."""


class ProtocolError(PerseusError):
    """A peer sent something that this protocol does not have."""


class OutputError(PerseusError):
    """What was made could not be written."""
