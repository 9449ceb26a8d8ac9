"""One look for all pictures of a calibration."""

from __future__ import annotations

from typing import Any

FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"
CLASS_COLOURS = {"linear": "#2f6db5", "attention": "#d1495b", "experts": "#7a4fa3", "elementwise": "#8a9199"}
CONTEXT_COLOURS = ("#1b6ca8", "#e08e2b", "#c23b4b", "#5a8f3c")
PART_COLOURS = {"weights": "#2f6db5", "KV cache": "#d1495b", "activations": "#b8bec4"}


def styled(chart: Any) -> Any:
    """A chart with our fonts, a white ground and quiet axes."""
    return (
        chart.configure(background="white", font=FONT, padding=8)
        .configure_view(strokeWidth=0)
        .configure_axis(
            gridColor="#e6e8ea", domainColor="#9aa0a6", tickColor="#9aa0a6", labelColor="#444", titleColor="#333",
            labelFontSize=11, titleFontSize=12, titleFontWeight="normal", titlePadding=8,
        )
        .configure_title(anchor="start", fontSize=14, fontWeight=600, subtitleFontSize=11.5, subtitleColor="#666",
                         offset=10)
        .configure_legend(labelFontSize=11, titleFontSize=11, titleFontWeight="normal", labelColor="#444",
                          titleColor="#333", symbolSize=90)
        .configure_header(labelFontSize=12, titleFontSize=12, labelColor="#333")
    )  # fmt: skip
