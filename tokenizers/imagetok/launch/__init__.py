"""The processes of a launcher: which one this is, where it computes, and how they work together.

`torchrun`, `accelerate launch` and `srun` start the same command several times. `processes` says
which of them a process is and picks its device, `collectives` are sums, gathers and broadcasts
between them, and `signals` stop all of them after the same step. Built on torch.distributed alone.
"""

from imagetok.launch.processes import (
    RankInfo,
    check_main_guard,
    find_device,
    find_rank_info,
    find_reader_ranks,
    has_only_cpu,
    leave_group_at_exit,
    read_device,
)
from imagetok.launch.signals import SIGNALS, StopSignals, ignore_signals, watch_launcher

__all__ = [
    "SIGNALS",
    "RankInfo",
    "StopSignals",
    "check_main_guard",
    "find_device",
    "find_rank_info",
    "find_reader_ranks",
    "has_only_cpu",
    "ignore_signals",
    "leave_group_at_exit",
    "read_device",
    "watch_launcher",
]
