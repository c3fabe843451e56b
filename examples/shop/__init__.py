"""The shop example: an order becomes a row, a piece of stock, an invoice and a mail."""
