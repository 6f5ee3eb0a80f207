"""Looking after caches: what they hold, whether they are whole, repairing them, and converting them into others."""
