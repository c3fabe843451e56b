"""A small app, so that commands and metrics have something to show."""

from flowkit import App, Reject, web

app = App("app")
channel = app.channel("channel", int)


@app.flow(channel)
def flow(number: int) -> None:
    raise Reject("no number suits")


@app.flow(web.post("/numbers/{number}"))
def asked(number: int, body: dict[str, str]) -> None: ...
