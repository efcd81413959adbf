"""Pictures of results. Install with `pip install dartquant[plot]`; `python -m dartquant plot FILE.json -o FILE.png`.

Each function takes matplotlib axes (or makes a figure) and returns the axes. SPDX-License-Identifier: Apache-2.0
"""
from __future__ import annotations

import functools
from typing import Any, Callable, Mapping, Optional, Sequence, Union

import numpy as np

_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def _axes(axes: Any) -> Any:
    if axes is not None:
        return axes
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("pictures need matplotlib: pip install dartquant[plot]") from None
    return Figure(figsize=(8, 4.5), layout="constrained").add_subplot()


def perplexity_by_scheme(results: Mapping[str, float], *, baseline: Optional[float] = None, axes: Any = None) -> Any:
    """Bars: scheme -> perplexity. `baseline` (the unquantized model) becomes a line."""
    if not results:
        raise ValueError("no results to draw")
    axes = _axes(axes)
    names, values = list(results), [float(v) for v in results.values()]
    bars = axes.bar(range(len(names)), values)
    axes.bar_label(bars, fmt="%.3g")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_ylabel("perplexity")
    if max(values) > 10 * min(values):
        axes.set_yscale("log")
    if baseline is not None:
        axes.axhline(baseline, linestyle="--", color="black", linewidth=1, label="unquantized %.3g" % baseline)
        axes.legend()
    return axes


def calibration(report: Mapping[str, Any], *, axes: Any = None) -> Any:
    """Loss over the steps of each learnt rotation, as a share of its first, from `Rotation.report` or the JSON of
    `dartquant calibrate`."""
    rotations = [r for r in report.get("rotations") or [] if r["history"]]
    if not rotations:
        raise ValueError("the report has no rotations: nothing was learnt")
    axes = _axes(axes)
    for r in rotations:
        losses = [p["loss"] for p in r["history"] if not p["finish"] and p["loss"] is not None]
        if losses:
            main = r["name"] == "R1"
            axes.plot([x / losses[0] for x in losses], linewidth=2 if main else 0.7, color="black" if main else None,
                      label=r["name"] if main or len(rotations) < 8 else None)
    axes.set_xlabel("step")
    axes.set_ylabel("loss / first loss")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    return axes


def calibration_error(report: Mapping[str, Any], *, axes: Any = None) -> Any:
    """Quantization error of held-out activations before and after, of each rotation that was learnt."""
    rotations = [r for r in report.get("rotations") or [] if r["kinds"]]
    if not rotations:
        raise ValueError("the report has no rotations: nothing was learnt")
    axes = _axes(axes)
    places = list(range(len(rotations)))
    for key, label in (("error_before", "before"), ("error_after", "after")):
        axes.plot(places, [r["kinds"][0][key] for r in rotations], "o", markersize=4, label=label)
    names = [r["name"].replace("R2 of layer ", "") for r in rotations]
    axes.set_xticks(places, names, fontsize="small", rotation=90 if len(names) > 16 else 0)
    axes.set_xlabel("R2 of layer, and R1" if "R1" in names else "R2 of layer")
    axes.set_ylabel("relative error")
    axes.set_ylim(bottom=0)
    axes.legend()
    return axes


def layer_error(report: Mapping[str, Any], *, axes: Any = None) -> Any:
    """Relative error of each linear over the depth of the model, from `model.report` or the JSON of `dartquant quantize`."""
    layers = report.get("layers") or []
    if not layers:
        raise ValueError("the report has no layers: nothing was quantized")
    axes = _axes(axes)
    kinds = sorted({_kind(row["name"]) for row in layers}, key=lambda k: (_ORDER + (k,)).index(k))
    for kind in kinds:
        points = [(row["layer"], row["error"]) for row in layers if _kind(row["name"]) == kind]
        axes.plot([p[0] for p in points], [p[1] for p in points], marker=".", label=kind)
    axes.set_yscale("log")
    axes.set_xlabel("layer")
    axes.set_ylabel("relative error")
    axes.legend(fontsize="small")
    return axes


def _kind(name: str) -> str:
    parts = [p for p in name.split(".") if p != "weight"]
    return parts[-1]


def histogram(values: Mapping[str, Any], *, bins: int = 200, axes: Any = None) -> Any:
    """Distributions of activations or weights, e.g. {"before": x, "after": hadamard(x)}, on one logarithmic scale."""
    axes = _axes(axes)
    arrays = {k: np.asarray(v.detach().float().cpu() if hasattr(v, "detach") else v, np.float32).ravel()
              for k, v in values.items()}
    reach = max((float(np.abs(a).max()) for a in arrays.values() if a.size), default=0.0)
    if not reach:
        raise ValueError("no values to draw")
    edges = np.linspace(-reach, reach, bins + 1)
    for name, array in arrays.items():
        axes.hist(array, bins=edges, histtype="step", label="%s (largest %.3g)" % (name, np.abs(array).max()))
    axes.set_yscale("log")
    axes.set_xlabel("value")
    axes.set_ylabel("count")
    axes.legend()
    return axes


def channel_ranges(values: Mapping[str, Any], *, axes: Any = None) -> Any:
    """Largest magnitude of every channel (last dimension), sorted: outlier channels stand out, rotation flattens them."""
    axes = _axes(axes)
    for name, value in values.items():
        array = np.asarray(value.detach().float().cpu() if hasattr(value, "detach") else value, np.float32)
        axes.plot(np.sort(np.abs(array.reshape(-1, array.shape[-1])).max(axis=0))[::-1], label=name)
    axes.set_yscale("log")
    axes.set_xlabel("channel, by size")
    axes.set_ylabel("largest magnitude")
    axes.legend()
    return axes


def draw(reports: Union[Mapping[str, Any], Sequence[Mapping[str, Any]]], path: str) -> list[str]:
    """Draws what JSON results of `dartquant ppl`, `quantize`, `calibrate` and `compare` hold to an image file; names of the
    panels."""
    from matplotlib.figure import Figure

    rows = [reports] if isinstance(reports, Mapping) else list(reports)
    panels = _panels(rows)
    if not panels:
        raise ValueError("nothing to draw: no perplexities, layers or learnt rotations in these results")
    figure = Figure(figsize=(8, 4.5 * len(panels)), layout="constrained")
    for axes, (title, drawn) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels):
        drawn(axes)
        axes.set_title(title)
    figure.savefig(path)
    return [title for title, _ in panels]


def _panels(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Callable[[Any], Any]]]:
    """Title of each panel and what draws it."""
    panels: list[tuple[str, Callable[[Any], Any]]] = []
    measured, baseline = {}, None
    for row in rows:
        for result in row.get("results") or []:
            label = scheme_name(row)
            if label == "none" and baseline is None:
                baseline = result["ppl"]
            measured["%s\n%s" % (label, result["dataset"]) if len(row["results"]) > 1 else label] = result["ppl"]
    if measured:
        panels.append(("perplexity", functools.partial(_bars, measured, baseline)))
    for row in rows:
        schemes = row.get("rows") or []
        compared = {r["scheme"]: r["ppl"] for r in schemes}
        if compared:
            panels.append(("perplexity, compared", functools.partial(_bars, compared, compared.pop("full precision", None))))
        if row.get("layers"):
            panels.append(("error of %s" % scheme_name(row), functools.partial(_drawn, layer_error, row)))
        learnt = [("", row), ("", row.get("calibration_of_rotations") or {})]
        learnt += [(": " + r["scheme"], r.get("calibration_of_rotations") or {}) for r in schemes]
        for name, report in learnt:
            if isinstance(report.get("rotations"), list):
                panels.append(("learning rotations" + name, functools.partial(_drawn, calibration, report)))
                panels.append(("error at the target bits" + name, functools.partial(_drawn, calibration_error, report)))
    return panels


def _bars(results: Mapping[str, float], baseline: Optional[float], axes: Any) -> None:
    perplexity_by_scheme(results, baseline=baseline, axes=axes)


def _drawn(function: Callable[..., Any], report: Mapping[str, Any], axes: Any) -> None:
    function(report, axes=axes)


def scheme_name(report: Mapping[str, Any]) -> str:
    """"w4a4k4v4" from a report; "none" when nothing is quantized."""
    scheme = report.get("scheme") or {}
    bits = {k: (v.get("bits", 16) if isinstance(v, Mapping) else 16) for k, v in scheme.items()}
    text = "".join("%s%d" % (k, bits[k]) for k in "wakv" if bits.get(k, 16) < 16)
    return text or "none"
