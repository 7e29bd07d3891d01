"""From the InternVL chat layout of the hub to transformers' own classes; `rewards.prm.convert` is the way in."""
