"""The tiny checkpoint and the small text of the harvest's tests."""

from tests.harvest.conftest import texts_file, tiny_model

__all__ = ["texts_file", "tiny_model"]
