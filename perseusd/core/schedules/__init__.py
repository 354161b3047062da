"""Orders of computations on each rank, known or observed, and the dependencies between them.

A schedule decides the order alone: dependencies follow from any order by the same rules
(`dependencies`), given where virtual stages are (`layout`). One file a family of schedules;
`registry` knows them by name, and `written` reads any order from text.
"""

from perseusd.core.schedules.data_parallel import data_parallel
from perseusd.core.schedules.dependencies import Lag, Orders, pipeline, pipelines
from perseusd.core.schedules.gpipe import gpipe
from perseusd.core.schedules.interleaved import interleaved_one_f_one_b
from perseusd.core.schedules.layout import Layout, virtual_stage
from perseusd.core.schedules.one_f_one_b import early_recompute_one_f_one_b, one_f_one_b, zb_h1
from perseusd.core.schedules.registry import NAMES, by_name
from perseusd.core.schedules.written import WrittenOrders, orders_from_text, read_orders

__all__ = [
    "NAMES",
    "Lag",
    "Layout",
    "Orders",
    "WrittenOrders",
    "by_name",
    "data_parallel",
    "early_recompute_one_f_one_b",
    "gpipe",
    "interleaved_one_f_one_b",
    "one_f_one_b",
    "orders_from_text",
    "pipeline",
    "pipelines",
    "read_orders",
    "virtual_stage",
    "zb_h1",
]
