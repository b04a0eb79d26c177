"""Launchers: they start the programs of `cascades`, which know nothing of them."""
