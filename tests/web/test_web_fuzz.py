"""Requests that a machine thinks of, by the OpenAPI document: each gets an answer that the document foresees, and what
was accepted comes to an end."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings, strategies

from tests.support.waiting import wait_until
from tests.support.web_site import Site, shop

KEY = "Idempotency-Key"
numbers = count()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(f"sqlite:///{tmp_path_factory.mktemp('fuzz')}/flowkit.db", shop())
    yield made
    made.close()


@pytest.fixture(scope="module")
def document(site: Site) -> Any:
    return schemathesis.openapi.from_dict(site.admin.get("/flowkit/openapi.json").json())


@given(data=strategies.data())
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_request_gets_an_answer_that_the_document_foresees(site: Site, document: Any, data: Any) -> None:
    case = data.draw(document.as_strategy())
    key = case.headers.get(KEY)
    if key is not None and len(key) < 200:  # one that came before with something else is refused, as it should be
        case.headers[KEY] = f"{key}-{next(numbers)}"
    case.call_and_validate(base_url=f"http://127.0.0.1:{site.port}")


def test_what_was_accepted_came_to_an_end(site: Site) -> None:
    flows = list(site.worker.app.flows)
    wait_until(lambda: site.store.ledger.unfinished(flows) == 0)
    balances = site.store.ledger.balances()
    assert all(balances[flow].balanced for flow in flows)
    assert sum(balances[flow].applied for flow in flows) > 0, "some were good"
