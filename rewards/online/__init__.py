"""What online reinforcement learning needs: reward functions in TRL's signature, and a guard against reward hacking."""
