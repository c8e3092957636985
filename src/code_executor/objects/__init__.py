"""Objects: bytes named by their SHA-256, behind ``ports.Objects``."""

from code_executor.objects.store import CorruptObject, ObstoreObjects, local_objects

__all__ = ["CorruptObject", "ObstoreObjects", "local_objects"]
