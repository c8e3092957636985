"""Draws ``throughput.svg``: given to the service as a program, with the results as its input."""

import json
import sys

import matplotlib.pyplot as plt  # type: ignore[import-not-found]  # in the sandboxes' runtime only

plt.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 10})
results = json.load(sys.stdin)
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))

rows = [row for row in results["latency"] if row["program"] == "python"]
rows.sort(key=lambda row: row["p50_ms"])
bars = left.barh([row["subject"] for row in rows], [row["p50_ms"] for row in rows])
left.bar_label(bars, [f" {row['p50_ms']:.1f}" for row in rows])
left.margins(x=0.2)
left.xaxis.set_visible(False)
left.set_title("print(1+1), one client: p50, ms")

served = [row for row in results["throughput"] if row["subject"] == "service"]
clients = [str(row["clients"]) for row in served]
right.plot(clients, [row["runs_per_s"] for row in served], marker="o", label="service")
for subject, style in (("bare", "--"), ("bwrap", ":")):
    rates = [row["runs_per_s"] for row in results["throughput"] if row["subject"] == subject]
    if rates:
        label = f"{subject}, all cores busy"
        right.axhline(max(rates), linestyle=style, color="gray", label=label)
right.set_ylim(bottom=0)
right.set_xlabel("clients")
right.set_title("print(1+1): runs per second")
right.legend()

left.spines[["top", "right", "bottom"]].set_visible(False)
right.spines[["top", "right"]].set_visible(False)
figure.tight_layout()
figure.savefig("outputs/throughput.svg", metadata={"Date": None})
