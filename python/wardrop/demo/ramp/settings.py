"""Settings of Dynamo's KV router, as files of `--router-policy-config`.

Dynamo 1.7 drops the flags of the cost's weights and of the queue. It keeps this YAML file, which
1.6.1 also reads. JSON is a part of YAML.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_COST = "dynamo-default-cost-fn"
_TWO_TIER = "dynamo-two-tier-cost-fn"


@dataclass(frozen=True)
class Setting:
    """One setting of Dynamo's KV router.

    Attributes:
        name: Name in results and of the file.
        cost: Parameters of the default cost; empty for Dynamo's defaults.
        two_tier: Whether Dynamo's two-tier cost decides instead of the default cost.
        queue: Policy of the queue, `fcfs` or `wspt`, which then holds requests as soon as every
            worker has prefill load; None leaves the queue off, as by default.
        simulated: The policy of the simulator that decides alike; None where it has none.
    """

    name: str
    cost: dict[str, float] = field(default_factory=dict[str, float])
    two_tier: bool = False
    queue: str | None = None
    simulated: str | None = None

    def flags(self, folder: Path) -> tuple[str, ...]:
        """Write the file into a folder.

        Args:
            folder: An existing folder.

        Returns:
            Flags for `dynamo.frontend`; none, and no file, for Dynamo's defaults.
        """
        content = self._selection() | self._classes()
        if not content:
            return ()
        path = folder / f"{self.name}.yaml"
        path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        return ("--router-policy-config", str(path))

    def _selection(self) -> dict[str, Any]:
        if not self.cost and not self.two_tier:
            return {}
        instance = {
            "name": "tuned",
            "type": _TWO_TIER if self.two_tier else _COST,
            "parameters": dict(self.cost),
        }
        roles = dict.fromkeys(("aggregated", "prefill", "decode"), "tuned")
        return {"worker_selection": {**roles, "instances": [instance]}}

    def _classes(self) -> dict[str, Any]:
        if self.queue is None:
            return {}
        only = {
            "name": "all",
            "policy_family": "standard",
            "cache_bucket": "all",
            "queue_policy": self.queue,
            "quantum": 1,
            "prefill_busy_threshold_frac": 0.0,
        }
        return {
            "default_policy_family": "standard",
            "uncached_isl_buckets": [{"min_tokens": 0, "bucket": "all"}],
            "policy_classes": [only],
        }
