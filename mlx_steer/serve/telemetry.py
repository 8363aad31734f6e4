"""The server's counters as Prometheus reads them."""

from __future__ import annotations

from mlx_steer.serve.messages import Load


def prometheus(load: Load) -> str:
    """Text in Prometheus' exposition format 0.0.4."""
    gauges = {
        "requests_running": (load.running, "Responses that are being decoded."),
        "requests_waiting": (load.waiting, "Responses that wait for a place."),
    }
    counters = {
        "prompt_tokens_total": (load.prompt_tokens, "Prompt tokens read."),
        "cached_tokens_total": (load.cached_tokens, "Prompt tokens that were read before."),
        "response_tokens_total": (load.response_tokens, "Response tokens made."),
        "steps_total": (load.steps, "Decoding steps."),
        "step_seconds_total": (load.step_seconds, "Seconds spent in decoding steps."),
    }
    lines: list[str] = []
    for kind, values in (("gauge", gauges), ("counter", counters)):
        for name, (value, help_text) in values.items():
            full = f"mlx_steer_{name}"
            lines += [f"# HELP {full} {help_text}", f"# TYPE {full} {kind}", f"{full} {value:g}"]
    full = "mlx_steer_requests_finished_total"
    lines += [f"# HELP {full} Responses by how they ended.", f"# TYPE {full} counter"]
    lines += [f'{full}{{reason="{reason}"}} {n}' for reason, n in sorted(load.finished.items())]
    return "\n".join(lines) + "\n"
