"""The model of an app: flows, channels, and how a message becomes the call of a handler."""
