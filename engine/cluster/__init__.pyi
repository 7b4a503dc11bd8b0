from .access import Token as Token
from .access import find_token as find_token
from .access import is_loopback as is_loopback
from .access import probe as probe
from .access import use_token as use_token
from .blueprint import autoscaling_config as autoscaling_config
from .blueprint import validate_cluster_yaml as validate_cluster_yaml
from .connection import Session as Session
from .connection import session as session

__all__ = [
    "Session",
    "Token",
    "autoscaling_config",
    "find_token",
    "is_loopback",
    "probe",
    "session",
    "use_token",
    "validate_cluster_yaml",
]
