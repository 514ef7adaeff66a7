"""The descriptors of this service.

Other packages bring messages of the same names: Triton's client has a package ``inference`` too, and a pool
refuses two of a name. So the generated modules register here, not in the pool that everybody shares.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["POOL"]

POOL: Final = DescriptorPool()
