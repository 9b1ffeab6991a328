"""Configuration: one frozen dataclass per stage, checked when it is built, swapped whole.

Every setting exists in four sources under one name. The field `limits.body_bytes` is the flag
`--limits-body-bytes`, the variable `WARDROP_LIMITS_BODY_BYTES` and the YAML key
`limits: {body_bytes: …}`. Settings that users meet first have a shorter flag and variable.

Files: `fields` declares and checks settings. `http`, `routing`, `dynamo`, `fleet` and `control`
hold the stages, and `config` joins them. `files` checks the files that settings name. `sources`
reads flags, variables and YAML. `native` asks the native module.
"""

from wardrop.config.config import Config
from wardrop.config.control import CONTROLLER_MOVES, Control, IndexFile, Log, Records, Shadows
from wardrop.config.dynamo import Discovery, Dynamo, FrontendMode
from wardrop.config.fields import ConfigError
from wardrop.config.files import check_files
from wardrop.config.fleet import Fleet
from wardrop.config.http import Http, Limits, Routes, Upstream
from wardrop.config.native import check_gateway, check_policy
from wardrop.config.peers import Peers
from wardrop.config.routing import Feed, Predicted, PredictedUse, Prompt, Routing
from wardrop.config.sources import Setting, load, settings
from wardrop.config.tracing import Tracing

__all__ = [
    "CONTROLLER_MOVES",
    "Config",
    "ConfigError",
    "Control",
    "Discovery",
    "Dynamo",
    "Feed",
    "Fleet",
    "FrontendMode",
    "Http",
    "IndexFile",
    "Limits",
    "Log",
    "Peers",
    "Predicted",
    "PredictedUse",
    "Prompt",
    "Records",
    "Routes",
    "Routing",
    "Setting",
    "Shadows",
    "Tracing",
    "Upstream",
    "check_files",
    "check_gateway",
    "check_policy",
    "load",
    "settings",
]
