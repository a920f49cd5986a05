"""`jbatch predictor`: predictors of lengths are trained, and judged on requests that they did not see."""
