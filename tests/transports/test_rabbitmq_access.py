"""RabbitMQ with a wrong URL, a wrong password or a wrong certificate is named."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flowkit import ConfigError
from flowkit.errors import BrokerUnavailable
from tests.services import free_port
from tests.services.rabbitmq import RabbitMQ
from tests.support.hostile_broker import shop, start


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"vhost": "nowhere"}, ConfigError, "vhost nowhere not found"),
        ({"user": "nobody"}, ConfigError, "ProbableAuthenticationError|ACCESS_REFUSED"),
        ({"password": "hidden-secret"}, ConfigError, "ProbableAuthenticationError|ACCESS_REFUSED"),
        ({"port": 1}, BrokerUnavailable, "Connection refused"),
    ],
    ids=["vhost", "user", "password", "port"],
)
def test_a_setting_that_does_not_let_us_in_is_named(
    sqlite_url: str, rabbitmq_node: RabbitMQ, rabbitmq_url: str, change: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as refused:
        start(shop(), sqlite_url, rabbitmq_node.url(**change))
    assert "FLOWKIT_BROKER_URL is amqp://" in str(refused.value)
    assert "; check " in str(refused.value)
    assert "hidden-secret" not in str(refused.value)


def test_a_server_that_is_no_broker_is_named(sqlite_url: str) -> None:
    """It takes the connection and says something else, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            client, _ = server.accept()
            with client:
                client.recv(100)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        threading.Thread(target=answer, daemon=True).start()
        port = server.getsockname()[1]
        with pytest.raises(BrokerUnavailable, match="FLOWKIT_BROKER_URL"):
            start(shop(), sqlite_url, f"amqp://u:p@127.0.0.1:{port}/?heartbeat=2")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities, and a certificate for localhost by the first."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    for authority in ("ours", "theirs"):
        openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={authority}",
            "-keyout", f"{authority}.key", "-out", f"{authority}.pem",
        )  # fmt: skip
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "asked.pem")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        "x509", "-req", "-in", "asked.pem", "-CA", "ours.pem", "-CAkey", "ours.key", "-CAcreateserial", "-days", "2",
        "-extfile", "names", "-out", "cert.pem",
    )  # fmt: skip
    for file in folder.iterdir():
        file.chmod(0o600)
    return folder


@pytest.fixture(scope="module")
def tls_port(certificates: Path, rabbitmq_node: RabbitMQ) -> Iterator[int]:
    """A port of the node that speaks TLS."""
    rabbitmq_node.start()
    port = free_port()
    files = ", ".join(
        f'{{{option}, "{certificates / name}"}}'
        for option, name in (("cacertfile", "ours.pem"), ("certfile", "cert.pem"), ("keyfile", "key.pem"))
    )
    rabbitmq_node.evaluate(f'rabbit_networking:start_ssl_listener({{"127.0.0.1", {port}}}, [{files}], 2, 2).')
    yield port


@pytest.mark.parametrize(
    ("host", "options", "message"),
    [
        ("localhost", "cacertfile={}/ours.pem", ""),
        ("localhost", "verify=verify_none", ""),
        ("localhost", "", "certificate verify failed"),
        ("localhost", "cacertfile={}/theirs.pem", "certificate verify failed"),
        ("127.0.0.1", "cacertfile={}/ours.pem", "certificate is not valid for '127.0.0.1'"),
    ],
    ids=["known", "unverified", "system", "other-authority", "other-name"],
)
def test_threat_tls_is_verified_unless_told_otherwise(
    sqlite_url: str, rabbitmq_node: RabbitMQ, tls_port: int, certificates: Path, host: str, options: str, message: str
) -> None:
    url = rabbitmq_node.url(tls_port).replace("amqp:", "amqps:").replace("127.0.0.1", host)
    url = f"{url}?{options.format(certificates)}"
    if not message:
        worker = start(shop(), sqlite_url, url)
        worker.close()
        worker.services.close()
        return
    with pytest.raises((ConfigError, BrokerUnavailable), match=message) as refused:
        start(shop(), sqlite_url, url)
    assert "FLOWKIT_BROKER_URL" in str(refused.value)
