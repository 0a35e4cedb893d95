"""Makes plain Hugging Face checkpoints of models that come in another format."""

from __future__ import annotations

from trd_ray.convert.smollm2 import ConversionReport, convert_smollm2

__all__ = ["ConversionReport", "convert_smollm2"]
