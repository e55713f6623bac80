"""The cold start of ImageDoctor: supervised training on answers, then on reasons and maps."""
