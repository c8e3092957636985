"""The HTTP edge: decode a request, call the service, encode its answer. No policy of its own."""

from code_executor.api.app import create_app
from code_executor.api.config import EdgeConfig
from code_executor.api.server import uvicorn_config

__all__ = ["EdgeConfig", "create_app", "uvicorn_config"]
