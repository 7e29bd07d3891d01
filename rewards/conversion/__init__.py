"""From the InternVL chat layout of the hub to transformers' own classes; `rewards.conversion.convert` is the way in."""
