"""Did it help? The one look at the test examples, and what its scores show."""
