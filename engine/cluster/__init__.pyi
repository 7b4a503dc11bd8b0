from .access import API_KEY as API_KEY
from .access import Token as Token
from .access import find_token as find_token
from .access import is_loopback as is_loopback
from .access import probe as probe
from .access import use_token as use_token
from .applications import all_or_none as all_or_none
from .applications import delete as delete
from .applications import deploy as deploy
from .applications import require_route as require_route
from .applications import start_serve as start_serve
from .applications import stay as stay
from .blueprint import autoscaling_config as autoscaling_config
from .blueprint import validate_cluster_yaml as validate_cluster_yaml
from .connection import Session as Session
from .connection import session as session
from .waiting import answer as answer
from .waiting import first_answer as first_answer
from .waiting import reason as reason

__all__ = [
    "API_KEY",
    "Session",
    "Token",
    "all_or_none",
    "answer",
    "autoscaling_config",
    "delete",
    "deploy",
    "find_token",
    "first_answer",
    "is_loopback",
    "probe",
    "reason",
    "require_route",
    "session",
    "start_serve",
    "stay",
    "use_token",
    "validate_cluster_yaml",
]
