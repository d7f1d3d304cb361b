"""From an inventory to a placement: the forecast, the search, the plan."""
