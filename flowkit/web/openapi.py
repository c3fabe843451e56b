"""The OpenAPI document of an app's routes (OpenAPI 3.1)."""

from http import HTTPStatus
from typing import Any

from pydantic import TypeAdapter

from flowkit.app import App
from flowkit.model.flow import Flow
from flowkit.web.identity import KEYS, identifying
from flowkit.web.problem import MEDIA_TYPE
from flowkit.web.route import Arguments, Header, RequestBinding, Route

VERSION = "3.1.0"
JSON, BYTES, TEXT = "application/json", "application/octet-stream", "text/plain"
MODELS = "#/components/schemas/{model}"
PROBLEMS = {
    HTTPStatus.BAD_REQUEST: "the request is malformed",
    HTTPStatus.REQUEST_TIMEOUT: "the content came too slowly",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "the content is too large",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "the content is of another type",
    HTTPStatus.UNPROCESSABLE_ENTITY: "the request does not match the route, or its id was used for another request",
    HTTPStatus.TOO_MANY_REQUESTS: "too many requests; Retry-After says when to come again",
    HTTPStatus.SERVICE_UNAVAILABLE: "it cannot be stored now; Retry-After says when to come again",
}
ACCEPTED = {
    "type": "object",
    "properties": {"id": {"type": "string"}, "status": {"type": "string", "format": "uri-reference"}},
    "required": ["id", "status"],
}
PROBLEM = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
    "required": ["type", "title", "status", "detail"],
}


def described(app: App) -> dict[str, Any]:
    """The OpenAPI document of an app, as a JSON object."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {"Accepted": ACCEPTED, "Problem": PROBLEM}
    for flow in app.flows.values():
        if isinstance(flow.source, Route) and isinstance(flow.binding, RequestBinding):
            operation = _operation(flow, flow.source, flow.binding.arguments, schemas)
            paths.setdefault(flow.source.path, {}).setdefault(flow.source.method.lower(), operation)
    return {
        "openapi": VERSION,
        "info": {"title": app.name, "version": "1"},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _operation(flow: Flow, route: Route, arguments: Arguments, schemas: dict[str, Any]) -> dict[str, Any]:
    fields = arguments.model.model_fields if arguments.model else {}
    parameters = _identity(flow)
    for name in (*arguments.path, *arguments.query):
        place = "path" if name in arguments.path else "query"
        schema = _schema(fields[name].annotation, schemas)
        required = place == "path" or fields[name].is_required()
        parameters.append({"name": name, "in": place, "required": required, "schema": schema})
    operation: dict[str, Any] = {
        "operationId": flow.name,
        "parameters": parameters,
        "responses": _responses(flow, route, schemas),
    }
    if flow.id_from is not None:
        named = isinstance(flow.id_from, str | Header)
        what = f"{identifying(flow)} identifies" if named else "Its arguments identify"
        operation["description"] = f"{what} it: sent again under the same, it is accepted once"
    if summary := (flow.handler.__doc__ or "").strip().partition("\n")[0]:
        operation["summary"] = summary
    if arguments.body is not None:
        media = {bytes: BYTES, str: TEXT}.get(arguments.body.raw, JSON) if arguments.body.raw else JSON
        operation["requestBody"] = {
            "required": True,
            "content": {media: {"schema": _schema(arguments.body.annotation, schemas)}},
        }
    return operation


def _identity(flow: Flow) -> list[dict[str, Any]]:
    """The parameter of the header that identifies a request; empty if its arguments do."""
    if flow.id_from is not None and not isinstance(flow.id_from, Header):
        return []
    return [
        {
            "name": identifying(flow),
            "in": "header",
            "required": flow.id_from is not None,
            "description": "Sent again under the same, the request is accepted once",
            "schema": {"type": "string", "pattern": f"^{KEYS}$"},
        }
    ]


def _responses(flow: Flow, route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if route.reply:
        answer = _schema(flow.signature.hints.get("return", Any), schemas)
        found["200"] = {"description": "what the flow returned", "content": {JSON: {"schema": answer}}}
    reference = {"$ref": "#/components/schemas/Accepted"}
    found["202"] = {"description": "stored; read its state at `status`", "content": {JSON: {"schema": reference}}}
    unauthorized = {HTTPStatus.UNAUTHORIZED: "the request does not name its sender"} if route.principal else {}
    for status, why in {**PROBLEMS, **unauthorized}.items():
        problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
        found[str(status.value)] = {"description": why, "content": {MEDIA_TYPE: problem}}
    return found


def _schema(annotation: Any, schemas: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a type. The models that it refers to are added to `schemas`."""
    schema = TypeAdapter(annotation).json_schema(ref_template=MODELS)
    schemas.update(schema.pop("$defs", {}))
    return schema
