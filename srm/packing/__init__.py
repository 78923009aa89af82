"""Packed batches with a shared prompt, and the attention that runs them on any Hugging Face decoder.

`pack` lays token ids out, `run_backbone` runs a backbone on the result, `probe` proves that the backbone can be packed at all.
`run_to_boundaries` runs the last layer on the rows alone that a head reads, where `prove_last_layer` has shown that it may.
"""

from srm.packing.backbone import PackingReport, enable, report, run_backbone, run_to_boundaries, run_to_logits
from srm.packing.batch import PackedBatch, PackingMode, PromptGroup, ResponseIds
from srm.packing.errors import UnsupportedBackboneError
from srm.packing.last_layer import LastLayer, LastLayerRows
from srm.packing.last_layer_proof import prove_last_layer
from srm.packing.layout import pack
from srm.packing.probing import check_decoder, probe

__all__ = [
    "LastLayer",
    "LastLayerRows",
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
    "prove_last_layer",
    "report",
    "run_backbone",
    "run_to_boundaries",
    "run_to_logits",
]
