"""The failures of the service: never of the program that a run executes.

A program's end, however bad, is a value (:class:`code_executor.model.Outcome`).
What is raised here is the machinery's or the caller's doing::

    ServiceError
    ├── InvalidRequest        the caller sent something that cannot be accepted
    │   ├── LimitTooHigh
    │   └── PayloadTooLarge
    ├── Unauthenticated       no credential, or one nobody knows
    ├── Forbidden             a link that does not verify
    ├── NotFound              absent, or somebody else's: the two look the same
    ├── Conflict              contradicts what is already there
    ├── UnsupportedMedia      a content type the endpoint does not take
    ├── RateLimited           the key's bucket is empty
    ├── QueueFull             admission refused, nothing was started
    └── SandboxUnavailable    the service could not run the program
        └── HostUnfit         this host lacks something; carries the command that fixes it

Each class has a stable ``code`` (part of the wire contract). The HTTP status of
each is a table of the HTTP edge, ``api/errors.py``, and is not known here.
"""

from __future__ import annotations


class ServiceError(Exception):
    """Base of every failure that a caller may be told about.

    ``message`` is written for the caller and holds nothing secret; ``param`` is
    the dotted path of the offending field, when one field is to blame.
    """

    code = "internal"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(ServiceError):
    """The request breaks a rule of the contract; ``param`` says where."""

    code = "invalid_request"


class LimitTooHigh(InvalidRequest):
    """A limit above the configured maximum."""

    code = "limit_too_high"


class PayloadTooLarge(InvalidRequest):
    """A body, a file or a set of files over its cap."""

    code = "payload_too_large"


class Unauthenticated(ServiceError):
    """No bearer token, or one that matches no key."""

    code = "invalid_api_key"


class Forbidden(ServiceError):
    """A signed link that is malformed, expired or not ours; never says which."""

    code = "invalid_link"


class NotFound(ServiceError):
    """No such object for this tenant."""

    code = "not_found"


class Conflict(ServiceError):
    """The request contradicts the present state."""

    code = "conflict"


class UnsupportedMedia(ServiceError):
    """The body's content type is not the one the endpoint takes."""

    code = "unsupported_media_type"


class RateLimited(ServiceError):
    """The key's token bucket is empty; ``retry_after_s`` is when one token is back."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFull(ServiceError):
    """Too many runs wait already; ``retry_after_s`` is a guess at when to return."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class SandboxUnavailable(ServiceError):
    """The machinery failed: no sandbox, or one that broke its protocol.

    ``step`` names the step that failed, for the log; the message does not
    describe the host.
    """

    code = "sandbox_unavailable"

    def __init__(self, message: str, *, step: str | None = None) -> None:
        super().__init__(message if step is None else f"{message} (step: {step})")
        self.step = step


class HostUnfit(SandboxUnavailable):
    """This host cannot keep a promise; ``fix`` is the command or change that helps."""

    def __init__(self, message: str, *, fix: str) -> None:
        super().__init__(message)
        self.fix = fix


def words(error: BaseException) -> str:
    """What an exception says of itself; its name where it says nothing, as a timeout does."""
    return str(error) or type(error).__name__
