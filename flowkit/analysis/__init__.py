"""Analysis: what the source of an app's handlers says before they run."""
