from pathlib import Path

import pytest

from code_executor.config import (
    CONFIG_FILE_NAME,
    BadSettings,
    Settings,
    is_loopback,
    settings_table,
)
from code_executor.model import DEFAULT_LIMITS, MAXIMUM_LIMITS


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*(row[0] for row in settings_table()), CONFIG_FILE_NAME):
        monkeypatch.delenv(name, raising=False)


def test_the_defaults_are_the_contract_s() -> None:
    settings = Settings.load()
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)
    assert settings.default_limits() == DEFAULT_LIMITS
    assert settings.maximum_limits() == MAXIMUM_LIMITS
    assert settings.link_ttl == 600
    assert settings.max_concurrency >= 4
    assert settings.base_url() == "http://127.0.0.1:8080"


def test_flags_win_over_the_environment_and_that_over_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "settings"
    file.write_text("# a comment\nPORT=1\nQUEUE_LIMIT=1\nWARM_POOL=1\n")
    monkeypatch.setenv("QUEUE_LIMIT", "2")
    monkeypatch.setenv("WARM_POOL", "2")
    monkeypatch.setenv(CONFIG_FILE_NAME, str(file))
    settings = Settings.load(warm_pool=3, host=None)
    assert (settings.port, settings.queue_limit, settings.warm_pool) == (1, 2, 3)


def test_an_empty_value_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "")
    assert Settings.load().port == 8080


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("15m", 900), ("24h", 86_400), ("7d", 604_800)]
)
def test_times_may_have_a_unit(monkeypatch: pytest.MonkeyPatch, text: str, seconds: int) -> None:
    monkeypatch.setenv("FILE_TTL", text)
    assert Settings.load().file_ttl == seconds


def test_lists_are_comma_separated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORS_ORIGINS", "https://a.example, https://b.example,")
    monkeypatch.setenv("WAIVE_PROMISES", "P1,P12")
    settings = Settings.load()
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    assert settings.waive_promises == ("P1", "P12")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "99999"),
        ("PORT", "http"),
        ("API_KEYS", "token-without-label"),
        ("SIGNING_KEY", "too-short-a-key"),
        ("QUEUE_URL", "nats://localhost"),
        ("SANDBOX_BACKEND", "podman"),
        ("LOG_LEVEL", "LOUD"),
        ("FILE_TTL", "soon"),
        ("LINK_TTL", "0"),
        ("WAIVE_PROMISES", "all"),
        ("PUBLIC_BASE_URL", "example.org"),
        ("PUBLIC_BASE_URL", "https://example.org/?a=b"),
        ("MAX_CONCURRENCY", "0"),
        ("DEFAULT_TIMEOUT_MS", "-1"),
        ("BODY_TIMEOUT_S", "nan"),
    ],
)
def test_a_bad_value_is_refused_by_name_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(BadSettings, match=f"^{name}: ") as refusal:
        Settings.load()
    assert not str(refusal.value).startswith(f"{name}: {name}")
    if name in ("API_KEYS", "SIGNING_KEY"):
        assert value not in str(refusal.value)


def test_a_default_above_its_maximum_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_OUTPUT_BYTES", "10")
    with pytest.raises(BadSettings, match="DEFAULT_OUTPUT_BYTES is above MAX_OUTPUT_BYTES"):
        Settings.load()


def test_a_misspelt_name_in_the_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_text("PROT=1\n")
    with pytest.raises(BadSettings, match="PROT: there is no such setting"):
        Settings.load(file)
    with pytest.raises(BadSettings, match="is not there"):
        Settings.load(tmp_path / "absent")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_the_known_key_does_not_leave_the_machine(host: str) -> None:
    with pytest.raises(BadSettings, match="Set API_KEYS="):
        Settings.load().model_copy(update={"host": host}).refuse_exposed_default_key()


def test_the_known_key_is_refused_when_it_is_given_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOST", "0.0.0.0")
    monkeypatch.setenv("API_KEYS", "mine:me,dev_123:dev")
    with pytest.raises(BadSettings):
        Settings.load().refuse_exposed_default_key()
    monkeypatch.setenv("API_KEYS", "mine:me")
    Settings.load().refuse_exposed_default_key()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_may_use_the_known_key(host: str) -> None:
    assert is_loopback(host)
    Settings.load(host=host).refuse_exposed_default_key()


def test_no_secret_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEYS", "s3cret-token:me")
    monkeypatch.setenv("SIGNING_KEY", "s3cret-" * 6)
    monkeypatch.setenv("DATABASE_URL", "sqlite:///s3cret")
    settings = Settings.load()
    assert "s3cret" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert settings.records_url() == "sqlite:///s3cret"


def test_everything_kept_is_below_the_data_directory(tmp_path: Path) -> None:
    settings = Settings.load(data_dir=tmp_path)
    assert settings.records_url() == f"sqlite:///{tmp_path}/records.db"
    assert settings.objects_url() == f"file://{tmp_path}/objects"
    assert settings.workdir() == tmp_path / "sandboxes"
    assert settings.signing_key_file() == tmp_path / "signing.key"
    elsewhere = Settings.load(storage_dir=tmp_path / "there")
    assert elsewhere.objects_url() == f"file://{tmp_path}/there"


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:8080"), ("::1", "http://[::1]:8080")]
)
def test_links_start_with_an_address_that_can_be_reached(host: str, url: str) -> None:
    assert Settings.load(host=host).base_url() == url
    public = Settings.load(host=host, public_base_url="https://run.example/x/")
    assert public.base_url() == "https://run.example/x"


def test_what_the_backend_does_not_honour_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().unheeded() == []
    monkeypatch.setenv("DISABLE_SANDBOX_SECURITY", "true")
    monkeypatch.setenv("RUNNER_IMAGE_GO", "x")
    assert Settings.load().unheeded() == ["DISABLE_SANDBOX_SECURITY", "RUNNER_IMAGE_GO"]


def test_the_table_describes_every_setting() -> None:
    rows = settings_table()
    assert len(rows) == len(Settings.model_fields)
    assert all(name.isupper() and default and description for name, default, description in rows)
    assert ("PORT", "8080") in [row[:2] for row in rows]
