"""The network: Qwen2.5-VL, the vision tower and the heatmap head."""
