"""Looking after caches that are there: what they hold, whether they are whole, mending them, making others of them."""
