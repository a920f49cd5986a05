"""How long answers will be: predictions for policies, forecasts of pages, and estimates of time."""
