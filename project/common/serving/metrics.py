"""What a server measures, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = tuple(2**i for i in range(0, 15))


class Metrics:
    """Counters of one server, in a registry of their own."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self):
        own = self.registry = CollectorRegistry()
        self.requests = Counter("serve_requests", "Requests by HTTP status.", ["status"], registry=own)
        self.images = Counter("serve_images", "Images answered, by key.", ["key"], registry=own)
        self.batch = Histogram("serve_batch_images", "Images in a forward pass.", buckets=SIZES, registry=own)
        self.forward = Histogram("serve_forward_seconds", "Seconds of a forward pass.", buckets=SECONDS, registry=own)
        self.seconds = Histogram(
            "serve_request_seconds", "Seconds from a request's head to the end of its answer.", buckets=SECONDS, registry=own
        )
        self.queue = Gauge("serve_queue_requests", "Requests that wait for a forward pass.", registry=own)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)
