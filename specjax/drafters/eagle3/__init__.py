"""EAGLE-3 and EAGLE-3.1: guesses, step by step, from fused states of the target."""

from specjax.drafters.eagle3.drafter import Eagle3, Eagle3Drafter, default_taps, fresh_config

__all__ = ["Eagle3", "Eagle3Drafter", "default_taps", "fresh_config"]
