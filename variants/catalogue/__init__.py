"""The methods of `conf/variant`, read from their cards without importing them: `python -m variants list`."""
