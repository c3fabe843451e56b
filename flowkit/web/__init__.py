"""Flows that HTTP requests come in by: `@app.flow(web.post("/orders"))`. `flowkit run --http` serves them."""

from functools import partial

from flowkit.errors import Unauthorized
from flowkit.web.route import Head, Header, Route

get = partial(Route, "GET")
post = partial(Route, "POST")
put = partial(Route, "PUT")
patch = partial(Route, "PATCH")
delete = partial(Route, "DELETE")
header = Header

__all__ = ["Head", "Unauthorized", "delete", "get", "header", "patch", "post", "put"]
