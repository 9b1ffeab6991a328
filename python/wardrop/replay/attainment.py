"""The simulator as an evaluator of prefill/decode splits, for the resource game.

`wardrop.games.resource` needs the share of requests within their limits, by the numbers of prefill
and decode workers. Here a replay behind the production router gives this share.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from wardrop.games.resource import Attainment
from wardrop.replay.fleet import Fleet
from wardrop.replay.run import Policy, simulate
from wardrop.replay.workload import Workload
from wardrop.slo import Slo


@dataclass(frozen=True)
class SimulatedAttainment:
    """An `AttainmentSource` by simulation; each split is simulated once and remembered.

    Attributes:
        workload: the requests.
        slo: limits of a request.
        policy: routing policy of both pools.
        fleet: engine, links, load and feed; its numbers of workers are replaced.
        seed: seed of the simulation.
    """

    workload: Workload
    slo: Slo
    policy: Policy = field(default_factory=lambda: Policy("dynamo"))
    fleet: Fleet = field(default_factory=Fleet)
    seed: int = 0
    _seen: dict[tuple[int, int], Attainment] = field(
        default_factory=dict[tuple[int, int], Attainment], repr=False
    )

    def attainment(self, prefill_workers: int, decode_workers: int) -> Attainment:
        """Simulate a split.

        Args:
            prefill_workers: at least 1.
            decode_workers: at least 1.

        Returns:
            Shares of all requests, where a failed request attains nothing, and goodput per second
            of arrivals.

        Raises:
            ValueError: a pool without a worker, or a workload out of range.
        """
        key = (prefill_workers, decode_workers)
        if key not in self._seen:
            self._seen[key] = self._simulate(*key)
        return self._seen[key]

    def _simulate(self, prefill_workers: int, decode_workers: int) -> Attainment:
        fleet = replace(
            self.fleet, workers=0, prefill=prefill_workers, decode=decode_workers, speeds=()
        )
        result = simulate(self.workload, fleet, self.policy, seed=self.seed)
        figures = result.summary(self.slo)
        return Attainment(
            ttft=figures["attainment_ttft"],
            itl=figures["attainment_itl"],
            both=figures["attainment"],
            goodput_rps=figures["goodput_per_s"],
        )
