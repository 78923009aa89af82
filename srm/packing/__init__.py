"""Packed batches with a shared prompt, and the attention that runs them on any Hugging Face decoder.

`pack` lays token ids out, `run_backbone` runs a backbone on the result, `probe` proves that the backbone can be packed at all.
"""

from srm.packing.backbone import PackingReport, enable, report, run_backbone
from srm.packing.batch import PackedBatch, PackingMode, PromptGroup, ResponseIds
from srm.packing.errors import UnsupportedBackboneError
from srm.packing.layout import pack
from srm.packing.probing import check_decoder, probe

__all__ = [
    "PackedBatch",
    "PackingMode",
    "PackingReport",
    "PromptGroup",
    "ResponseIds",
    "UnsupportedBackboneError",
    "check_decoder",
    "enable",
    "pack",
    "probe",
    "report",
    "run_backbone",
]
