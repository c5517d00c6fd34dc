"""From conversations to text and tokens: chat templates, turns, thoughts, what ends an answer."""
