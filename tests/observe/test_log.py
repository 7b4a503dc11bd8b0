import json
import sys

import pytest
from upath import UPath

from engine.observe import configure_logging, get_logger
from engine.observe.log import mask_secrets, mask_text


@pytest.fixture(autouse=True)
def _unconfigured():
    yield
    configure_logging()


def _lines(run_dir):
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_a_line_goes_to_stderr_and_to_the_run_directory(tmp_path, capsys):
    logger = get_logger("corpus")  # made before the configuration, as module-level loggers are
    configure_logging(UPath(tmp_path / "runs" / "a"))
    logger.info("shards planned", shards=12, source=UPath("/data/x"))
    out, err = capsys.readouterr()
    assert out == ""
    assert "shards planned" in err
    assert "[corpus]" in err
    assert "shards=12" in err
    (entry,) = _lines(tmp_path / "runs" / "a")
    assert entry.pop("timestamp").endswith("Z")
    assert entry == {"event": "shards planned", "level": "info", "room": "corpus", "shards": 12, "source": "/data/x"}


def test_debug_lines_appear_only_when_verbose(tmp_path, capsys):
    logger = get_logger("corpus")
    configure_logging(UPath(tmp_path))
    logger.debug("quiet")
    configure_logging(UPath(tmp_path), verbose=True)
    logger.debug("loud")
    assert [entry["event"] for entry in _lines(tmp_path)] == ["loud"]
    assert "quiet" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "key",
    [
        "api_key",
        "apiKey",
        "OPENAI_API_KEY",
        "x-api-key",
        "password",
        "hf_token",
        "accessToken",
        "token",
        "Authorization",
        "client_secret",
        "AWS_SECRET_ACCESS_KEY",
        "credentials",
        "cookie",
        "private_key",
        "auth",
    ],
)
def test_values_of_secret_keys_are_masked_at_any_depth(key):
    event = {"event": "x", key: "hunter2", "request": {"headers": [{key: ("hunter2", 7)}]}}
    assert "hunter2" not in str(mask_secrets(None, "info", event))


@pytest.mark.parametrize("key", ["tokens", "max_tokens", "tokens_per_second", "token_ids", "keys", "author", "monkey"])
def test_counts_and_ordinary_words_are_not_secrets(key):
    assert mask_secrets(None, "info", {key: 512}) == {key: 512}


@pytest.mark.parametrize(
    "text",
    [
        "curl -H 'Authorization: Bearer SECRET123' x",
        "Authorization: Basic SECRET123=",
        "authorization=bearer SECRET123",
        "key sk-SECRET123abc is invalid",
        "key sk-proj-SECRET123abc is invalid",
        "AKIASECRET1234567890",
        "hf_SECRET123abcdefghijk",
        "ghp_SECRET123abcdefghijk",
        "s3://user:SECRET123@bucket/x",
        "https://SECRET123@host/x",
        "https://user:p@SECRET123@host/x",
        "postgres://me:SECRET123@db:5432/x and then s3://user:SECRET123@bucket/y",
        "password=SECRET123",
        'failed: {"api_key": "SECRET123", "n": 1}',
        "{'client_secret': 'SECRET123'}",
        "https://host/x?a=1&token=SECRET123&b=2",
        "https://host/x?X-Amz-Signature=SECRET123",
        "-----BEGIN RSA PRIVATE KEY-----\nSECRET123\n-----END RSA PRIVATE KEY-----",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJTRUNSRVQifQ.SECRET123",
    ],
)
def test_secrets_inside_any_text_are_masked(text):
    masked = mask_text(f"before {text} after")
    assert "SECRET123" not in masked
    assert masked.startswith("before ")


@pytest.mark.parametrize(
    "text",
    ["read s3://bucket/part-0001.parquet", "tokens: 512, 35.2 tokens/s", "task-force sk-1", "see a@b.org", "x == 3"],
)
def test_ordinary_text_stays_as_it_is(text):
    assert mask_text(text) == text


def test_a_very_long_line_is_masked_quickly():
    long = "a" * 2_000_000 + " " + "token" * 100_000 + " password=SECRET123"
    assert "SECRET123" not in mask_text(long)


def test_secrets_in_exceptions_and_objects_are_masked_and_control_characters_shown(tmp_path, capsys):
    class Client:
        def __repr__(self):
            return "Client(api_key='SECRET123')"

    configure_logging(UPath(tmp_path))
    try:
        raise ValueError("password=SECRET123 \x1b[31m")
    except ValueError:
        get_logger("corpus").exception("failed", client=Client())
    written = (tmp_path / "log.jsonl").read_text() + capsys.readouterr().err
    assert "SECRET123" not in written
    assert "ValueError" in written
    assert "\x1b[31m" not in written


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, capsys):
    configure_logging(UPath(tmp_path))
    (tmp_path / "log.jsonl").mkdir()
    get_logger("corpus").info("still here")
    assert "still here" in capsys.readouterr().err


def test_it_works_without_configuration_and_follows_a_replaced_stderr(monkeypatch, tmp_path):
    configure_logging()
    with open(tmp_path / "err", "w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        get_logger("lintseq").warning("50 % {done} [x]")
    assert "50 % {done} [x]" in (tmp_path / "err").read_text()


def test_a_remote_run_directory_gets_no_log_file(capsys):
    configure_logging(UPath("memory://runs/a"))
    get_logger("corpus").info("hello")
    assert not UPath("memory://runs/a/log.jsonl").exists()
    assert "hello" in capsys.readouterr().err
