"""What the two benchmark scripts share: contenders, workers, costs of a cycle, the memory floor."""
