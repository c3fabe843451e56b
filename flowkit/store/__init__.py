"""The store: inbox, message rows, dead letters, subscriptions, workers and ledger in one SQL schema."""
