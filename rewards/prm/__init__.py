"""Process reward models: one contract to render, train and score."""
