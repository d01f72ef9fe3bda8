"""Minitron compression of hybrid systems: what can go is measured, a shape is searched, the model is cut to it.

    plan(name, config, task)                 what fits a budget, from sizes alone
    compress(model, batches, task)           importance, search, surgery -> smaller model, what was kept, report
    cut(model, kept)                         surgery alone
    Nested(model, sizes)                     a smaller model inside a larger one's weights

What is lost is learnt again by distillation: ``teach`` in a recipe (:mod:`omni.training_lessons`). Sources:
``reference`` generation_and_compression, part B (arXiv 2508.14444, 2504.11409; Model Optimizer).
"""

from omni.compress.axes import AXES, shaped, widths
from omni.compress.budget import Costs, Ruler, Use
from omni.compress.damage import Judge
from omni.compress.depth import DepthOrder, rank
from omni.compress.elastic import Nested
from omni.compress.importance import Importance, choose, measure
from omni.compress.report import Report
from omni.compress.run import Task, compress, plan, write
from omni.compress.search import Candidate, Grid, Limits, search
from omni.compress.surgery import Kept, cut, whole

__all__ = [
    "AXES",
    "Candidate",
    "Costs",
    "DepthOrder",
    "Grid",
    "Importance",
    "Judge",
    "Kept",
    "Limits",
    "Nested",
    "Report",
    "Ruler",
    "Task",
    "Use",
    "choose",
    "compress",
    "cut",
    "measure",
    "plan",
    "rank",
    "search",
    "shaped",
    "whole",
    "widths",
    "write",
]
