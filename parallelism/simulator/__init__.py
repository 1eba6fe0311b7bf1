"""How long a step takes: estimators without torch, from FLOPs, rates and a cluster's figures."""
