"""The state of the server, as the KServe protocol reports it: whether it is ready, and what its models have done."""

from tidegate.core.spec import Spec
from tidegate.rpc.kserve.backend import ModelCounts
from tidegate.runtime.metrics import Outcome
from tidegate.runtime.repository import Repository
from tidegate.runtime.stream_registry import StreamRegistry

# Outcomes of a timestep that was answered with a prediction. All others are failures.
SUCCESSES: tuple[Outcome, ...] = ("ok", "duplicate")


class InferenceStatus:
    """Reads the metrics of this process."""

    def __init__(self, repository: Repository, registry: StreamRegistry) -> None:
        self._repository = repository
        self._registry = registry

    def is_ready(self) -> bool:
        """Whether the store keeps up."""
        return self._registry.checkpointer.ready

    def counts(self, spec: Spec) -> ModelCounts:
        """What a model has done so far."""
        metrics = self._repository.find(spec.name, spec.version, begun=True).metrics
        return ModelCounts(
            applied=sum(metrics.steps[outcome] for outcome in SUCCESSES),
            failed=sum(count for outcome, count in metrics.steps.items() if outcome not in SUCCESSES),
            batches=sum(metrics.batch_size.counts),
            queued=sum(metrics.queue_seconds.counts),
            step_seconds=metrics.step_seconds.sum,
            queue_seconds=metrics.queue_seconds.sum,
            batch_seconds=metrics.run_seconds.sum,
        )
