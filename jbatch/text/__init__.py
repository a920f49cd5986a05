"""Strings to token ids and back: tokenizers, conversations, chat templates."""
