"""How the ranks of a data-parallel job stay one run: the only collectives of `esper` besides DDP's own."""

from esper.distributed.agreement import Agreed, Agreement, AgreementConfig
from esper.distributed.joining import join_job
from esper.distributed.rows import AgreementRecord, GrowthRecord, GrowthStep

__all__ = [
    "Agreed",
    "Agreement",
    "AgreementConfig",
    "AgreementRecord",
    "GrowthRecord",
    "GrowthStep",
    "join_job",
]
