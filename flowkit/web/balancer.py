"""Configurations of load balancers for given instances.

Each request gets an id by the balancer, so that it may be sent again to another instance whatever became of the first
try: under one id it is accepted once.
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
    # Operators ask the instances themselves, at --admin. Instances of earlier versions tell these here as well.
    http-request deny deny_status 404 if {{ path,url_dec /metrics /scale /flowkit/openapi.json }}
    http-request deny deny_status 404 if {{ path,url_dec /readyz }} {{ query -m reg . }}
    # Under one id a request is accepted once: it may be tried again elsewhere, whatever became of the first try.
    http-request set-header FlowKit-Request-Id %[uuid()]
    # By it an instance tells clients apart, if FORWARDED_ALLOW_IPS names this balancer.
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
# nginx -t -c FILE checks it. nginx sees that an instance is gone by its failed requests only: it checks none itself.
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
        # Under one id a request is accepted once: it may be tried again at another instance.
        proxy_set_header FlowKit-Request-Id $request_id;
        # By it an instance tells clients apart, if FORWARDED_ALLOW_IPS names this balancer.
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_connect_timeout 2s;
        proxy_next_upstream error timeout http_503 non_idempotent;
        proxy_next_upstream_tries 3;
        location / {{ proxy_pass http://instances; }}
        # Operators ask the instances themselves, at --admin. Instances of earlier versions tell these here as well.
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
    """Where an instance serves HTTP."""

    host: str
    port: int


def instance(address: str) -> Instance:
    """Read HOST:PORT. Raises ConfigError."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536 or not set(host).isdisjoint(" \t\r\n;{}#\"'\\"):
        raise ConfigError(f"instance {address}: write HOST:PORT, such as 10.0.0.1:8080; a port is 65535 at most")
    return Instance(host, int(port))


def haproxy(instances: Sequence[Instance], listen: str, agent_port: int | None) -> str:
    """A configuration of HAProxy. `agent_port`: where each instance answers agent checks, if it does."""
    # What an agent answers is a part of the weight. Shares by weights are exact with roundrobin only.
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
