"""A model on disk and in memory: loading, what strangers' files hold, masks and adapters on it, export."""
