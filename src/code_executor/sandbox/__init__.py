"""Sandboxes: the backends, and what they share. See ``ports.Backend`` for what one promises."""
