"""What can go wrong, and what to do about it. Every exception of the package is an `Error`.

    Error
    |- SettingError      an argument or an environment variable
    |- StateError        a state whose names, shapes or types are not the model's
    |  `- DivergedError  a state with values that are not finite
    |- MetricError       a metric with a bad name or value
    |- CodecError        values that cannot be encoded, bytes that cannot be decoded
    |- TaskError         the master asks for what this client cannot do
    |- Unreachable       no answer
    |- NotAMaster        an answer, but not one of an fl master
    `- Refused           the master refuses for good
       `- AuthError      the token is missing or wrong
"""


class Error(Exception):
    """Base of all exceptions of this package."""


class SettingError(Error, ValueError):
    """An argument, or the environment variable in its place, has a value that cannot be used."""


class StateError(Error, ValueError):
    """A state is not of the master's model: a wrong name, shape, type or device. Nothing was sent."""


class DivergedError(StateError):
    """A state has values that are not finite. Nothing was sent."""


class MetricError(Error, ValueError):
    """A metric's name or value, or the number of metrics, is not what the master takes. Nothing was sent."""


class CodecError(Error, ValueError):
    """Values that cannot be encoded, or bytes that are not a stream of fl-quant."""


class TaskError(Error):
    """The master asks for what this client cannot do."""


class Unreachable(Error, ConnectionError):
    """The master gave no answer, or none but failures for `give_up_s` seconds."""


class NotAMaster(Error):
    """Something answers at this address, but it is no fl master."""


class Refused(Error):
    """The master refuses for good.

    Attributes:
        status: HTTP status.
        code: the stable code of `docs/protocol.md`, if the answer has one.
    """

    def __init__(self, message, status, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class AuthError(Refused):
    """The token is missing or wrong."""
