"""The builder of VOC folders under the name that scripts outside the repository import; see tests/support."""

from tests.support.voc_folder import write_voc

__all__ = ["write_voc"]
