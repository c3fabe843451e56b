"""Configurations of load balancers for given instances.

The balancer gives each request an id. It may therefore repeat a request at another instance, regardless of the first
try: a request with the same id is accepted once.
"""

from collections.abc import Sequence
from typing import NamedTuple

from flowkit.errors import ConfigError

HAPROXY = """\
# haproxy -c -f FILE checks it; HAProxy 2.6 or later.
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
    timeout queue 5s
    timeout http-request 10s
    timeout http-keep-alive 20s

frontend flowkit
    bind {listen}
    # Operators ask the instances directly, at --admin. Instances of earlier versions serve these paths here too.
    http-request deny deny_status 404 if {{ path,url_dec /metrics /scale /flowkit/openapi.json }}
    http-request deny deny_status 404 if {{ path,url_dec /readyz }} {{ query -m reg . }}
    # A request with the same id is accepted once, so it may be repeated elsewhere, regardless of the first try.
    http-request set-header FlowKit-Request-Id %[uuid()]
    # Instances tell clients apart by this header if FORWARDED_ALLOW_IPS names this balancer.
    http-request set-header X-Forwarded-For %[src]
    default_backend instances

backend instances
    balance {balance}
    option http-buffer-request
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response junk-response response-timeout 503
    option httpchk
    http-check send meth GET uri /readyz
    http-check expect status 200
    default-server check inter 500ms fastinter 100ms fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down
{servers}"""
NGINX = """\
# nginx -t -c FILE checks it. nginx has no health checks: it notices a dead instance only by failed requests.
worker_processes auto;
events {{ worker_connections 4096; }}
http {{
    upstream instances {{
        least_conn;
        keepalive 64;
{servers}    }}
    server {{
        listen {listen};
        client_max_body_size 16m;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $host;
        # A request with the same id is accepted once, so it may be repeated at another instance.
        proxy_set_header FlowKit-Request-Id $request_id;
        # Instances tell clients apart by this header if FORWARDED_ALLOW_IPS names this balancer.
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_connect_timeout 2s;
        proxy_next_upstream error timeout http_503 non_idempotent;
        proxy_next_upstream_tries 3;
        location / {{ proxy_pass http://instances; }}
        # Operators ask the instances directly, at --admin. Instances of earlier versions serve these paths here too.
        location = /metrics {{ return 404; }}
        location = /scale {{ return 404; }}
        location = /flowkit/openapi.json {{ return 404; }}
        location = /readyz {{
            if ($args) {{ return 404; }}
            proxy_pass http://instances;
        }}
    }}
}}
"""


class Instance(NamedTuple):
    """The address at which an instance serves HTTP."""

    host: str
    port: int


def instance(address: str) -> Instance:
    """Read HOST:PORT. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or not set(host).isdisjoint(" \t\r\n;{}#\"'\\"):
        raise ConfigError(f"instance {address}: write HOST:PORT, such as 10.0.0.1:8080; a port is 65535 at most")
    return Instance(host, int(port))


def haproxy(instances: Sequence[Instance], listen: str, agent_port: int | None) -> str:
    """A configuration of HAProxy. `agent_port`: the port at which each instance answers agent checks, or None."""
    # An agent answers with a percentage of the weight. HAProxy keeps weights exactly only with roundrobin.
    agent = f" weight 100 agent-check agent-port {agent_port} agent-inter 500ms" if agent_port else ""
    servers = [
        f"    server instance-{number} {one.host}:{one.port}{agent}\n" for number, one in enumerate(instances, 1)
    ]
    balance = "roundrobin" if agent_port else "leastconn"
    return HAPROXY.format(listen=listen, balance=balance, servers="".join(servers))


def nginx(instances: Sequence[Instance], listen: str) -> str:
    """A configuration of nginx."""
    servers = [f"        server {one.host}:{one.port} max_fails=1 fail_timeout=2s;\n" for one in instances]
    return NGINX.format(listen=listen, servers="".join(servers))
