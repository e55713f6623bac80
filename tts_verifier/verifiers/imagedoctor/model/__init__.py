"""The network of ImageDoctor: vision tower, language model and heatmap head."""
