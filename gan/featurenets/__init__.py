"""Published networks whose inner layers serve as features; their weights come from elsewhere."""
