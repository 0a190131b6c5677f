"""A scrape as a test looks at it."""

from __future__ import annotations

from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from asgi_ipc.metrics import exposition


class Scrape:
    """The samples of one site, parsed by Prometheus' own library from its text."""

    def __init__(self, text: str, prefix: str) -> None:
        self.metrics: list[Metric] = list(text_string_to_metric_families(text))
        self.prefix = prefix

    def __getitem__(self, name: str) -> float:
        """Return the one sample of a name."""
        (value,) = self.by(name).values()
        return value

    def by(self, name: str, *labels: str) -> dict[tuple[str, ...], float]:
        """Return the samples of a name by the values of some of their labels."""
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for metric in self.metrics
            for sample in metric.samples
            if sample.name == f"asgi_ipc_{name}" and sample.labels.get("prefix") == self.prefix
        }

    def of_channels(self, name: str) -> dict[str, float]:
        """Return the samples of a name by channel."""
        return {channel: value for (channel,), value in self.by(name, "channel").items()}

    def state(self) -> str:
        """Return the one state the site is in."""
        (state,) = [state for (state,), value in self.by("site_state", "state").items() if value]
        return state


def scrape(prefix: str, **options: Any) -> Scrape:
    """Look at a site, as Prometheus would."""
    return Scrape(exposition(prefix, **options).decode(), prefix)
