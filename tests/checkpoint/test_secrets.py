"""Passwords and tokens: where they are sent, and that no message shows them."""
import shutil
import subprocess
import traceback

import pytest
from downloads import NOWHERE
from make_checkpoints import assert_same_params, write_hugging_face
from server import Server

import gpt2_np
from gpt2_np import checkpoint
from gpt2_np.checkpoint import DownloadError, sources, transfer

SECRET = "pa55word"
BASIC = "Basic bWU6cGE1NXdvcmQ="  # of me:pa55word


def with_secret(url):
    return url.replace("://", f"://me:{SECRET}@")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1, and its key, made by the system's openssl."""
    folder = tmp_path_factory.mktemp("tls")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1",
               "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
               "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]  # fmt: skip
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no openssl that makes a certificate")
    both = folder / "both.pem"
    both.write_bytes((folder / "cert.pem").read_bytes() + (folder / "key.pem").read_bytes())
    return both


@pytest.fixture
def secure(tmp_path, certificate, monkeypatch):
    """A server that speaks https, with the repository owner/name."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    write_hugging_face(tmp_path / "secure/owner/name/resolve/main")
    with Server(tmp_path / "secure", certificate=certificate) as server:
        yield server


# --- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:pa55word@host/a", "https://***@host/a"),
        ("http://pa55word@host/a", "http://***@host/a"),
        ("http://me:pa55/wo@rd@host/a", "http://***@host/a"),
        ("http://me:pa55 word@host/a", "http://***@host/a"),
        ("http://me:pa55\nword@host/a", "http://***@host/a"),
        ("https:/me:pa55word@host/a", "https://***@host/a"),
        ("me:pa55word@host/a", "***@host/a"),
        ("https://host/a?token=pa55word", "https://host/a?***"),
        ("https://host/a#token=pa55word", "https://host/a#***"),
        ("https://me:x@host/a?token=pa55word@x", "https://***@x"),
        ("https://host:80/a/b-c", "https://host:80/a/b-c"),
        ("owner/name@main", "owner/name@main"),
        (r"C:\models\me@v2", r"C:\models\me@v2"),
        ("C:/models/me@v2#3", "C:/models/me@v2#3"),
        ("models/c#1", "models/c#1"),
        ("/me:pa55word@host/a", "/***@host/a"),
        ("me:pa55word@host/a#b", "***@host/a#***"),
        (r"me:pa55\word@host/a", "***@host/a"),
        ("https://cdn/pkg@1.0/a", "https://***@1.0/a"),
        ("No connection adapters were found for 'x://h?k=pa55word'",
         "No connection adapters were found for 'x://h?***"),
    ],
)  # fmt: skip
def test_a_text_is_shown_without_its_secrets(text, expected):
    assert sources.redacted(text) == expected


SECRETS = [f"http://me:{SECRET}@127.0.0.1:9/a", f"http://{SECRET}@127.0.0.1:9/a",
           f"http://127.0.0.1:9/a?token={SECRET}", f"http://127.0.0.1:9/a#{SECRET}",
           f"http://me:{'x' * 100}{SECRET}@127.0.0.1:9/a", f"ftp://me:{SECRET}@127.0.0.1/a",
           f"me:{SECRET}@127.0.0.1/a", f"HTTP://me:{SECRET}@127.0.0.1:9",
           f"http://me:{SECRET}/@127.0.0.1:9", f"http://me:{SECRET} @127.0.0.1:9"]  # fmt: skip


def everything_shown(error, capsys):
    """Return all that a program could print about an error, with the notes on stderr."""
    return "".join(traceback.format_exception(error)) + "".join(capsys.readouterr())


@pytest.mark.parametrize("url", SECRETS)
def test_a_url_with_secrets_is_refused_without_showing_them(url, capsys):
    for function in (gpt2_np.load, checkpoint.download):
        with pytest.raises(gpt2_np.Error) as caught:
            function(url)
        assert SECRET not in str(caught.value) + "".join(capsys.readouterr())
    assert gpt2_np.main(["-m", url, "x"]) == 1
    assert SECRET not in "".join(capsys.readouterr())


@pytest.mark.parametrize("variable", ["GPT2_NP_URL", "HF_ENDPOINT"])
@pytest.mark.parametrize("value", [*SECRETS, "host/models", "ftp://host", "http://", "http://a b"])
def test_a_mirror_with_secrets_is_asked_or_refused_without_showing_them(
    variable, value, monkeypatch, capsys
):
    monkeypatch.setenv("GPT2_NP_URL", NOWHERE)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setenv(variable, value)
    with pytest.raises(DownloadError) as caught:
        gpt2_np.load("124M")
    assert SECRET not in everything_shown(caught.value, capsys)
    right = [SECRETS[i] for i in (0, 1, 4, 7, 9)]  # a user and a password before the host
    assert (f"{variable} is '" in str(caught.value)) == (value not in right)


@pytest.mark.parametrize("failure", [[404] * 9, [500] * 20, "nothing there", "other bytes", "cut"])
def test_no_failure_of_a_mirror_shows_its_password(
    server, mirror, monkeypatch, capsys, failure, tmp_path
):
    monkeypatch.setenv("GPT2_NP_URL", with_secret(server.url))
    monkeypatch.setenv("HF_ENDPOINT", with_secret(server.url))
    if failure == "nothing there":
        monkeypatch.setenv("GPT2_NP_URL", with_secret(NOWHERE))
        monkeypatch.setenv("HF_ENDPOINT", with_secret(NOWHERE))
    elif failure == "other bytes":
        server.instead = {"/124M/encoder.json": b"{}"}
    elif failure == "cut":
        server.cut, server.ranges = 50, False
    else:
        server.first = list(failure)
    with pytest.raises(gpt2_np.Error) as caught:
        gpt2_np.load("124M")
    assert SECRET not in everything_shown(caught.value, capsys)
    assert SECRET not in repr(checkpoint.sources_of("124M"))
    names = [str(path) for path in tmp_path.rglob("*")]
    assert not any(SECRET in name for name in names)


def test_a_redirect_that_fails_shows_no_token(server, bundle, capsys):
    for target in (f"{NOWHERE}/x?signature={SECRET}", with_secret(NOWHERE), f"x://h/?k={SECRET}",
                   f"http://me:{SECRET}@[/x"):  # fmt: skip
        server.redirects = {f"/models/124M/{name}": target
                            for name in ("hparams.json", "config.json")}  # fmt: skip
        with pytest.raises(DownloadError) as caught:
            gpt2_np.load(bundle[0])
        assert SECRET not in everything_shown(caught.value, capsys)


# --- what is sent to whom ----------------------------------------------------------------------


@pytest.mark.parametrize("password", [SECRET, "pa55%40w%2Frd%3A"])
def test_a_password_in_the_url_of_a_mirror_is_sent_to_it(server, mirror, monkeypatch, password):
    from base64 import b64encode
    from urllib.parse import unquote

    monkeypatch.setenv("GPT2_NP_URL", server.url.replace("://", f"://me:{password}@"))
    assert_same_params(gpt2_np.load("124M").params, mirror)
    expected = "Basic " + b64encode(f"me:{unquote(password)}".encode()).decode()
    assert set(server.authorizations) == {expected}


def test_a_password_does_not_follow_a_redirect_to_another_server(server, mirror, monkeypatch):
    """The other port of 127.0.0.1 is another server; a path on the same one is not."""
    with Server(server.folder) as other:
        for file in (server.folder / "124M").iterdir():
            path = f"/124M/{file.name}"
            server.redirects[path] = other.url + path
        server.redirects["/124M/hparams.json"] = "/moved.json"
        shutil.copy(server.folder / "124M/hparams.json", server.folder / "moved.json")
        monkeypatch.setenv("GPT2_NP_URL", with_secret(server.url))
        assert_same_params(gpt2_np.load("124M").params, mirror)
    assert set(server.authorizations) == {BASIC} and len(other.log) == 4
    assert set(other.authorizations) == {None}


def test_a_token_goes_to_the_hub_over_https(secure, server, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", f" {SECRET}\n")
    monkeypatch.setattr(sources, "HUB_URL", secure.url)
    path = "/owner/name/resolve/main/model.safetensors"
    with Server(secure.folder) as other:  # http
        plain = other.url + path
        secure.redirects[path] = plain
        with pytest.raises(DownloadError, match=r"redirects to .*expected https as before"):
            gpt2_np.load("owner/name")
        assert other.log == []
    secure.redirects = {}
    gpt2_np.load("owner/name")
    assert set(secure.authorizations) == {f"Bearer {SECRET}"}


def test_a_token_goes_to_no_other_server(secure, server, monkeypatch):
    """Neither to a mirror, nor to OpenAI's, nor to a URL, nor over http."""
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HF_ENDPOINT", secure.url)
    checkpoint.download("owner/name")
    checkpoint.download(f"{secure.url}/owner/name/resolve/main")
    assert set(secure.authorizations) == {None}
    openai, hub = checkpoint.sources_of("124M")
    assert openai.credentials is hub.credentials is None
    monkeypatch.delenv("HF_ENDPOINT")
    openai, hub = checkpoint.sources_of("124M")
    assert openai.credentials is None and hub.credentials is not None
    monkeypatch.setattr(sources, "HUB_URL", server.url)
    assert sources.hub_token(server.url) is None


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "é"])
def test_a_token_that_no_header_can_hold_is_refused_without_showing_it(token, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token + SECRET)
    with pytest.raises(DownloadError, match="HF_TOKEN is not a token") as caught:
        gpt2_np.load("owner/name")
    assert SECRET not in str(caught.value)


# --- redirects from https ----------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "HTTP", "ftp"])
def test_a_redirect_from_https_to_http_is_refused(secure, server, scheme):
    path = "/owner/name/resolve/main"
    write_hugging_face(server.folder / path[1:])
    target = server.url.replace("http", scheme) + path
    secure.redirects[f"{path}/hparams.json"] = target + "/config.json"
    with pytest.raises(DownloadError, match=r"hparams\.json redirects to .* expected https"):
        gpt2_np.load(secure.url + path)
    assert server.log == []


def test_redirects_within_https_and_from_http_to_it_are_followed(secure, server):
    path = "/owner/name/resolve/main"
    for file in (secure.folder / path[1:]).iterdir():
        server.redirects[f"/a/{file.name}"] = f"{secure.url}{path}/{file.name}"
        secure.redirects[f"{path}/{file.name}"] = f"/moved/{file.name}"
    (secure.folder / path[1:]).rename(secure.folder / "moved")
    gpt2_np.load(server.url + "/a")
    assert {status for _, _, status in server.log} <= {302, 404}


def test_an_untrusted_certificate_is_refused(secure, monkeypatch):
    monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    with pytest.raises(DownloadError, match=r"cannot be reached .*certificate"):
        gpt2_np.load(f"{secure.url}/owner/name/resolve/main")


class Answer:
    """An answer of requests, as far as the rule reads it."""

    def __init__(self, url, location=None):
        self.url, self.is_redirect, self.closed = url, location is not None, False
        self.headers = {"location": location}

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    ("url", "location"),
    [("https://a/b", "http://a/b"), ("https://a/b", "file:///etc/passwd"), ("HTTPS://a", "http:b")],
)
def test_https_is_never_left(url, location):
    answer = Answer(url, location)
    with pytest.raises(transfer.Insecure, match="expected https"):
        transfer.refuse_plain_http(answer)
    assert answer.closed


@pytest.mark.parametrize(
    ("url", "location"),
    [("https://a/b", "https://c/d"), ("https://a/b", "/d"), ("https://a/b", "//c/d"),
     ("http://a/b", "https://c"), ("http://a/b", "http://c"), ("https://a/b", None)],
)  # fmt: skip
def test_other_redirects_are_followed(url, location):
    transfer.refuse_plain_http(Answer(url, location))
