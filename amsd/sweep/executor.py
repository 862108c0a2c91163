"""Moved to amsd.sweep.jobs."""

from amsd.sweep.jobs import Ended, Job, Monitor, RunLog, Stop, TrialExecutor, Verdict, on_signals

__all__ = ["Ended", "Job", "Monitor", "RunLog", "Stop", "TrialExecutor", "Verdict", "on_signals"]
