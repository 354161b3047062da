"""Adapters put the two calls into training frameworks; each imports its framework when used."""
