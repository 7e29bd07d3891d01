"""Groups to scored groups: aggregation, visual dependence."""
