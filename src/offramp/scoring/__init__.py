"""The suitability score of a trace: components, EAS, calibration, intervals."""
