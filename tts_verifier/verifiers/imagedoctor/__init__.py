"""ImageDoctor: four scores, two heatmaps, boxes and reasons from one vision-language model."""
