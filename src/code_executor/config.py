"""The settings: read once, at start, from flags, the environment and an optional file.

Names are the same everywhere (``PORT=8080`` in the environment and in the file). A flag wins
over the environment, the environment over the file, the file over the default; an empty value
counts as not given. The file is lines of ``NAME=value``; a name in it that is no setting is an
error. Only ``compose`` and ``cli`` read this module: below them everything is a plain argument.

Secrets are :class:`~pydantic.SecretStr`; neither a ``repr`` nor an error message shows one.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from code_executor.auth import DEVELOPMENT_KEYS, DEVELOPMENT_TOKEN, KeyRing
from code_executor.model import MIB, Limits
from code_executor.signing import parse_signing_keys

CONFIG_FILE_NAME = "CODE_EXECUTOR_CONFIG"
"""The environment variable that names the settings file."""

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PROMISE = re.compile(r"P[0-9]{1,3}")


class BadSettings(Exception):
    """The settings cannot be used; one line per setting, no secret in any."""


def _seconds(value: object) -> object:
    """``90``, ``"90"``, ``"90s"``, ``"15m"``, ``"24h"``, ``"7d"`` → seconds."""
    match = (
        re.fullmatch(r"([0-9]{1,9})([smhd]?)", value.strip()) if isinstance(value, str) else None
    )
    return int(match[1]) * _UNITS[match[2]] if match else value


def _comma_list(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(entry.strip() for entry in value.split(",") if entry.strip())


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _concurrency() -> int:
    return max(4, 2 * (os.cpu_count() or 1))


def _pool_mb() -> int:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(256, memory // 8 // 2**20)


Seconds = Annotated[int, BeforeValidator(_seconds), Field(ge=0)]
Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_list)]
Positive = Annotated[int, Field(ge=1)]
Timeout = Annotated[float, Field(gt=0, le=3600)]
Level = Annotated[Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(_upper)]


_SHOWN = {
    "public_base_url": "http://HOST:PORT",
    "api_keys": DEVELOPMENT_KEYS,
    "signing_key": "made once, kept in DATA_DIR/signing.key",
    "database_url": "sqlite:///DATA_DIR/records.db",
    "storage_dir": "DATA_DIR/objects",
    "storage_url": "file://STORAGE_DIR",
    "sandbox_workdir": "DATA_DIR/sandboxes",
    "seccomp_profile": "the one that ships",
    "docker_host": "unix:///var/run/docker.sock",
    "apparmor_profile": "code-executor",
    **{
        f"runner_image_{name}": f"code-executor/{name}"
        for name in ("python", "node", "ruby", "php", "go")
    },
    "host_sandbox_dir": "SANDBOX_WORKDIR",
    "max_concurrency": "twice the cores, at least 4",
    "warm_pool_mb": "an eighth of the machine's memory, at least 256",
}
"""Defaults that are computed, or are better said in words."""


class Settings(BaseSettings):
    """Every setting. :meth:`load` reads them; :func:`settings_table` lists them."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
        use_attribute_docstrings=True,
    )

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    """Port to listen on; 0 takes a free one."""
    public_base_url: str = ""
    """Where clients reach the service; signed links start with it."""
    cors_origins: Names = ("*",)
    """Origins that browsers may call from, comma separated."""
    log_level: Level = "INFO"
    """Least severe log lines written: DEBUG, INFO, WARNING, ERROR or CRITICAL."""
    shutdown_grace_s: Timeout = 15.0
    """Seconds that running programs get to finish when the service stops."""

    api_keys: SecretStr = SecretStr(DEVELOPMENT_KEYS)
    """API keys, token:label:rps:burst, comma separated; the label is the tenant. The default
    works on loopback only."""
    signing_key: SecretStr = SecretStr("")
    """Keys of signed links, comma separated, newest first, 32 characters or more each."""
    link_ttl: Annotated[Seconds, Field(ge=1)] = 600
    """How long a signed link is valid (seconds, or 10m, 24h, 7d)."""

    data_dir: Path = Path(".data")
    """Directory of everything the service keeps."""
    database_url: SecretStr = SecretStr("")
    """Where records are kept."""
    storage_dir: Path | None = None
    """Directory of uploads and artifacts; short for a file:// STORAGE_URL."""
    storage_url: SecretStr = SecretStr("")
    """Where uploads and artifacts are kept; wins over STORAGE_DIR."""
    queue_url: str = "local://"
    """The queue; this version has local:// only."""
    file_ttl: Seconds = 86_400
    """How long artifacts are kept (seconds, or 10m, 24h, 7d); 0: until deleted."""
    run_ttl: Seconds = 30 * 86_400
    """How long records of runs are kept, likewise."""
    idempotency_ttl: Seconds = 86_400
    """How long an Idempotency-Key is remembered, likewise."""

    sandbox_backend: Literal["native", "gvisor", "runc", "docker", "fake"] = "native"
    """How programs are isolated: native, gvisor, runc or docker; fake runs nothing and is for
    tests."""
    sandbox_workdir: Path | None = None
    """Directory for the sandboxes' roots and sockets."""
    runtime_dir: Path = Path(".runtime")
    """Directory of the interpreters' own runtimes."""
    languages_dir: Path | None = None
    """Directory of further language files."""
    seccomp_profile: Path | None = None
    """System call filter, in the format Docker reads."""
    waive_promises: Names = ()
    """Promises this host need not keep, by id (P1,P4); named in /v1/ready."""

    max_concurrency: Positive = Field(default_factory=_concurrency)
    """Programs that run at once."""
    queue_limit: Positive = 100
    """Runs that may wait; more are answered 503 queue_full."""
    warm_pool: Annotated[int, Field(ge=0, le=64)] = 2
    """Sandboxes kept prepared for each language."""
    warm_pool_max: Positive = 256
    """Prepared sandboxes of all languages together."""
    warm_pool_mb: Positive = Field(default_factory=_pool_mb)
    """Memory of prepared sandboxes together, in MiB; beyond the floor, none is prepared past it."""
    build_cache_mb: Annotated[int, Field(ge=0, le=4096)] = 64
    """Memory for compiled programs that are used again, in MiB; 0: none are."""

    default_timeout_ms: Positive = 5_000
    """Wall time of a run that asks for none."""
    max_timeout_ms: Positive = 10_000
    """Most wall time that a run may ask for."""
    default_cpu_ms: Positive = 5_000
    """CPU time of a run that asks for none."""
    max_cpu_ms: Positive = 20_000
    """Most CPU time that a run may ask for."""
    default_memory_mb: Positive = 256
    """Memory of a run that asks for none, in MiB."""
    max_memory_mb: Positive = 512
    """Most memory that a run may ask for, in MiB."""
    default_output_bytes: Positive = MIB
    """Kept bytes of each output stream of a run that asks for none."""
    max_output_bytes: Positive = 2 * MIB
    """Most kept bytes of each output stream."""
    default_artifact_bytes: Positive = 5 * MIB
    """Bytes of each returned file of a run that asks for none."""
    max_artifact_bytes: Positive = 20 * MIB
    """Most bytes of a returned file."""
    default_artifact_files: Positive = 10
    """Returned files of a run that asks for none."""
    max_artifact_files: Positive = 10
    """Most returned files."""

    max_code_bytes: Positive = 200 * 1024
    """Longest program."""
    max_file_bytes: Positive = 10 * MIB
    """Largest uploaded or inline file."""
    max_files_bytes: Positive = 25 * MIB
    """Files and sources of one run together."""
    max_body_bytes: Positive = 48 * MIB
    """Largest body of POST /v1/runs."""
    max_buffered_bytes: Positive = 256 * MIB
    """Request bodies in memory at once, over all requests."""
    header_timeout_s: Timeout = 10.0
    """Seconds a client has to send a request's headers."""
    body_timeout_s: Timeout = 30.0
    """Seconds a client has to send a request's body."""
    write_timeout_s: Timeout = 30.0
    """Seconds a client may refuse to read before its connection is dropped."""

    docker_host: str = ""
    """Where the docker backend finds its engine."""
    apparmor_profile: str = ""
    """AppArmor profile of the docker backend's containers, where the engine's host has AppArmor."""
    runner_image_python: str = ""
    """Image in which Python programs run (docker)."""
    runner_image_node: str = ""
    """Image in which Node.js programs run (docker)."""
    runner_image_ruby: str = ""
    """Image in which Ruby programs run (docker)."""
    runner_image_php: str = ""
    """Image in which PHP programs run (docker)."""
    runner_image_go: str = ""
    """Image in which Go programs run (docker)."""
    host_sandbox_dir: str = ""
    """What the engine's host calls SANDBOX_WORKDIR, when the service is in a container (docker)."""
    disable_sandbox_security: bool = False
    """Runs containers without system call filter and AppArmor (docker); never use it."""

    @classmethod
    def load(cls, config_file: Path | None = None, **flags: Any) -> Self:
        """Read the settings; ``flags`` that are ``None`` count as not given.

        Raises:
            BadSettings: names every setting that is wrong.
        """
        file = config_file or _file_from_environment()
        if file is not None and not file.is_file():
            raise BadSettings(f"The settings file {file} is not there.")
        given = {name: value for name, value in flags.items() if value is not None}
        try:
            return cls(_env_file=file, **given)
        except ValidationError as error:
            raise BadSettings(_explain(error)) from None

    @field_validator("api_keys")
    @classmethod
    def _check_keys(cls, value: SecretStr) -> SecretStr:
        KeyRing.parse(value.get_secret_value())
        return value

    @field_validator("signing_key")
    @classmethod
    def _check_signing_key(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            parse_signing_keys(value.get_secret_value())
        return value

    @field_validator("queue_url")
    @classmethod
    def _check_queue(cls, value: str) -> str:
        if value != "local://":
            raise ValueError("this version has no queue but local://")
        return value

    @field_validator("public_base_url")
    @classmethod
    def _check_base_url(cls, value: str) -> str:
        parts = urlsplit(value)
        odd = parts.query or parts.fragment or parts.username
        if value and (parts.scheme not in ("http", "https") or not parts.hostname or odd):
            raise ValueError("must be http:// or https://, a host, and a path at most")
        return value.rstrip("/")

    @field_validator("waive_promises")
    @classmethod
    def _check_waived(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(_PROMISE.fullmatch(name) for name in value):
            raise ValueError("must be ids of promises, such as P1,P4")
        return value

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        defaults, maxima = self.default_limits(), self.maximum_limits()
        for name in Limits.names():
            if getattr(defaults, name) > getattr(maxima, name):
                setting = name.removeprefix("max_").upper()
                raise ValueError(f"DEFAULT_{setting} is above MAX_{setting}")
        return self

    def refuse_exposed_default_key(self) -> None:
        """Refuse to serve others with the key that everybody knows; for whoever is to listen.

        Raises:
            BadSettings: says what to set.
        """
        keys = KeyRing.parse(self.api_keys.get_secret_value())
        if not is_loopback(self.host) and keys.knows(DEVELOPMENT_TOKEN):
            raise BadSettings(
                f"HOST is {self.host}, which others can reach, and the API key is the public "
                "default. Set API_KEYS=token:label with a token of your own, for example from: "
                "openssl rand -hex 24"
            )

    def default_limits(self) -> Limits:
        """The limits of a run that asks for none."""
        return self._limits("default")

    def maximum_limits(self) -> Limits:
        """The most that a run may ask for."""
        return self._limits("max")

    def _limits(self, prefix: str) -> Limits:
        return Limits(
            **{
                name: getattr(self, f"{prefix}_{name.removeprefix('max_')}")
                for name in Limits.names()
            }
        )

    def base_url(self) -> str:
        """``PUBLIC_BASE_URL``, or where this machine reaches the service."""
        if self.public_base_url:
            return self.public_base_url
        host = "127.0.0.1" if self.host in ("", "0.0.0.0", "::") else self.host  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    def records_url(self) -> str:
        """``DATABASE_URL``, or a file in ``DATA_DIR``."""
        given = self.database_url.get_secret_value()
        return given or f"sqlite:///{self.data_dir.absolute() / 'records.db'}"

    def objects_url(self) -> str:
        """``STORAGE_URL``, or ``STORAGE_DIR``, or a directory in ``DATA_DIR``."""
        given = self.storage_url.get_secret_value()
        directory = self.storage_dir or self.data_dir / "objects"
        return given or f"file://{directory.absolute()}"

    def workdir(self) -> Path:
        """``SANDBOX_WORKDIR``, or a directory in ``DATA_DIR``; absolute."""
        return (self.sandbox_workdir or self.data_dir / "sandboxes").absolute()

    def signing_key_file(self) -> Path:
        """Where the generated key of signed links is kept."""
        return self.data_dir.absolute() / "signing.key"

    def runner_images(self) -> dict[str, str]:
        """The images given, by language."""
        prefix = "runner_image_"
        names = [name for name in type(self).model_fields if name.startswith(prefix)]
        return {name.removeprefix(prefix): getattr(self, name) for name in names}

    def unheeded(self) -> list[str]:
        """Names of the settings given that the chosen backend does not honour, for the log."""
        if self.sandbox_backend == "docker":
            return []
        docker = ("docker_host", "apparmor_profile", "host_sandbox_dir", "disable_sandbox_security")
        images = [name for name in type(self).model_fields if name.startswith("runner_image_")]
        return [name.upper() for name in (*docker, *images) if getattr(self, name)]


def settings_table() -> list[tuple[str, str, str]]:
    """Name, default and description of every setting, in the order of the model."""
    return [
        (name.upper(), _default_shown(name, field), " ".join((field.description or "").split()))
        for name, field in Settings.model_fields.items()
    ]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _default_shown(name: str, field: FieldInfo) -> str:
    if name in _SHOWN:
        return _SHOWN[name]
    value = field.default
    if isinstance(value, bool):
        return str(value).lower()
    if value in ("", None, ()):
        return "none"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def _file_from_environment() -> Path | None:
    name = os.environ.get(CONFIG_FILE_NAME)
    return Path(name) if name else None


def _explain(error: ValidationError) -> str:
    details = error.errors(include_url=False, include_input=False, include_context=False)
    return "\n".join(_explain_one(detail) for detail in details)


def _explain_one(detail: ErrorDetails) -> str:
    name = ".".join(str(part) for part in detail["loc"]).upper() or "Settings"
    if detail["type"] == "extra_forbidden":
        return f"{name}: there is no such setting"
    message = detail["msg"].removeprefix("Value error, ")
    message = message.removeprefix(f"{name}, ").removeprefix(f"{name} ")
    return f"{name}: {message}"
