"""From a topology to a plan: costs, the linear program, the planner, the simulator."""
