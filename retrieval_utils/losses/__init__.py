"""Losses on descriptors of a batch: differentiable average precision and recall, and what they are set against.

Every loss works on scores (Q, N) with a mask of positives, so it takes any batch layout, a memory bank or a query set.
"""

from retrieval_utils.losses.base import RetrievalLoss
from retrieval_utils.losses.metric import LiftedStructureLoss, MarginSampleMiningLoss, QuadrupletLoss
from retrieval_utils.losses.pairs import ContrastiveLoss, NTXentLoss, TripletLoss
from retrieval_utils.losses.quantized import FastAPLoss, QuantizedAPLoss
from retrieval_utils.losses.smooth import RecallLoss, SmoothAPLoss, SupAPLoss
from retrieval_utils.losses.tuples import AutoEmbedderLoss, LRMLLoss

__all__ = [
    "AutoEmbedderLoss",
    "ContrastiveLoss",
    "FastAPLoss",
    "LRMLLoss",
    "LiftedStructureLoss",
    "MarginSampleMiningLoss",
    "NTXentLoss",
    "QuadrupletLoss",
    "QuantizedAPLoss",
    "RecallLoss",
    "RetrievalLoss",
    "SmoothAPLoss",
    "SupAPLoss",
    "TripletLoss",
]
