"""Ray itself: private sessions, connections to running clusters, their token, their autoscaling plan.

Left out: what a job asks of a cluster (`engine.resources`) and the Ray Jobs API (`engine.submission`).
Called by every job through `session`; by `engine.doctor` and `engine.submission`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
